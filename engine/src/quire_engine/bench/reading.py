"""The body of a streamed answer, as it comes -> when tokens came and how many there were.

Fed with bytes and the time they came; any cut of the same bytes gives the same numbers of tokens. How many tokens an
answer has is what the server's `usage` says: an event may carry several tokens, or none.
"""

from typing import Any

import orjson

from quire_engine.bench.statistics import Failure, Outcome

__all__ = ["Reading", "error_of"]

SHOWN = 200  # characters of what a server says went wrong


class Reading:
    def __init__(self, started_s: float) -> None:
        self._started_s = started_s
        self._rest = b""
        self._gaps_s: list[float] = []
        self._first_s: float | None = None
        self._last_s = started_s
        self._tokens: tuple[int, int] | None = None  # input, output
        self._error: str | None = None
        self._done = False

    def feed(self, data: bytes, now_s: float) -> None:
        *lines, self._rest = (self._rest + data).split(b"\n")
        for line in lines:
            if line.startswith(b"data:"):
                self._event(line[5:].strip(), now_s)

    def outcome(self) -> Outcome | Failure:
        """Once the body is at its end."""
        if self._error is not None:
            return Failure(self._error)
        if not self._done:
            return Failure("the answer was cut: its stream ended before [DONE]")
        if self._first_s is None:
            return Failure("the answer has no token")
        if self._tokens is None:
            return Failure("the answer has no usage: the server must know stream_options.include_usage")
        return Outcome(
            ttft_s=self._first_s - self._started_s,
            e2e_s=self._last_s - self._started_s,
            gaps_s=self._gaps_s,
            input_tokens=self._tokens[0],
            output_tokens=self._tokens[1],
        )

    def _event(self, data: bytes, now_s: float) -> None:
        if data == b"[DONE]":
            self._done = True
            return
        try:
            event = orjson.loads(data)
            if "error" in event:
                self._error = error_of(event)
                return
            if usage := event.get("usage"):
                self._tokens = int(usage["prompt_tokens"]), int(usage["completion_tokens"])
            choices = event.get("choices")
            if choices:
                self._progress(choices[0], now_s)
        except (ValueError, TypeError, KeyError, AttributeError):
            self._error = f"an event that is none of OpenAI's: {data[:SHOWN].decode('utf-8', 'replace')}"

    def _progress(self, choice: dict[str, Any], now_s: float) -> None:
        """The role that opens a chat, and a reason that comes after the last text, bring no token."""
        delta = choice.get("delta")
        text = choice.get("text") if delta is None else _said(delta)
        opens = delta is not None and "role" in delta
        if not text and (opens or (choice.get("finish_reason") is not None and self._first_s is not None)):
            return
        if self._first_s is None:
            self._first_s = now_s
        else:
            self._gaps_s.append(now_s - self._last_s)
        self._last_s = now_s


def _said(delta: dict[str, Any]) -> Any:
    return delta.get("content") or delta.get("reasoning_content") or delta.get("reasoning") or delta.get("tool_calls")


def error_of(document: Any) -> str:
    """The sentence in a server's error, of whatever shape."""
    inner = document.get("error", document) if isinstance(document, dict) else document
    message = (inner.get("message") or inner.get("detail") or inner) if isinstance(inner, dict) else inner
    return str(message)[:SHOWN]
