"""What a user may ask for: bad input gets a clear error, good input means what vLLM's means."""

import dataclasses
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_engine.core.request import TokenParams
from quire_engine.errors import RequestRejected
from quire_engine.locate import locate_model
from quire_engine.params import MAX_LOGPROBS, SamplingParams, of_sequence, resolve
from quire_engine.server.prompts import shortened
from quire_engine.text.tokenizer import Tokenizer

VOCABULARY = 1024
TINY = Tokenizer(locate_model("builtin://quire-tiny"), VOCABULARY)
END = 2

Json = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=3) | st.lists(st.integers(), max_size=2)
)


def resolved(params: SamplingParams, tokenizer: Tokenizer | None = TINY, prompt_length: int = 10) -> TokenParams:
    resolved = resolve(params, vocabulary=VOCABULARY, end_tokens=frozenset({END}), tokenizer=tokenizer)
    return of_sequence(resolved, seed=7, prompt_length=prompt_length, max_model_len=100)


@pytest.mark.parametrize(
    ("name", "value", "says"),
    [
        ("n", 0, "at least 1"),
        ("n", 1.0, "a whole number"),
        ("n", True, "a whole number"),
        ("n", None, "a whole number"),
        ("n", 100_000, "at most 1024"),
        ("temperature", -0.1, "between 0 and 100"),
        ("temperature", math.nan, "between 0 and 100"),
        ("temperature", math.inf, "between 0 and 100"),
        ("temperature", True, "a number"),
        ("temperature", "hot", "a number"),
        ("temperature", None, "a number"),
        ("top_p", 0, "more than"),
        ("top_p", 1.1, "between 0 and 1"),
        ("top_p", math.nan, "between 0 and 1"),
        ("top_k", -2, "at least -1"),
        ("top_k", 1.5, "a whole number"),
        ("top_k", 2**31, "at most 2147483647"),
        ("min_p", -0.1, "between 0 and 1"),
        ("min_p", 1.1, "between 0 and 1"),
        ("repetition_penalty", 0, "between 0.01 and 100"),
        ("repetition_penalty", -1, "between 0.01 and 100"),
        ("repetition_penalty", math.inf, "between 0.01 and 100"),
        ("frequency_penalty", 2.1, "between -2 and 2"),
        ("presence_penalty", -2.1, "between -2 and 2"),
        ("presence_penalty", math.nan, "between -2 and 2"),
        ("seed", 2**63, "at most"),
        ("seed", -(2**63) - 1, "at least"),
        ("seed", 1.0, "a whole number"),
        ("max_tokens", 0, "at least 1"),
        ("max_tokens", 2.5, "a whole number"),
        ("min_tokens", -1, "at least 0"),
        ("min_tokens", 17, "more than max_tokens, 16"),
        ("min_tokens", None, "a whole number"),
        ("logprobs", -1, "at least 0"),
        ("logprobs", 21, "at most 20"),
        ("logprobs", True, "a whole number"),
        ("prompt_logprobs", 21, "at most 20"),
        ("truncate_prompt_tokens", 0, "more than that"),
        ("truncate_prompt_tokens", -2, "at least -1"),
        ("stop", "", "empty"),
        ("stop", ["a", ""], "empty"),
        ("stop", [1], "text"),
        ("stop", 1, "text"),
        ("stop", b"x", "text"),
        ("stop", "\ud800", "surrogate"),
        ("bad_words", "word", "a list"),
        ("bad_words", ["a", ""], "empty"),
        ("bad_words", [1], "text"),
        ("stop_token_ids", 5, "a list"),
        ("stop_token_ids", ["5"], "whole numbers"),
        ("stop_token_ids", [True], "whole numbers"),
        ("stop_token_ids", [-1], "begin at 0"),
        ("allowed_token_ids", [], "empty"),
        ("allowed_token_ids", "12", "a list"),
        ("allowed_token_ids", [1.5], "whole numbers"),
        ("logit_bias", [1], "a dictionary"),
        ("logit_bias", {"1": 2.0}, "whole numbers"),
        ("logit_bias", {1: 101.0}, "between -100 and 100"),
        ("logit_bias", {1: math.nan}, "between -100 and 100"),
        ("logit_bias", {1: None}, "a number"),
        ("ignore_eos", 1, "true or false"),
        ("detokenize", "no", "true or false"),
        ("skip_special_tokens", None, "true or false"),
        ("include_stop_str_in_output", 0, "true or false"),
    ],
)
def test_bad_input_gets_a_clear_error(name: str, value: object, says: str) -> None:
    with pytest.raises(RequestRejected) as refusal:
        SamplingParams(**{name: value})  # type: ignore[arg-type]

    assert refusal.value.param == name
    assert name in str(refusal.value)
    assert says in str(refusal.value)


