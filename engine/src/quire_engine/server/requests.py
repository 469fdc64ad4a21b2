"""The requests we take, with OpenAI's names and defaults.

Three kinds of fields: those declared here work; those in `NOT_YET` are known, and refused unless they ask for
nothing; all others are ignored, and a header of the answer names them.
"""

import re
from dataclasses import fields
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from quire_engine.errors import RequestRejected
from quire_engine.params import SamplingParams

__all__ = ["ChatRequest", "CompletionRequest", "Message", "StreamOptions"]

NOT_YET: dict[str, tuple[object, ...]] = {  # field -> values that ask for nothing
    "n": (None, 1),
    "best_of": (None, 1),
    "logprobs": (None, False),
    "top_logprobs": (None, 0),
    "prompt_logprobs": (None,),
    "echo": (None, False),
    "suffix": (None, ""),
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
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16)] | None = None
    stop_token_ids: list[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: dict[int, float] | None = None
    allowed_token_ids: list[int] | None = None
    bad_words: list[str] | None = None
    skip_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
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

    def sampling(self, max_tokens: int | None) -> SamplingParams:
        """What was asked for; null, and what was left out, are the defaults. RequestRejected for what cannot be meant."""
        asked = {name: value for name in SAMPLING if (value := getattr(self, name)) is not None}
        return SamplingParams(**{**asked, "max_tokens": max_tokens})


SAMPLING = tuple(field.name for field in fields(SamplingParams) if field.name in _Sampled.model_fields)


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
    max_completion_tokens: int | None = None
