"""Bytes to text and back: no cut into tokens changes what a client reads."""

from hypothesis import given
from hypothesis import strategies as st

from quire_engine.core.step import Finish, FinishReason
from quire_engine.core.stops import StopMatcher
from quire_engine.locate import locate_model
from quire_engine.text.stream import TextStream
from quire_engine.text.tokenizer import Tokenizer

ONE_BYTE = [bytes([byte]) for byte in range(256)]
TINY = Tokenizer(locate_model("builtin://quire-tiny"), 1024)


def cut(data: bytes, sizes: list[int]) -> list[bytes]:
    parts, start = [], 0
    for size in sizes:
        parts.append(data[start : start + size])
        start += size
    return [part for part in [*parts, data[start:]] if part]


def stream(parts: list[bytes], stops: tuple[bytes, ...]) -> list[str]:
    """What a client gets when the tokens are `parts`, as engine and text stream work together."""
    table = [*parts, b""]
    matcher, text = StopMatcher(stops), TextStream([*parts, b""], stops)
    deltas = []
    for token, part in enumerate(parts):
        stop = matcher.feed(part)
        deltas.append(text.feed(token, Finish(FinishReason.STOP, stop) if stop else None))
        if stop:
            return deltas
    return [*deltas, text.feed(len(table) - 1, Finish(FinishReason.LENGTH))]


texts = st.text("abé漢🙂", max_size=20)
stop_strings = st.lists(st.text("abé漢", min_size=1, max_size=4), max_size=3).map(
    lambda s: tuple(x.encode() for x in s)
)


@given(texts, stop_strings, st.lists(st.integers(1, 5), max_size=20))
def test_any_cut_into_tokens_gives_the_same_text(text: str, stops: tuple[bytes, ...], sizes: list[int]) -> None:
    data = text.encode()
    whole = "".join(stream(cut(data, [1] * len(data)), stops))

    deltas = stream(cut(data, sizes), stops)

    earliest = min((data.find(s) for s in stops if s in data), default=len(data))
    assert "".join(deltas).startswith(whole) or whole.startswith("".join(deltas))
    assert len("".join(deltas).encode()) >= earliest  # nothing before a stop string is lost
    if not any(s in data for s in stops):
        assert "".join(deltas) == whole == text
    assert all("�" not in delta for delta in deltas)


@given(texts, stop_strings)
def test_byte_by_byte_the_text_ends_right_before_the_stop_string(text: str, stops: tuple[bytes, ...]) -> None:
    data = text.encode()
    ends = [(data.find(s) + len(s), data.find(s)) for s in stops if s in data]

    shown = "".join(stream(cut(data, [1] * len(data)), stops))

    if ends:
        end = min(end for end, _ in ends)  # the string that is complete first
        start = min(start for e, start in ends if e == end)
        assert shown.encode() == data[:start]
    else:
        assert shown == text


def test_half_a_character_is_held_back() -> None:
    deltas = stream([b"a\xf0\x9f", b"\x99\x82", b"b"], ())

    assert deltas == ["a", "🙂", "b", ""]


def test_text_that_may_begin_a_stop_string_is_held_back_and_no_longer() -> None:
    deltas = stream([b"xy", b"END", b" or", b" not"], (b"END.",))

    assert deltas == ["xy", "", "END or", " not", ""]


def test_an_end_token_adds_no_text() -> None:
    text = TextStream([b"a", b"<end>"], ())

    shown = text.feed(0) + text.feed(1, Finish(FinishReason.STOP))

    assert shown == "a"


def test_what_ends_the_text_is_shown_if_asked_for() -> None:
    by_string = TextStream([b"a", b"b END c"], (b"END",), include_stop=True)
    by_token = TextStream([b"a", b"<end>"], (), include_stop=True)

    assert by_string.feed(0) + by_string.feed(1, Finish(FinishReason.STOP, b"END")) == "ab END"
    assert by_token.feed(0) + by_token.feed(1, Finish(FinishReason.STOP)) == "a<end>"


@given(st.text(max_size=60))
def test_encoding_and_decoding_is_the_identity(text: str) -> None:
    assert TINY.decode(TINY.encode(text, add_special_tokens=False)) == text


def test_special_tokens_have_no_text() -> None:
    ids = TINY.encode("<|im_start|>user\nhi<|im_end|>", add_special_tokens=False)

    assert TINY.decode(ids) == "user\nhi"
    assert len(ids) < 8


def test_a_stop_string_that_was_not_heeded_is_not_found_again() -> None:
    matcher = StopMatcher((b"x", b"LONGSTOP"))

    assert [matcher.feed(data) for data in (b"x", b"b", b"cx", b"LONGST", b"OP")] == [
        b"x",
        None,
        b"x",
        None,
        b"LONGSTOP",
    ]
