"""Which files of a model are brought. Pure: names in, names out.

Safetensors, never pickle unless asked, or the only GGUF file; one copy of the weights; configuration, tokenizer and
templates always.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from hashlib import sha256

from quire_engine.fetch.errors import ModelNotFound
from quire_engine.fetch.listing import RESERVED, RemoteFile

__all__ = ["Choice", "choose"]

PICKLES = (".bin", ".pt", ".pth", ".ckpt", ".pkl", ".pickle")
WEIGHTS = (
    ".safetensors",
    *PICKLES,
    ".gguf",
    ".ggml",
    ".h5",
    ".msgpack",
    ".ot",
    ".onnx",
    ".onnx_data",
    ".tflite",
    ".mlmodel",
    ".npz",
    ".nemo",
)
TEXTS = (".json", ".jinja", ".txt", ".model", ".tiktoken", ".vocab", ".merges", ".bpe", ".md")
LEGAL = ("LICENSE", "LICENCE", "NOTICE", "USE_POLICY", "COPYING")
ALWAYS = (  # whatever was included: without them no text goes in or out
    "config.json", "generation_config.json", "adapter_config.json", "tokenizer*", "vocab.*", "merges.txt", "special_tokens_map.json",
    "added_tokens.json", "*.tiktoken", "chat_template*", "*.jinja", "spiece.model", "sentencepiece*",
)  # fmt: skip
LEFT_OUT = ("original", "onnx", "openvino", "coreml", "gguf", "tensorrt")  # folders with the same weights once more

_BASE = re.compile(r"(?:model|adapter_model|pytorch_model)(-\d+-of-\d+)?\.(?:safetensors|bin)")
_SHARD = re.compile(r"-\d+-of-\d+\.")
_INDEX = re.compile(r"(.+)\.(safetensors|bin)\.index\.json")


@dataclass(frozen=True, slots=True, kw_only=True)
class Choice:
    """What a user asked for beyond the rules here. Patterns are of the shell, on the whole path."""

    include: tuple[str, ...] = ()
    exclude: tuple[str, ...] = ()
    allow_pickle: bool = False

    @property
    def mark(self) -> str:
        """Tells the folders of different choices apart; empty for the usual one."""
        if self == Choice():
            return ""
        return "+" + sha256(repr((self.include, self.exclude, self.allow_pickle)).encode()).hexdigest()[:8]


def choose(files: Sequence[RemoteFile], choice: Choice, source: str) -> tuple[RemoteFile, ...]:
    """In the order of their names; ModelNotFound says what there is instead, if there is nothing to load."""
    named = [pattern for pattern in choice.include if "/" in pattern]
    by_name = {file.path: file for file in files if _is_a_models(file.path, named)}
    if choice.include:
        names = {n for n in by_name if _matches(n, choice.include) or ("/" not in n and _matches(n, ALWAYS))}
    else:
        names = {n for n in by_name if n.endswith(TEXTS) or n.rpartition("/")[2].startswith(LEGAL)}
        names |= set(_weights([n for n in by_name if n.endswith(WEIGHTS)], choice, source))
        names -= _idle_indexes(names)
    names = {n for n in names if not _matches(n, choice.exclude)}
    if not any(n.endswith(WEIGHTS) for n in names):
        seen = ", ".join(sorted(by_name)[:5]) or "no file at all"
        raise ModelNotFound(f"{source} has no weights that were asked for; it has {seen}")
    return tuple(by_name[name] for name in sorted(names))


def _is_a_models(path: str, named: Sequence[str]) -> bool:
    """Not in a folder that is left out, unless a pattern that names a folder asks for it."""
    *folders, _ = path.split("/")
    hidden = any(part.startswith(".") for part in path.split("/"))
    left_out = any(folder.lower() in LEFT_OUT for folder in folders) and not _matches(path, named)
    return not hidden and path not in RESERVED and not left_out


def _weights(names: Sequence[str], choice: Choice, source: str) -> list[str]:
    """One copy of them, of those at the top."""
    top = [name for name in names if "/" not in name]
    safe = [name for name in top if name.endswith(".safetensors")]
    if safe:
        return _once(safe)
    quantized = [name for name in top if name.endswith(".gguf")]
    if len(quantized) == 1:
        return quantized
    if quantized:
        raise ModelNotFound(
            f"{source} has {len(quantized)} GGUF files, of which one is a model: choose it with --include, as in "
            f"--include '{quantized[0]}'; there are {', '.join(quantized[:40])}"
        )
    pickled = [name for name in top if name.endswith(PICKLES)]
    if pickled and choice.allow_pickle:
        return _once(pickled)
    if pickled:
        raise ModelNotFound(
            f"{source} has its weights only as pickle ({pickled[0]}), which can run code when it is read; "
            "take a revision with safetensors (--allow-pickle fetches these, the engine does not read them)"
        )
    return []


def _once(names: list[str]) -> list[str]:
    """Files with transformers' own names, if there are any: not consolidated.*, not model.fp16.*, not both whole and parts."""
    own = [name for name in names if _BASE.fullmatch(name)]
    if not own:
        return names
    parts = {name.partition("-")[0] for name in own if _SHARD.search(name)}
    return [name for name in own if _SHARD.search(name) or name.partition(".")[0] not in parts]


def _idle_indexes(names: set[str]) -> set[str]:
    """Indexes of parts that are not brought."""
    found = ((name, _INDEX.fullmatch(name)) for name in names)
    return {
        name
        for name, index in found
        if index and not any(re.fullmatch(rf"{re.escape(index[1])}-\d+-of-\d+\.{index[2]}", other) for other in names)
    }


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
