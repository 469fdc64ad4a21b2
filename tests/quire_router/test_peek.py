"""What is read out of a body, and what makes two requests belong together."""

import json
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from quire_router.peek import HEAD_BYTES, MOST_TOKENS, Ask, peek


def ask(**fields: Any) -> Ask:
    seen = peek(json.dumps({"model": "m", **fields}).encode())
    assert seen is not None
    return seen


def chat(*messages: tuple[str, Any]) -> list[dict[str, Any]]:
    return [{"role": role, "content": content} for role, content in messages]


def test_a_conversation_keeps_its_key_as_it_grows() -> None:
    opening = (("system", "Be brief."), ("user", "Hello"))

    first = ask(messages=chat(*opening))
    later = ask(messages=chat(*opening, ("assistant", "Hi."), ("user", "And now?")), temperature=1, stream=True)

    assert first.key == later.key is not None
    assert ask(messages=chat(("system", "Be brief."), ("user", "Bye"))).key != first.key


def test_text_and_parts_of_text_are_the_same_prompt() -> None:
    assert ask(messages=chat(("user", "ab"))).key == ask(messages=chat(("user", [{"type": "text", "text": "ab"}]))).key


def test_prompts_that_differ_after_their_head_share_a_key() -> None:
    assert ask(prompt="x" * HEAD_BYTES + "a").key == ask(prompt="x" * HEAD_BYTES + "b").key
    assert ask(prompt="ax").key != ask(prompt="bx").key
    assert ask(prompt=[1, 2, 3]).key == ask(prompt=[[1, 2, 3]]).key != ask(prompt=[1, 2, 4]).key


@pytest.mark.parametrize(
    "fields", [{}, {"input": "a"}, {"messages": []}, {"prompt": ""}, {"messages": [7]}, {"prompt": {}}]
)
def test_what_has_no_prompt_has_no_key(fields: dict[str, Any]) -> None:
    assert ask(**fields).key is None


@pytest.mark.parametrize(
    ("fields", "most"),
    [
        ({}, None),
        ({"max_tokens": 7}, 7),
        ({"max_tokens": 7, "max_completion_tokens": 9}, 9),
        ({"max_tokens": 0}, 0),
        ({"max_tokens": 7, "n": 3}, 21),
        ({"max_tokens": 7, "n": 2, "best_of": 4}, 28),
        ({"max_tokens": 7, "prompt": ["a", "b"]}, 14),
        ({"max_tokens": "7"}, None),
        ({"max_tokens": 7, "n": "8"}, None),
        ({"max_tokens": -1}, None),
        ({"max_tokens": 1 << 62, "n": 1 << 62}, MOST_TOKENS),
    ],
)
def test_the_most_that_may_be_answered(fields: dict[str, Any], most: int | None) -> None:
    assert ask(**fields).max_tokens == most


@pytest.mark.parametrize(
    "body", [b"", b"[]", b"7", b'{"model": 7}', b"{", b"\xff", b"[" * 200_000, b'{"model": "m", "a": ' + b"[" * 200_000]
)
def test_what_names_no_model_is_nothing(body: bytes) -> None:
    assert peek(body) is None


@pytest.mark.parametrize("body", [b'{"model": "m", "temperature": NaN}', b'{"model": "m", "prompt": "\\ud800"}'])
def test_what_only_some_readers_take_is_left_to_the_engine(body: bytes) -> None:
    seen = peek(body)

    assert seen is not None
    assert seen.model == "m"


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(["role", "content", "text", "x"]), inner, max_size=4)
    ),
    max_leaves=12,
)
NAMES = st.sampled_from(["messages", "prompt", "max_tokens", "max_completion_tokens", "n", "best_of", "stream"])


@settings(max_examples=40, deadline=None)
@given(st.dictionaries(NAMES, JSON))
def test_no_body_is_too_odd(fields: dict[str, Any]) -> None:
    seen = peek(json.dumps({"model": "m", **fields}).encode())

    assert seen is not None
    assert seen.weight >= 1


@pytest.mark.parametrize("deep", ["role", "text", "content"])
def test_nothing_is_read_where_a_word_should_be_and_a_thousand_lists_are(deep: str) -> None:
    lists = b"[" * 1010 + b"]" * 1010
    place = {"role": b'{"role": %s}', "text": b'{"content": [{"text": %s}]}', "content": b'{"content": %s}'}[deep]

    assert peek(b'{"model": "m", "messages": [' + place % lists + b"]}") is not None
