"""The requests we take, with OpenAI's names and defaults.

Three kinds of fields: those declared here work; those in `NOT_YET` are known, and refused unless they ask for
nothing; all others are ignored, and a header of the answer names them.
"""

import re
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quire_engine.errors import RequestRejected

__all__ = ["ChatRequest", "CompletionRequest", "Message", "StreamOptions"]

NOT_YET: dict[str, tuple[object, ...]] = {  # field -> values that ask for nothing
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
    "logit_bias": (None, {}),
    "presence_penalty": (None, 0),
    "frequency_penalty": (None, 0),
    "repetition_penalty": (None, 1),
    "min_p": (None, 0),
    "min_tokens": (None, 0),
    "stop_token_ids": (None, []),
    "bad_words": (None, []),
    "allowed_token_ids": (None, []),
    "include_stop_str_in_output": (None, False),
    "skip_special_tokens": (None, True),
    "truncate_prompt_tokens": (None,),
    "priority": (None, 0),
    "response_format": (None, {"type": "text"}),
    "structured_outputs": (None,),
    "tools": (None, []),
    "tool_choice": (None, "none", "auto"),
    "functions": (None, []),
    "function_call": (None, "none"),
    "reasoning_effort": (None,),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "continue_final_message": (None, False),
    "chat_template_kwargs": (None, {}),
}


def _asks_for_nothing(value: object, nothing: tuple[object, ...]) -> bool:
    """Is `value` one of these? 0.0 counts as 0, but 0 does not count as False."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in nothing)


class StreamOptions(BaseModel):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False


class _Sampled(BaseModel):
    model_config = ConfigDict(extra="allow")

    model: str
    max_tokens: Annotated[int | None, Field(ge=1)] = None
    temperature: Annotated[float | None, Field(ge=0, le=100)] = None
    top_p: Annotated[float | None, Field(gt=0, le=1)] = None
    top_k: Annotated[int | None, Field(ge=-1, lt=2**31)] = None
    seed: Annotated[int | None, Field(ge=-(2**63), lt=2**63)] = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    ignore_eos: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    def refuse_unsupported(self) -> None:
        """RequestRejected for the first field that asks for what does not work yet."""
        for name, nothing in NOT_YET.items():
            if not _asks_for_nothing((self.model_extra or {}).get(name), nothing):
                raise RequestRejected(f"{name} is not supported yet: leave it out", name)

    @property
    def ignored(self) -> list[str]:
        """Fields nobody knows, as far as they can stand in a header."""
        unknown = set(self.model_extra or ()) - set(NOT_YET) - {"user", "metadata", "store"}
        return sorted(name for name in unknown if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name))[:16]

    @property
    def stops(self) -> tuple[bytes, ...]:
        stops = [self.stop] if isinstance(self.stop, str) else self.stop or []
        if "" in stops:
            raise RequestRejected("stop: an empty string would stop every answer at once", "stop")
        try:
            return tuple(stop.encode() for stop in stops)
        except UnicodeEncodeError:
            raise RequestRejected("stop: half of a surrogate pair is no text", "stop") from None


class CompletionRequest(_Sampled):
    prompt: str | list[Annotated[int, Field(ge=0)]]


class TextPart(BaseModel):
    type: Literal["text"]
    text: str


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | list[TextPart] | None = None

    def as_template(self) -> dict[str, Any]:
        """What chat templates expect: the content as one string."""
        message = self.model_dump(exclude_none=True)
        if isinstance(self.content, list):
            message["content"] = "".join(part.text for part in self.content)
        return message


class ChatRequest(_Sampled):
    messages: Annotated[list[Message], Field(min_length=1)]
    max_completion_tokens: Annotated[int | None, Field(ge=1)] = None
