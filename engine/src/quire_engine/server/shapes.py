"""OpenAI's JSON for log probabilities, and vLLM's for those of prompts."""

from collections.abc import Callable, Sequence
from typing import Any

from quire_engine.core.step import TokenLogprob

__all__ = ["TokenNames", "chat_logprobs", "completion_logprobs", "prompt_logprobs"]

Json = dict[str, Any]
LEAST = -9999.0  # JSON has no infinity


class TokenNames:
    """What a token is called in an answer."""

    def __init__(self, table: Sequence[bytes], as_ids: bool) -> None:
        self._table = table
        self._as_ids = as_ids

    def text(self, token: int) -> str:
        return f"token_id:{token}" if self._as_ids else self._table[token].decode("utf-8", "replace")

    def bytes_of(self, token: int) -> list[int]:
        return list(self._table[token])


def _finite(logprob: float) -> float:
    return max(logprob, LEAST)


def chat_logprobs(scores: Sequence[TokenLogprob], names: TokenNames) -> Json:
    def named(token: int, logprob: float) -> Json:
        return {"token": names.text(token), "logprob": _finite(logprob), "bytes": names.bytes_of(token)}

    return {
        "content": [
            {**named(score.token, score.logprob), "top_logprobs": [named(*each) for each in score.top]}
            for score in scores
        ],
        "refusal": None,
    }


def completion_logprobs(
    first: int | None, scores: Sequence[TokenLogprob], names: TokenNames, offset: int, length_of: Callable[[int], int]
) -> Json:
    """Of tokens in a row, the text of which begins at `offset`; `first`, if any, comes before them and has no score."""
    tokens = [*([] if first is None else [first]), *(score.token for score in scores)]
    offsets = []
    for token in tokens:
        offsets.append(offset)
        offset += length_of(token)
    unscored: list[None] = [] if first is None else [None]
    return {
        "text_offset": offsets,
        "token_logprobs": [*unscored, *(_finite(score.logprob) for score in scores)],
        "tokens": [names.text(token) for token in tokens],
        "top_logprobs": [*unscored, *(_best(score, names) for score in scores)],
    }


def _best(score: TokenLogprob, names: TokenNames) -> Json:
    """The likeliest and the one that came; of two with one name the likelier."""
    found: Json = {}
    for token, logprob in (*score.top, (score.token, score.logprob)):
        found.setdefault(names.text(token), _finite(logprob))
    return found


def prompt_logprobs(scores: Sequence[TokenLogprob], names: TokenNames) -> list[Json | None]:
    """Of a prompt's tokens, the first of which has none: by token id."""

    def entry(token: int, logprob: float, rank: int) -> Json:
        return {"logprob": _finite(logprob), "rank": rank, "decoded_token": names.text(token)}

    rows: list[Json | None] = [None]
    for score in scores:
        row = {str(token): entry(token, logprob, rank) for rank, (token, logprob) in enumerate(score.top, 1)}
        row.setdefault(str(score.token), entry(score.token, score.logprob, score.rank))
        rows.append(row)
    return rows