@given(st.sampled_from([field.name for field in dataclasses.fields(SamplingParams)]), Json)
def test_any_value_is_taken_or_refused_by_name(name: str, value: object) -> None:
    """Never another error, and what is taken can be resolved, or is refused then."""
    blamed: str | None = name
    try:
        resolved(SamplingParams(**{name: value}))  # type: ignore[arg-type]
    except RequestRejected as refusal:
        blamed = refusal.param

    assert blamed == name


@pytest.mark.parametrize(
    ("name", "value"),
    [("stop_token_ids", [1024]), ("allowed_token_ids", [3, 1024]), ("logit_bias", {1024: 1.0})],
)
def test_a_token_beyond_the_vocabulary_is_refused(name: str, value: object) -> None:
    params = SamplingParams(**{name: value})  # type: ignore[arg-type]

    with pytest.raises(RequestRejected, match=f"{name}: token 1024 .* 0 to 1023") as refusal:
        resolved(params)

    assert refusal.value.param == name


@pytest.mark.parametrize(
    "params",
    [
        SamplingParams(allowed_token_ids=[END], min_tokens=1),
        SamplingParams(allowed_token_ids=[223], bad_words=[" "]),
    ],
)
def test_a_request_that_leaves_no_token_is_refused(params: SamplingParams) -> None:
    with pytest.raises(RequestRejected, match="none could be chosen"):
        resolved(params)


@pytest.mark.parametrize("params", [SamplingParams(stop="a"), SamplingParams(bad_words=["a"])])
def test_what_needs_a_tokenizer_is_refused_without_one(params: SamplingParams) -> None:
    with pytest.raises(RequestRejected, match="needs a tokenizer"):
        resolved(params, tokenizer=None)


def test_a_bad_word_that_the_model_has_no_tokens_for_is_refused() -> None:
    larger = Tokenizer(locate_model("builtin://quire-tiny"), 300)

    with pytest.raises(RequestRejected, match="no tokens for 'the'"):
        resolve(SamplingParams(bad_words=["the"]), vocabulary=80, end_tokens=frozenset(), tokenizer=larger)


def test_defaults_are_those_of_vllm() -> None:
    assert resolved(SamplingParams()) == TokenParams(max_tokens=16, seed=7, stop_token_ids=frozenset({END}))


def test_all_is_handed_on() -> None:
    params = SamplingParams(
        temperature=0.5, top_p=0.9, top_k=5, min_p=0.1, presence_penalty=1, frequency_penalty=-1,
        repetition_penalty=1.5, stop=["é", "b"], stop_token_ids=[9], ignore_eos=True, min_tokens=3, logprobs=MAX_LOGPROBS,
        prompt_logprobs=0, allowed_token_ids=[4, 3, 4], logit_bias={5: 1},
    )  # fmt: skip

    assert resolved(params) == TokenParams(
        max_tokens=16, min_tokens=3, temperature=0.5, top_k=5, top_p=0.9, min_p=0.1, repetition_penalty=1.5,
        frequency_penalty=-1, presence_penalty=1, logit_bias=((5, 1.0),), allowed=(4, 3), seed=7,
        stop=("é".encode(), b"b"), stop_token_ids=frozenset({9}), logprobs=20, prompt_logprobs=0,
    )  # fmt: skip


def test_no_max_tokens_is_what_is_left() -> None:
    assert resolved(SamplingParams(max_tokens=None), prompt_length=30).max_tokens == 70


@pytest.mark.parametrize("top_k", [0, -1])
def test_top_k_has_two_names_for_all(top_k: int) -> None:
    assert resolved(SamplingParams(top_k=top_k)).top_k == 0


def test_a_temperature_of_almost_nothing_is_greedy() -> None:
    assert resolved(SamplingParams(temperature=9e-6)).temperature == 0


def test_one_stop_string_needs_no_list() -> None:
    assert resolved(SamplingParams(stop="ab")).stop == (b"ab",)


def test_bad_words_are_ruled_out_after_a_space_too() -> None:
    words = resolved(SamplingParams(bad_words=["the"])).bad_words

    assert [TINY.decode(list(word)) for word in words] == ["the", " the"]


def test_a_bad_line_break_does_not_rule_out_spaces() -> None:
    words = resolved(SamplingParams(bad_words=["\n"])).bad_words

    assert [TINY.decode(list(word)) for word in words] == ["\n"]


@given(
    st.lists(st.integers(0, 3), max_size=2),
    st.lists(st.integers(0, 3), max_size=8),
    st.lists(st.integers(0, 3), max_size=2),
    st.integers(1, 14),
)
def test_a_text_is_shortened_between_what_is_put_around_it(
    before: list[int], bare: list[int], after: list[int], limit: int
) -> None:
    """As transformers does; where what is around could be two things, its length decides."""
    ids = [*before, *bare, *after]

    seen = shortened(ids, bare, limit) if len(ids) > limit else ids

    assert len(seen) == min(limit, len(ids))
    if len({*before, *after} & {*bare}) == 0 and len(before) + len(after) < limit < len(ids) and bare:
        assert seen == [*before, *bare[: limit - len(before) - len(after)], *after]
