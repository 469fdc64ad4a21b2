"""Where an answer ends: every cut of the same bytes is passed on as the same bytes."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quire_router.framing import LARGE, Chunks, Counted, Head, Malformed, UntilEnd, framing_of, parse_head

BODIES = st.lists(st.binary(min_size=1, max_size=300), max_size=8)


def wire(parts: list[bytes], trailer: bytes = b"") -> bytes:
    return b"".join(b"%X;x=y\r\n%s\r\n" % (len(part), part) for part in parts) + b"0\r\n" + trailer + b"\r\n"


@given(BODIES, st.sampled_from([b"", b"a: b\r\n", b"a: b\r\nc: d\r\n"]), st.data())
def test_chunks_pass_whole_however_they_are_cut(parts: list[bytes], trailer: bytes, data: st.DataObject) -> None:
    whole, chunks, passed, at = wire(parts, trailer), Chunks(), b"", 0
    ends = {len(wire(parts[:n])) - 5 for n in range(len(parts) + 1)} | {len(whole)}

    while at < len(whole):
        step = data.draw(st.integers(1, len(whole) - at))
        passed += chunks.feed(whole[at : at + step])
        at += step
        assert len(passed) in ends, "passed on up to the end of a chunk"
        assert chunks.whole

    assert passed == whole
    assert chunks.ended


def test_a_large_chunk_passes_as_it_comes() -> None:
    whole, chunks = wire([bytes(3 * LARGE), b"end"]), Chunks()

    passed = [chunks.feed(whole[at : at + 5000]) for at in range(0, len(whole), 5000)]

    assert all(passed)
    assert b"".join(passed) == whole
    assert chunks.ended


@pytest.mark.parametrize(
    "bad",
    [
        b"zz\r\n",
        b"\r\n",
        b"+3\r\nabc\r\n",
        b"3\r\nabcd\r\n",
        b"0\r\n\r\nmore",
        b"1" * 2000,
        b"-1\r\n",
        b"0x3\r\nabc\r\n",
    ],
)
def test_what_is_no_chunk_is_malformed(bad: bytes) -> None:
    with pytest.raises(Malformed):
        Chunks().feed(bad)


def test_an_answer_that_says_its_length_ends_there() -> None:
    framing = Counted(5)

    assert (framing.feed(b"abc"), framing.ended, framing.broke_off()) == (b"abc", False, True)
    assert (framing.feed(b"de"), framing.ended, framing.broke_off()) == (b"de", True, False)
    with pytest.raises(Malformed):
        framing.feed(b"f")


def test_the_head_says_how_the_body_ends() -> None:
    def of(*lines: bytes) -> Head:
        return parse_head(b"\r\n".join([b"HTTP/1.1 200 OK", *lines, b"", b""]))

    assert isinstance(framing_of(of(b"Content-Length: 3"), bodiless=False), Counted)
    assert isinstance(framing_of(of(b"Transfer-Encoding: Chunked"), bodiless=False), Chunks)
    assert isinstance(framing_of(of(), bodiless=False), UntilEnd)
    assert framing_of(of(b"transfer-encoding: chunked"), bodiless=True).ended
    assert not of(b"connection: close").keep_alive
    assert not of(b"content-length: 3", b"connection: x, Close").keep_alive
    assert of(b"content-length: 3").keep_alive
    assert not of().keep_alive  # its end is the end of the connection
    assert of(b"Content-Type: text/event-stream; charset=utf-8").is_stream
    assert not of(b"content-type: text/event-stream", b"content-encoding: gzip").is_stream  # nothing can be added to it


@pytest.mark.parametrize(
    "raw",
    [
        b"SSH-2.0\r\n\r\n",
        b"HTTP/1.1 abc\r\n\r\n",
        b"HTTP/1.1 200 OK\r\nnonsense\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 1x\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ncontent-length: 6\r\n\r\n",
        b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\ntransfer-encoding: chunked\r\n\r\n",
    ],
)
def test_a_head_that_is_none_is_malformed(raw: bytes) -> None:
    with pytest.raises(Malformed):
        parse_head(raw)
