"""What a user may ask of an answer, by vLLM's names: checked here, and turned into what the core understands.

The library and the server both come this way, so that a value means the same in both. Every refusal names the
parameter, what was seen and what is possible.
"""

import sys
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any

from quire_engine.core.request import Grammar, TokenParams
from quire_engine.errors import RequestRejected
from quire_engine.grammars.asked import StructuredOutputs, grammar_of
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["MAX_LOGPROBS", "SamplingParams", "of_sequence", "resolve"]

LONGEST_STOP = 1024  # characters; each token is compared with all of them
MOST_BAD_WORDS, LONGEST_BAD_WORD = 256, 64  # each takes memory at every step; the length is in characters
MAX_LOGPROBS = 20  # of the likeliest tokens beside each: as many as OpenAI gives
GREEDY_BELOW = 1e-5  # a temperature that small is 0

# parameter -> least and greatest value; None: no bound
NUMBERS: dict[str, tuple[float, float]] = {
    "temperature": (0.0, 100.0),
    "top_p": (0.0, 1.0),
    "min_p": (0.0, 1.0),
    "repetition_penalty": (0.01, 100.0),
    "frequency_penalty": (-2.0, 2.0),
    "presence_penalty": (-2.0, 2.0),
}
COUNTS: dict[str, tuple[int, int | None]] = {
    "n": (1, 1024),
    "top_k": (-1, 2**31 - 1),
    "seed": (-(2**63), 2**63 - 1),
    "max_tokens": (1, None),
    "min_tokens": (0, None),
    "logprobs": (0, MAX_LOGPROBS),
    "prompt_logprobs": (0, MAX_LOGPROBS),
    "truncate_prompt_tokens": (-1, None),
}
POSITIVE = ("top_p", "truncate_prompt_tokens")  # these cannot be 0
OPTIONAL = ("seed", "max_tokens", "logprobs", "prompt_logprobs", "truncate_prompt_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class SamplingParams:
    """Refuses by RequestRejected whatever cannot be meant."""

    n: int = 1
    temperature: float = 1.0
    top_p: float = 1.0
    top_k: int = 0  # 0 or -1: all
    min_p: float = 0.0
    seed: int | None = None
    stop: str | Sequence[str] | None = None
    stop_token_ids: Sequence[int] | None = None
    ignore_eos: bool = False
    max_tokens: int | None = 16  # None: what is left of the model's length
    min_tokens: int = 0
    logprobs: int | None = None
    prompt_logprobs: int | None = None
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    repetition_penalty: float = 1.0
    bad_words: Sequence[str] | None = None
    allowed_token_ids: Sequence[int] | None = None
    logit_bias: Mapping[int, float] | None = None
    include_stop_str_in_output: bool = False
    skip_special_tokens: bool = True
    detokenize: bool = True
    spaces_between_special_tokens: bool = True  # there is no other way: a token's text has its spaces
    truncate_prompt_tokens: int | None = None  # keep the last so many; -1: as many as fit with the output
    structured_outputs: StructuredOutputs | None = None  # what the answer must match
    batch_invariant: bool = False  # the same tokens and log probabilities, to the bit, whatever else is computed

    def __post_init__(self) -> None:
        for name, bounds in NUMBERS.items():
            _check_number(name, getattr(self, name), *bounds)
        for name in POSITIVE:
            if getattr(self, name) == 0:
                raise RequestRejected(f"{name} is 0, and must be more than that", name)
        for name, (least, most) in COUNTS.items():
            _check_count(name, getattr(self, name), least, most)
        for field in fields(self):
            if field.type is bool and not isinstance(getattr(self, field.name), bool):
                raise _wrong(field.name, getattr(self, field.name), "true or false")
        if self.max_tokens is not None and self.min_tokens > self.max_tokens:
            raise RequestRejected(
                f"min_tokens is {self.min_tokens}, more than max_tokens, {self.max_tokens}", "min_tokens"
            )
        if not isinstance(self.stop, str):
            _check_list("stop", self.stop, "text, or a list of texts")
        for stop in self.stops:
            _check_text("stop", stop)
            if len(stop) > LONGEST_STOP:
                raise RequestRejected(
                    f"stop has one of {len(stop)} characters, and at most {LONGEST_STOP} are taken", "stop"
                )
        for name in ("bad_words", "stop_token_ids", "allowed_token_ids"):
            _check_list(name, getattr(self, name), "a list")
        if len(self.bad_words or ()) > MOST_BAD_WORDS:
            raise RequestRejected(
                f"bad_words has {len(self.bad_words or ())} words, and at most {MOST_BAD_WORDS} are taken", "bad_words"
            )
        for word in self.bad_words or ():
            _check_text("bad_words", word)
            if len(word) > LONGEST_BAD_WORD:
                raise RequestRejected(
                    f"bad_words has one of {len(word)} characters, and at most {LONGEST_BAD_WORD} are taken",
                    "bad_words",
                )
        for name in ("stop_token_ids", "allowed_token_ids"):
            for token in getattr(self, name) or ():
                _check_id(name, token)
        if self.allowed_token_ids is not None and not self.allowed_token_ids:
            raise RequestRejected("allowed_token_ids is empty: no token could be chosen", "allowed_token_ids")
        if self.logit_bias is not None and not isinstance(self.logit_bias, Mapping):
            raise _wrong("logit_bias", self.logit_bias, "a dictionary of token ids and numbers")
        if not isinstance(self.structured_outputs, StructuredOutputs | None):
            raise _wrong("structured_outputs", self.structured_outputs, "a StructuredOutputs")
        for token, bias in (self.logit_bias or {}).items():
            _check_id("logit_bias", token)
            _check_number(f"logit_bias of token {token}", bias, -100.0, 100.0, param="logit_bias")

    def truncated(self, prompt: list[int], max_model_len: int) -> list[int]:
        """The prompt's last tokens, as many as are to be kept."""
        keep = self.truncate_prompt_tokens
        if keep == -1:
            keep = max(1, max_model_len - (self.max_tokens or 1))
        return prompt if keep is None else prompt[-keep:]

    @property
    def stops(self) -> tuple[str, ...]:
        return (self.stop,) if isinstance(self.stop, str) else tuple(self.stop or ())


def resolve(
    params: SamplingParams,
    *,
    vocabulary: int,
    end_tokens: frozenset[int],
    tokenizer: Tokenizer | None,
    most_tokens: int | None = None,
) -> TokenParams:
    """In ids and bytes, for one model; `of_sequence` makes of it what holds for each of many answers, at little cost.

    `most_tokens` bounds every answer, whatever was asked for.
    """
    ends = frozenset(_ids("stop_token_ids", params.stop_token_ids or (), vocabulary))
    grammar = _grammar(params, ends | end_tokens, tokenizer)
    bias = _bias(params.logit_bias or {}, vocabulary)
    if (
        grammar is not None and params.ignore_eos
    ):  # an end token is the only way to end, and comes when nothing else can
        bias = (*bias, *((token, float("-inf")) for token in sorted(end_tokens)))
    ends |= frozenset() if params.ignore_eos and grammar is None else end_tokens
    if tokenizer is None and (params.stops or params.bad_words):
        name = "stop" if params.stops else "bad_words"
        raise RequestRejected(f"{name} needs a tokenizer, and none was loaded: use token ids instead", name)
    allowed = None
    if params.allowed_token_ids is not None:
        allowed = tuple(dict.fromkeys(_ids("allowed_token_ids", params.allowed_token_ids, vocabulary)))
    bad_words = _words(params.bad_words or (), tokenizer, vocabulary)
    ruled_out = {word[0] for word in bad_words if len(word) == 1} | (ends if params.min_tokens else set())
    if allowed is not None and ruled_out.issuperset(allowed):
        raise RequestRejected(
            "allowed_token_ids has only tokens that bad_words or min_tokens rule out: none could be chosen",
            "allowed_token_ids",
        )
    return TokenParams(
        max_tokens=min(bound for bound in (params.max_tokens, most_tokens, sys.maxsize) if bound is not None),
        min_tokens=params.min_tokens,
        temperature=0.0 if params.temperature < GREEDY_BELOW else params.temperature,
        top_k=max(params.top_k, 0),
        top_p=params.top_p,
        min_p=params.min_p,
        repetition_penalty=params.repetition_penalty,
        frequency_penalty=params.frequency_penalty,
        presence_penalty=params.presence_penalty,
        logit_bias=bias,
        allowed=allowed,
        bad_words=bad_words,
        special_text=not params.skip_special_tokens,
        stop=tuple(stop.encode() for stop in params.stops),
        stop_token_ids=ends,
        grammar=grammar,
        logprobs=params.logprobs,
        prompt_logprobs=params.prompt_logprobs,
        batch_invariant=params.batch_invariant,
    )


def of_sequence(
    resolved: TokenParams, *, seed: int, lead: bool = True, prompt_length: int, max_model_len: int
) -> TokenParams:
    """For one answer to one prompt: its seed, what fits, and whether it scores the prompt for all."""
    left = max_model_len - prompt_length
    max_tokens = min(resolved.max_tokens, max(1, left))
    return replace(
        resolved,
        seed=seed % 2**63,
        max_tokens=max_tokens,
        min_tokens=min(resolved.min_tokens, max_tokens, max(left, 0)),
        prompt_logprobs=resolved.prompt_logprobs if lead else None,
    )


def _grammar(params: SamplingParams, ends: frozenset[int], tokenizer: Tokenizer | None) -> Grammar | None:
    if params.structured_outputs is None:
        return None
    param = params.structured_outputs.param
    if tokenizer is None:
        raise RequestRejected(f"{param} needs a tokenizer, and none was loaded", param)
    if not ends:
        raise RequestRejected(f"{param} needs a token to end with, and the model has none: give stop_token_ids", param)
    return grammar_of(params.structured_outputs)


def _words(words: Iterable[str], tokenizer: Tokenizer | None, vocabulary: int) -> tuple[tuple[int, ...], ...]:
    """As each is written at the start of a text, and after a space."""
    found: dict[tuple[int, ...], None] = {}
    for word in words:
        assert tokenizer is not None  # the caller has seen to it
        bare = word.lstrip()
        for text in (word, " " + bare) if bare else (word,):  # a word of spaces does not rule out the space before it
            ids = tuple(tokenizer.encode(text, add_special_tokens=False))
            if not ids or max(ids) >= vocabulary:
                raise RequestRejected(f"bad_words: the model has no tokens for {word!r}", "bad_words")
            found[ids] = None
    return tuple(found)


def _bias(bias: Mapping[int, float], vocabulary: int) -> tuple[tuple[int, float], ...]:
    return tuple((token, float(bias[token])) for token in _ids("logit_bias", bias, vocabulary))


def _ids(name: str, ids: Iterable[int], vocabulary: int) -> list[int]:
    ids = list(ids)
    for token in ids:
        if token >= vocabulary:
            raise RequestRejected(
                f"{name}: token {token} is not in the vocabulary, whose ids are 0 to {vocabulary - 1}", name
            )
    return ids


def _check_list(name: str, value: Any, expected: str) -> None:
    if value is not None and (isinstance(value, str | bytes | Mapping) or not isinstance(value, Collection)):
        raise _wrong(name, value, expected)


def _check_id(name: str, token: Any) -> None:
    if isinstance(token, bool) or not isinstance(token, int):
        raise RequestRejected(f"{name} has {token!r}, and token ids are whole numbers", name)
    if token < 0:
        raise RequestRejected(f"{name} has the token {token}, and ids begin at 0", name)


def _check_number(name: str, value: Any, least: float, most: float, param: str | None = None) -> None:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise _wrong(name, value, "a number", param)
    if not least <= value <= most:  # nor is NaN
        raise RequestRejected(f"{name} is {value}, and must be between {least:g} and {most:g}", param or name)


def _check_count(name: str, value: Any, least: int, most: int | None) -> None:
    if value is None and name in OPTIONAL:
        return
    if isinstance(value, bool) or not isinstance(value, int):
        raise _wrong(name, value, "a whole number")
    if value < least or (most is not None and value > most):
        bound = f"at least {least}" if value < least else f"at most {most}"
        raise RequestRejected(f"{name} is {value}, and must be {bound}", name)


def _check_text(name: str, text: Any) -> None:
    if not isinstance(text, str):
        raise _wrong(name, text, "text")
    if not text:
        raise RequestRejected(f"{name}: an empty string would match everywhere", name)
    try:
        text.encode()
    except UnicodeEncodeError:
        raise RequestRejected(f"{name}: half of a surrogate pair is no text", name) from None


def _wrong(name: str, value: Any, expected: str, param: str | None = None) -> RequestRejected:
    return RequestRejected(f"{name} is {value!r}, and must be {expected}", param or name)
