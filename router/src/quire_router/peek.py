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


@dataclass(frozen=True, slots=True, kw_only=True)
class Ask:
    model: str
    stream: bool
    key: bytes | None
    prompt_tokens: int  # estimated
    max_tokens: int | None  # of all answers together; None: it does not say

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
    return Ask(
        model=fields["model"],
        stream=fields.get("stream") is True,
        key=_key(fields),
        prompt_tokens=_prompt_tokens(fields, len(body)),
        max_tokens=_max_tokens(fields),
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
        parts += [str(message.get("role")), "\n", _text(message.get("content")), "\n"]
        if message.get("role") == "user" or sum(map(len, parts)) > HEAD_BYTES:
            break
    return "".join(parts)


def _text(content: Any) -> str:
    if isinstance(content, list):
        content = "".join(str(part.get("text", "")) for part in content if isinstance(part, dict))
    return content[:HEAD_BYTES] if isinstance(content, str) else ""


def _first_prompt(prompt: Any) -> str:
    """Of a string, a list of strings, token ids, or lists of token ids."""
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list):
        prompt = prompt[0]
    if isinstance(prompt, list):
        return " ".join(str(token) for token in prompt[: HEAD_BYTES // BYTES_PER_TOKEN])
    return prompt[:HEAD_BYTES] if isinstance(prompt, str) else ""


def _prompt_tokens(fields: dict[str, Any], size: int) -> int:
    prompt = fields.get("prompt")
    if isinstance(prompt, list) and prompt and isinstance(prompt[0], int):
        return len(prompt)
    return max(1, size // BYTES_PER_TOKEN)


def _max_tokens(fields: dict[str, Any]) -> int | None:
    """The most that any reader of the request could take it to ask for."""
    said = [_number(fields.get(name)) for name in ("max_completion_tokens", "max_output_tokens", "max_tokens")]
    if not any(said):
        return None if all(value is None for value in said) else 0
    prompt = fields.get("prompt")
    prompts = len(prompt) if isinstance(prompt, list) and prompt and isinstance(prompt[0], str | list) else 1
    answers = max(_number(fields.get("n")) or 1, _number(fields.get("best_of")) or 1)
    return max(value or 0 for value in said) * answers * prompts


def _number(value: Any) -> int | None:
    return max(0, value) if isinstance(value, int) else None
