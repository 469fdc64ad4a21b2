"""The arguments of `quire fetch` and its other forms, and what their values mean. Nothing is done here."""

import argparse
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from quire_api.errors import InvalidInput
from quire_api.fetching import FETCH_OUTCOMES
from quire_api.parser import FlagParser

__all__ = ["between", "bytes_of", "choice_of", "parse_arguments", "store_of"]

UNITS = {
    "": 1,
    "B": 1,
    "KiB": 2**10,
    "MiB": 2**20,
    "GiB": 2**30,
    "TiB": 2**40,
    "KB": 10**3,
    "MB": 10**6,
    "GB": 10**9,
    "TB": 10**12,
}


def parse_arguments(argv: list[str]) -> tuple[str, argparse.Namespace]:
    verb = argv[0] if argv and argv[0] in _ADD and argv[0] != "fetch" else "fetch"
    rest = argv if verb == "fetch" else argv[1:]
    codes = ", ".join(f"{outcome.exit_code} {reason}" for reason, outcome in FETCH_OUTCOMES.items())
    about = {
        "fetch": (
            "SOURCE STORE",
            "Bring a model into a folder of models; the last line printed is its own folder there.",
        ),
        "resolve": (
            "SOURCE",
            "Print revision, bytes and footprint of a model as one line of JSON; nothing is fetched.",
        ),
        "verify": ("PATH", "Read every byte of a model, or of all models of a store, and compare."),
        "list": ("STORE", "List the models of a store."),
        "gc": (
            "STORE --quota SIZE",
            "Remove the models of a store that were not asked for longest, until it is within a quota.",
        ),
    }[verb]
    name = "quire fetch" + ("" if verb == "fetch" else f" {verb}")
    others = "" if verb != "fetch" else "\nother forms: quire fetch resolve | verify | list | gc, each with --help"
    parser = FlagParser(
        prog=name,
        usage=f"{name} {about[0]} [--flags]",
        description=about[1],
        epilog=f"exit codes: {codes}{others}",
        allow_abbrev=False,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    _ADD[verb](parser)
    return verb, parser.parse_intermixed_args(rest)  # an optional STORE may stand after a flag


def _add_fetch(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="hf://org/model[@revision], s3://bucket/prefix, https://.../manifest.json; file://, pvc:// and builtin:// are verified in place")  # fmt: skip
    parser.add_argument(
        "store", metavar="STORE", nargs="?", help="the folder of models; not for what is verified in place"
    )
    _addchoice_of(parser)
    parser.add_argument(
        "--verify", action="store_true", help="compare the hashes of what is there already, and mend it"
    )
    parser.add_argument("--connections", metavar="N", default="8", help="requests at a time (default: 8)")
    parser.add_argument("--revision", metavar="REVISION", default="", help="what `resolve` said; if the source is another one by now, it is an error")  # fmt: skip
    parser.add_argument("--link", metavar="PATH", help="make this a link to the model's folder once it is finished")
    parser.add_argument("--status-file", metavar="PATH", help="keep the progress there, as a line of JSON")
    parser.add_argument("--status-port", metavar="PORT", default=os.environ.get("QUIRE_FETCH_STATUS_PORT") or None, help="answer the same line there over HTTP (default: QUIRE_FETCH_STATUS_PORT)")  # fmt: skip
    parser.add_argument("--quiet", action="store_true", help="no progress on standard error")
    parser.add_argument("--json", action="store_true", help="print the folder as JSON")


def _addchoice_of(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--include", metavar="PATTERN", action="append", default=[], help="bring these files instead of those chosen by rule; configuration and tokenizer come along; may be repeated")  # fmt: skip
    parser.add_argument("--exclude", metavar="PATTERN", action="append", default=[], help="leave these files out; may be repeated")  # fmt: skip
    parser.add_argument(
        "--allow-pickle", action="store_true", help="take pickled weights where there are no safetensors"
    )


def _add_resolve(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("source", metavar="SOURCE", help="as for `quire fetch`")
    _addchoice_of(parser)


def _add_verify(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("path", metavar="PATH", help="a model's folder, or a store")


def _add_list(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the folder of models")
    parser.add_argument("--json", action="store_true", help="print JSON")


def _add_gc(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("store", metavar="STORE", help="the folder of models")
    parser.add_argument("--quota", metavar="SIZE", required=True, help="bytes that may stay, as 200GiB")
    parser.add_argument("--keep", metavar="FOLDER", action="append", default=[], help="a model, or a folder of models, that must stay; may be repeated")  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="only say what would be removed")


_ADD: dict[str, Callable[[argparse.ArgumentParser], None]] = {
    "fetch": _add_fetch,
    "resolve": _add_resolve,
    "verify": _add_verify,
    "list": _add_list,
    "gc": _add_gc,
}


def choice_of(arguments: argparse.Namespace) -> Any:
    from quire_engine.fetch.choose import Choice

    return Choice(
        include=tuple(arguments.include), exclude=tuple(arguments.exclude), allow_pickle=arguments.allow_pickle
    )  # fmt: skip


def store_of(arguments: argparse.Namespace) -> Path:
    path = Path(arguments.store).expanduser()
    if not path.is_dir():
        raise InvalidInput([f"{path} is no folder"])
    return path


def between(flag: str, text: str, low: int, high: int) -> int:
    if not text.isdecimal() or not low <= int(text) <= high:
        raise InvalidInput([f"{flag}: {text} is not a number from {low} to {high}"])
    return int(text)


def bytes_of(flag: str, text: str) -> int:
    number = text.rstrip("BKMGTikb")
    unit = text[len(number) :]
    unit = {"K": "KiB", "M": "MiB", "G": "GiB", "T": "TiB", "Ki": "KiB", "Mi": "MiB", "Gi": "GiB", "Ti": "TiB"}.get(
        unit, unit
    )
    try:
        count = int(float(number) * UNITS[unit])
        if count >= 0:
            return count
        raise ValueError(text)
    except (ValueError, KeyError, OverflowError):
        raise InvalidInput([f"{flag}: {text} is no size; write 200GiB, or a number of bytes"]) from None
