"""What the router wants to know of a body: read once, never written back. Pure.

model, stream   where it goes, and how
key             what requests must have in common to share a prefix: the first `HEAD_BYTES` of the prompt's text,
                which in a chat is what the system says and what the user says first
tokens          about how many the prompt has, and how many may be answered at most
"""

import json
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import orjson

__all__ = ["HEAD_BYTES", "Ask", "peek", "session_key"]

HEAD_BYTES = 1024  # about 250 tokens: enough to tell prompts apart; those that differ later share a good prefix anyway
BYTES_PER_TOKEN = 4  # of text, about
UNSAID_TOKENS = 256  # taken for the length of an answer when a request does not say
MOST_TOKENS = 1 << 31  # who asks for more is taken to ask for this: loads are computed with
_CAPS = ("max_completion_tokens", "max_output_tokens", "max_tokens")


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    model: str
    stream: bool
    key: bytes | None
    prompt_tokens: int  # estimated
    max_tokens: int | None  # of all answers together; None: it does not say, or not so that all read the same
    says: frozenset[str] = frozenset()  # the fields that say it

    @property
    def weight(self) -> int:
        return self.prompt_tokens + (UNSAID_TOKENS if self.max_tokens is None else self.max_tokens)


def peek(body: bytes | bytearray) -> Ask | None:
    """None when there is no object with a `model` in it."""
    try:
        fields = orjson.loads(body)
    except orjson.JSONDecodeError:
        try:
            fields = json.loads(body)  # takes NaN and lone surrogates, which it is the engine's to judge
        except (ValueError, RecursionError):
            return None
    if not isinstance(fields, dict) or not isinstance(fields.get("model"), str):
        return None
    said = {name: fields[name] for name in _CAPS if fields.get(name) is not None}
    return Ask(
        model=fields["model"],
        stream=fields.get("stream") is True,
        key=_key(fields),
        prompt_tokens=_prompt_tokens(fields, len(body)),
        max_tokens=_max_tokens(fields, list(said.values())),
        says=frozenset(said),
    )


def session_key(session: bytes) -> bytes:
    return blake2b(session, digest_size=16, person=b"session").digest()


def _key(fields: dict[str, Any]) -> bytes | None:
    messages = fields.get("messages")
    head = _opening(messages) if isinstance(messages, list) else _first_prompt(fields.get("prompt"))
    if not head:
        return None
    return blake2b(head.encode("utf-8", "surrogatepass")[:HEAD_BYTES], digest_size=16, person=b"prompt").digest()


def _opening(messages: list[Any]) -> str:
    """Everything up to the first words of the user."""
    parts: list[str] = []
    for message in messages:
        if not isinstance(message, dict):
            break
        parts += [_text(message.get("role")), "\n", _text(message.get("content")), "\n"]
        if message.get("role") == "user" or sum(map(len, parts)) > HEAD_BYTES:
            break
    return "".join(parts)


def _text(content: Any) -> str:
    if isinstance(content, list):
        texts = (part.get("text") for part in content if isinstance(part, dict))
        content = "".join(text for text in texts if isinstance(text, str))
    return content[:HEAD_BYTES] if isinstance(content, str) else ""


def _first_prompt(prompt: Any) -> str:
    """Of a string, a list of strings, token ids, or lists of token ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return " ".join(str(token) for token in prompt[: HEAD_BYTES // BYTES_PER_TOKEN] if isinstance(token, int))
    return prompt[:HEAD_BYTES] if isinstance(prompt, str) else ""


def _prompt_tokens(fields: dict[str, Any], size: int) -> int:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return max(1, size // BYTES_PER_TOKEN)


def _max_tokens(fields: dict[str, Any], said: list[Any]) -> int | None:
    """The most that any reader of the request could take it to ask for."""
    times = [fields[name] for name in ("n", "best_of") if fields.get(name) is not None]
    if not said or not all(map(_is_count, said + times)):
        return None  # "8" and 8.0 are a number to some engines, and -1 is no bound
    prompt = fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    return min(int(max(said)) * int(max([1, *times])) * prompts, MOST_TOKENS)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and value >= 0
