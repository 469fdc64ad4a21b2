"""The flags that choose a workload, and the prompts they ask for. Names are those of `vllm bench` where it has them."""

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from quire_api.errors import InvalidInput
from quire_engine.bench.values import share, whole
from quire_engine.bench.workload import WORDS, Ids, Prompt, Words, made_up, sharegpt, with_shared_prefixes
from quire_engine.errors import WeightsFailure
from quire_engine.locate import locate_model
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["add_dataset_flags", "prompts_of"]

CHARACTERS_PER_TOKEN = 4  # of English, where no tokenizer says


def add_dataset_flags(parser: argparse.ArgumentParser, num_prompts: int) -> None:
    group = parser.add_argument_group("workload")
    add = group.add_argument
    add("--dataset-name", choices=["random", "sharegpt", "shared-prefix"], default="random",
        help="what is asked: made-up prompts, the questions of a file, or made-up ones that begin alike (default: random)")  # fmt: skip
    add(
        "--dataset-path",
        type=Path,
        metavar="FILE",
        help='for sharegpt: a list of {"conversations": [{"from", "value"}]}',
    )
    add(
        "--num-prompts",
        type=whole(1),
        default=num_prompts,
        metavar="N",
        help=f"requests of a run (default: {num_prompts})",
    )
    add("--random-input-len", type=whole(1), default=1024, metavar="N", help="tokens of a prompt (default: 1024)")
    add("--random-output-len", type=whole(1), default=128, metavar="N", help="tokens of an answer (default: 128)")
    add("--random-range-ratio", type=share, default=0.0, metavar="X",
        help="lengths are within this share of the two above, less and more (default: 0)")  # fmt: skip
    add(
        "--sharegpt-output-len", type=whole(1), metavar="N", help="tokens of each answer (default: those of the file's)"
    )
    for name, default, text in (
        ("num-prefixes", 10, "different beginnings"),
        ("prefix-len", 256, "tokens of a beginning"),
        ("suffix-len", 256, "tokens that follow it"),
        ("output-len", 128, "tokens of an answer"),
    ):
        add(f"--prefix-repetition-{name}", type=whole(1), default=default, metavar="N",
            help=f"for shared-prefix: {text} (default: {default})")  # fmt: skip
    add("--vocab-size", type=whole(8), default=1000, metavar="N",
        help="made-up token ids lie under this; not more than the model has (default: 1000)")  # fmt: skip
    add("--tokenizer", metavar="MODEL",
        help="folder with tokenizer.json, to count the tokens of text; without it a word, or four characters, is one")  # fmt: skip


def prompts_of(flags: argparse.Namespace, count: int, as_text: bool, seed: int) -> list[Prompt]:
    choose = random.Random(seed)
    if flags.dataset_path is not None and flags.dataset_name != "sharegpt":
        raise InvalidInput([f"--dataset-path: {flags.dataset_name} reads no file; say --dataset-name sharegpt"])
    tokenizer = None if flags.tokenizer is None else _tokenizer(flags.tokenizer)
    if flags.dataset_name == "sharegpt":
        return sharegpt(_file(flags.dataset_path), count, _counting(tokenizer), flags.sharegpt_output_len, choose)
    words = Words() if tokenizer is None else Words(_counting(tokenizer)(" ".join(WORDS)) / len(WORDS))
    material = words if as_text else Ids(flags.vocab_size)
    if flags.dataset_name == "shared-prefix":
        return with_shared_prefixes(
            count,
            material,
            flags.prefix_repetition_num_prefixes,
            flags.prefix_repetition_prefix_len,
            flags.prefix_repetition_suffix_len,
            flags.prefix_repetition_output_len,
            choose,
        )
    return made_up(count, material, flags.random_input_len, flags.random_output_len, flags.random_range_ratio, choose)


def _counting(tokenizer: Tokenizer | None) -> Callable[[str], int]:
    if tokenizer is None:
        return lambda text: -(-len(text) // CHARACTERS_PER_TOKEN)
    return lambda text: len(tokenizer.encode(text, add_special_tokens=False))


def _tokenizer(model: str) -> Tokenizer:
    try:
        return Tokenizer(locate_model(model), 0)
    except WeightsFailure as failure:
        raise InvalidInput([f"--tokenizer: {failure}"]) from None


def _file(path: Path | None) -> object:
    if path is None:
        raise InvalidInput(["--dataset-name sharegpt needs --dataset-path FILE"])
    try:
        return json.loads(path.read_bytes())
    except (OSError, ValueError) as error:
        raise InvalidInput([f"--dataset-path: {path} cannot be read: {error}"]) from None
