"""What is asked: prompts and the lengths of their answers. The same seed gives the same prompts, whatever runs them.

Made-up prompts are token ids, which every vocabulary of that size has, or words, where a server takes only text.
No two begin alike unless that is the point: a prefix cache finds nothing that it was not meant to find.
"""

import math
import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from quire_api.errors import InvalidInput

__all__ = ["WORDS", "Content", "Ids", "Material", "Prompt", "Words", "made_up", "sharegpt", "with_shared_prefixes"]

Content = str | tuple[int, ...]

TEXT = (
    "air ask bag bed big bird blue boat book box boy bread bus cake call car cat chair child city clean cold cook cup "
    "day deep dog door draw dream drink early earth eat egg eye face farm fast field fire fish floor food foot forest "
    "friend fruit game garden girl glass gold grass green hand hat head heart help hill home horse hot house ice island "
    "key kind king lake lamp land leaf letter light lion long map market milk moon morning mother mountain mouse music "
    "name night north ocean old open orange page paper park pencil people picture plant play queen rain read red river "
    "road rock room salt sand school sea ship shoe silver sing sky sleep small snow song south star stone story street "
    "summer sun table tall tea time town train tree village walk wall warm watch water west white wind window winter "
    "wood word work yellow young"
)
WORDS = tuple(TEXT.split())


@dataclass(frozen=True, slots=True)
class Prompt:
    content: Content
    output_tokens: int  # at most; exactly, where the server is to ignore the end


@dataclass(frozen=True, slots=True)
class Ids:
    """Token ids. The first quarter is left out: special tokens are there."""

    vocabulary: int

    def write(self, choose: random.Random, tokens: int) -> Content:
        return tuple(choose.choices(range(self.vocabulary // 4, self.vocabulary), k=tokens))


@dataclass(frozen=True, slots=True)
class Words:
    """Text of about so many tokens; the exact number is the server's to say."""

    tokens_per_word: float = 1.0

    def write(self, choose: random.Random, tokens: int) -> Content:
        return " ".join(choose.choices(WORDS, k=max(1, round(tokens / self.tokens_per_word))))


Material = Ids | Words


def made_up(
    count: int, material: Material, input_tokens: int, output_tokens: int, range_ratio: float, choose: random.Random
) -> list[Prompt]:
    """Lengths lie evenly between the given one less and more that share of it."""
    return [
        Prompt(
            material.write(choose, _length(input_tokens, range_ratio, choose)),
            _length(output_tokens, range_ratio, choose),
        )
        for _ in range(count)
    ]


def with_shared_prefixes(
    count: int,
    material: Material,
    prefixes: int,
    prefix_tokens: int,
    suffix_tokens: int,
    output_tokens: int,
    choose: random.Random,
) -> list[Prompt]:
    """Some beginnings, each with many tails, in no order."""
    beginnings = [material.write(choose, prefix_tokens) for _ in range(prefixes)]
    prompts = [
        Prompt(_join(beginnings[number % prefixes], material.write(choose, suffix_tokens)), output_tokens)
        for number in range(count)
    ]
    choose.shuffle(prompts)
    return prompts


def sharegpt(
    data: Any, count: int, count_tokens: Callable[[str], int], output_tokens: int | None, choose: random.Random
) -> list[Prompt]:
    """The first question of so many conversations; its answer's length, unless one is given for all.

    As in vLLM's benchmark, conversations of under 4 or over 1024 tokens of prompt, or over 2048 in all, are left out.
    """
    if not isinstance(data, list):
        raise InvalidInput([f"--dataset-path: a ShareGPT file is a list of conversations, not {type(data).__name__}"])
    conversations = list(data)
    choose.shuffle(conversations)
    prompts: list[Prompt] = []
    for conversation in conversations:
        if len(prompts) == count:
            break
        turns = _turns(conversation)
        if turns is None:
            continue
        asked, answered = (count_tokens(text) for text in turns)
        length = answered if output_tokens is None else output_tokens
        if 4 <= asked <= 1024 and (output_tokens is not None or answered >= 4) and asked + length <= 2048:
            prompts.append(Prompt(turns[0], length))
    if len(prompts) < count:
        raise InvalidInput(
            [
                f"--dataset-path: {len(prompts)} of {len(conversations)} conversations have a question and an answer of "
                f"fitting length, and {count} are needed, one for each request of each rate: lower --num-prompts"
            ]
        )
    return prompts


def _turns(conversation: Any) -> tuple[str, str] | None:
    """The first question and its answer, where they are there."""
    turns = conversation.get("conversations") if isinstance(conversation, dict) else None
    if not isinstance(turns, list) or len(turns) < 2 or not all(isinstance(turn, dict) for turn in turns[:2]):
        return None
    texts = [turn.get("value") for turn in turns[:2]]
    if not all(isinstance(text, str) for text in texts) or turns[0].get("from") not in ("human", "user"):
        return None
    return texts[0], texts[1]


def _length(tokens: int, range_ratio: float, choose: random.Random) -> int:
    return choose.randint(max(1, math.floor(tokens * (1 - range_ratio))), math.ceil(tokens * (1 + range_ratio)))


def _join(beginning: Content, end: Content) -> Content:
    return f"{beginning} {end}" if isinstance(beginning, str) or isinstance(end, str) else beginning + end
