"""`quire chat MODEL`: a conversation on the terminal, or one answer to one prompt. Speaks OpenAI's API, to any endpoint.

Ctrl-C stops the answer, Ctrl-D leaves. The answer goes to standard output, everything else to standard error.
"""

import contextlib
import http.client
import json
import os
import sys
from argparse import Namespace
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from quire_api.parser import FlagParser
from quire_operator.local.client import STATE_HELP, NotHere, find, model_names
from quire_operator.local.tables import coloured, paint

__all__ = ["chat"]


class Failed(Exception):
    """The endpoint gave no answer, or not all of it."""


@dataclass(slots=True, kw_only=True)
class Conversation:
    url: str
    model: str
    options: dict[str, Any]
    messages: list[dict[str, str]] = field(default_factory=list)

    def answer(self, words: str) -> Iterator[tuple[str, str]]:
        """Pieces of the answer, each `content` or `reasoning`. What came is remembered, also of one that was stopped."""
        self.messages.append({"role": "user", "content": words})
        said = ""
        try:
            for kind, piece in self._stream():
                said += piece if kind == "content" else ""
                yield kind, piece
        finally:
            if said:
                self.messages.append({"role": "assistant", "content": said})
            else:
                self.messages.pop()

    def _stream(self) -> Iterator[tuple[str, str]]:
        parts = urlsplit(self.url)
        kind = http.client.HTTPSConnection if parts.scheme == "https" else http.client.HTTPConnection
        link = kind(parts.hostname or "", parts.port, timeout=600)
        body = {"model": self.model, "messages": self.messages, "stream": True, **self.options}
        headers = {"content-type": "application/json"}
        if key := os.environ.get("QUIRE_API_KEY"):
            headers["authorization"] = f"Bearer {key}"
        try:
            link.request("POST", f"{parts.path.rstrip('/')}/chat/completions", json.dumps(body), headers)
            response = link.getresponse()
            if response.status != 200:
                raise Failed(_message(response.read()) or f"status {response.status}")
            yield from _events(response)
        except (OSError, http.client.HTTPException) as error:
            raise Failed(f"{self.url}: {error or type(error).__name__}") from None
        finally:
            link.close()


def _events(lines: http.client.HTTPResponse) -> Iterator[tuple[str, str]]:
    for line in lines:
        if not line.startswith(b"data: "):
            continue
        if line.startswith(b"data: [DONE]"):
            return
        event = json.loads(line[6:])
        if "error" in event:
            raise Failed(str(event["error"].get("message", event["error"])))
        for choice in event.get("choices", ()):
            delta = choice.get("delta", {})
            for kind in ("reasoning", "content"):
                if delta.get(kind):
                    yield kind, delta[kind]
    raise Failed("the answer broke off")


def _message(body: bytes) -> str:
    with contextlib.suppress(ValueError, KeyError, TypeError):
        return str(json.loads(body)["error"]["message"])
    return body.decode(errors="replace")[:300]


def chat(argv: list[str]) -> int:
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        conversation = _begin(arguments)
        if arguments.prompt is None and sys.stdin.isatty():
            return _converse(conversation)
        _say(conversation, sys.stdin.read() if arguments.prompt in (None, "-") else arguments.prompt)
    except (NotHere, Failed) as error:
        print(f"quire chat: {error}", file=sys.stderr)
        return 1
    except BrokenPipeError:  # the reader has had enough; nothing may be flushed to it at exit
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    return 0


def _parser() -> FlagParser:
    parser = FlagParser(
        prog="quire chat",
        usage='quire chat MODEL ["PROMPT"] [--flags]',
        description="Talk with a model of the local Quire, or of another endpoint; $QUIRE_API_KEY is sent along.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="what clients send as `model`, or the resource's name")
    parser.add_argument("prompt", nargs="?", metavar="PROMPT", help="answer this, and end; - reads standard input")
    parser.add_argument(
        "--url", help="base address of the API, such as http://host:8000/v1 (default: the local Quire's)"
    )
    parser.add_argument("--system", metavar="TEXT", help="what the model is told first")
    parser.add_argument("--temperature", type=float, metavar="X", help="0 is greedy (default: the model's own)")
    parser.add_argument("--max-tokens", type=int, metavar="N", help="most tokens of an answer")
    parser.add_argument("--state", type=Path, metavar="DIR", help=STATE_HELP)
    return parser


def _begin(arguments: Namespace) -> Conversation:
    model, url = arguments.model, arguments.url
    if url is None:
        quire = find(
            arguments.state,
            f"kubectl port-forward svc/{model} 8000:80, then quire chat {model} --url http://127.0.0.1:8000/v1",
        )
        names = model_names(quire.picture(model))
        model, url = model if model in names else names[0], quire.owner.url
    options = {"temperature": arguments.temperature, "max_tokens": arguments.max_tokens}
    messages = [{"role": "system", "content": arguments.system}] if arguments.system else []
    chosen = {name: value for name, value in options.items() if value is not None}
    return Conversation(url=url, model=model, options=chosen, messages=messages)


def _converse(conversation: Conversation) -> int:
    import readline  # noqa: F401  # arrows and history in `input`

    colours = coloured()
    prompt = paint("> ", "bold", on=colours)
    print(f"{conversation.model} at {conversation.url}; Ctrl-C stops an answer, Ctrl-D leaves", file=sys.stderr)
    while True:
        try:
            words = input(prompt).strip()
        except EOFError:
            print()
            return 0
        except KeyboardInterrupt:
            print("\n(Ctrl-D leaves)", file=sys.stderr)
            continue
        if not words:
            continue
        try:
            _say(conversation, words)
        except KeyboardInterrupt:
            print("\n(stopped)", file=sys.stderr)
        except Failed as error:
            print(f"\nquire chat: {error}", file=sys.stderr)


def _say(conversation: Conversation, words: str) -> None:
    colours, last = coloured(), ""
    for kind, piece in conversation.answer(words):
        if kind == "reasoning":
            sys.stderr.write(paint(piece, "dim", on=coloured(sys.stderr)))
            sys.stderr.flush()
        else:
            sys.stdout.write(("\n" if last == "reasoning" and colours else "") + piece)
            sys.stdout.flush()
        last = kind
    print(flush=True)
