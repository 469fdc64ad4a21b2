"""The requests we take, with OpenAI's names and defaults, and vLLM's for what it has besides.

Three kinds of fields: those declared here work; those in `NOT_YET` are known, and refused unless they ask for
nothing; all others are ignored, and a header of the answer names them.
"""

import re
from collections.abc import Mapping
from dataclasses import fields
from typing import Annotated, Any, Literal, TypeVar

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from quire_engine.errors import RequestRejected
from quire_engine.grammars.asked import structured_of
from quire_engine.params import MAX_LOGPROBS, SamplingParams

__all__ = [
    "ChatRequest",
    "CompletionRequest",
    "DetokenizeRequest",
    "EmbeddingRequest",
    "Message",
    "Request",
    "Sampled",
    "StreamOptions",
    "TokenizeRequest",
    "Tool",
]

NOT_YET: dict[str, tuple[object, ...]] = {  # field -> values that ask for nothing
    "suffix": (None, ""),
    "functions": (None, []),
    "function_call": (None, "none"),
    "audio": (None,),
    "modalities": (None, ["text"]),
    "use_beam_search": (None, False),
    "prompt_embeds": (None,),
    "logprob_token_ids": (None, []),
    "thinking_token_budget": (None,),
    "kv_transfer_params": (None,),
    "repetition_detection": (None,),
    "web_search_options": (None,),
    "chat_template": (None,),
    "truncation_side": (None, "left"),
    "guided_whitespace_pattern": (None,),
}
GUIDED = {
    f"guided_{kind}": kind for kind in ("json", "regex", "choice", "grammar")
}  # what structured_outputs were called once
OF_NO_CONSEQUENCE = {
    "user", "metadata", "store", "service_tier", "safety_identifier", "prompt_cache_key", "guided_decoding_backend",
}  # fmt: skip

MOST_MESSAGES = 10_000
MOST_BIASES = 65_536
MOST_INPUTS = 2048  # as OpenAI has it

Element = TypeVar("Element")
FirstFault = Annotated[list[Element], Field(fail_fast=True)]  # not every one: there may be millions
TokenId = Annotated[int, Field(ge=0)]
TokenIds = FirstFault[TokenId]


def _not_too_many(biases: object) -> object:
    """Before they are looked at, for of a dictionary every fault is listed."""
    if isinstance(biases, dict) and len(biases) > MOST_BIASES:
        raise ValueError(f"there are {len(biases)} of them, and at most {MOST_BIASES} are taken")
    return biases


def _not_zero(value: int) -> int:
    if value == 0:
        raise ValueError("0 would leave nothing; -1 is as many as the model takes")
    return value


def _asks_for_nothing(value: object, nothing: tuple[object, ...]) -> bool:
    """Is `value` one of these? 0.0 counts as 0, but 0 does not count as False."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in nothing)


class Asked(BaseModel):
    """Clients write null for what they leave out."""

    @model_validator(mode="before")
    @classmethod
    def _without_nulls(cls, given: Any) -> Any:
        return {name: value for name, value in given.items() if value is not None} if isinstance(given, dict) else given


class StreamOptions(Asked):
    model_config = ConfigDict(extra="forbid")
    include_usage: bool = False
    continuous_usage_stats: bool = False
    include_obfuscation: bool = False  # there is none


class Request(Asked):
    model_config = ConfigDict(extra="allow")

    model: str | None = None  # there is just the one

    def refuse_unsupported(self) -> None:
        """RequestRejected for the first field that asks for what does not work yet."""
        for name, nothing in NOT_YET.items():
            if not _asks_for_nothing((self.model_extra or {}).get(name), nothing):
                raise RequestRejected(f"{name} is not supported: leave it out", name)

    @property
    def ignored(self) -> list[str]:
        """Fields nobody knows, as far as they can stand in a header."""
        unknown = set(self.model_extra or ()) - set(NOT_YET) - set(GUIDED) - OF_NO_CONSEQUENCE
        return sorted(name for name in unknown if re.fullmatch(r"[A-Za-z0-9_.-]{1,64}", name))[:16]


class Sampled(Request):
    """What chat and completions share."""

    n: int | None = None
    max_tokens: int | None = None
    temperature: float | None = None
    top_p: float | None = None
    top_k: int | None = None
    min_p: float | None = None
    seed: int | None = None
    stop: str | Annotated[list[str], Field(max_length=16, fail_fast=True)] | None = None
    stop_token_ids: FirstFault[int] | None = None
    include_stop_str_in_output: bool = False
    ignore_eos: bool = False
    min_tokens: int | None = None
    presence_penalty: float | None = None
    frequency_penalty: float | None = None
    repetition_penalty: float | None = None
    logit_bias: Annotated[dict[int, float], BeforeValidator(_not_too_many)] | None = None
    allowed_token_ids: FirstFault[int] | None = None
    bad_words: FirstFault[str] | None = None
    skip_special_tokens: bool = True
    spaces_between_special_tokens: bool = True
    truncate_prompt_tokens: int | None = None
    prompt_logprobs: int | None = None
    response_format: dict[str, Any] | None = None
    structured_outputs: dict[str, Any] | None = None
    priority: Annotated[int, Field(ge=-(2**31), lt=2**31)] = 0
    cache_salt: Annotated[str, Field(min_length=1, max_length=256)] | None = None
    batch_invariant: bool = False
    return_token_ids: bool = False
    return_tokens_as_token_ids: bool = False
    stream: bool = False
    stream_options: StreamOptions | None = None

    @property
    def wants_usage(self) -> bool:
        return self.stream_options is not None and self.stream_options.include_usage

    @property
    def wants_usage_always(self) -> bool:
        return self.wants_usage and self.stream_options is not None and self.stream_options.continuous_usage_stats

    @property
    def asked_structure(self) -> dict[str, Any] | None:
        """By vLLM's names, those of today or the older ones."""
        extra = self.model_extra or {}
        guided = {kind: extra[name] for name, kind in GUIDED.items() if name in extra}
        if guided and self.structured_outputs is not None:
            raise RequestRejected(
                f"{min(extra.keys() & GUIDED.keys())} is an older name of structured_outputs: give one of them",
                "structured_outputs",
            )
        return guided or self.structured_outputs

    def sampling(self, defaults: Mapping[str, Any], **more: Any) -> SamplingParams:
        """What was asked for; null, and what was left out, are the defaults: the model's, or else OpenAI's.

        RequestRejected for what cannot be meant.
        """
        if self.stream_options is not None and not self.stream:
            raise RequestRejected("stream_options are for streams: set stream, or leave them out", "stream_options")
        asked = {**defaults, **{name: value for name in SAMPLING if (value := getattr(self, name)) is not None}}
        structured = structured_of(self.response_format, self.asked_structure)
        if structured is not None:
            asked["structured_outputs"] = structured
        return SamplingParams(**{**asked, **more})


SAMPLING = tuple(
    field.name
    for field in fields(SamplingParams)
    if field.name in Sampled.model_fields and field.name != "structured_outputs"
)


class CompletionRequest(Sampled):
    prompt: str | TokenIds | FirstFault[str] | FirstFault[TokenIds]
    best_of: int | None = None
    echo: bool = False
    logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    add_special_tokens: bool = True

    @property
    def prompts(self) -> "list[str | list[int]]":
        """One or several; a list of numbers is one."""
        prompt: Any = self.prompt
        several = isinstance(prompt, list) and prompt and not isinstance(prompt[0], int)
        return list(prompt) if several else [prompt]


class TextPart(BaseModel):
    type: Literal["text", "input_text", "output_text"]
    text: str


class RefusalPart(BaseModel):
    type: Literal["refusal"]
    refusal: str

    @property
    def text(self) -> str:
        return self.refusal


Part = Annotated[TextPart | RefusalPart, Field(discriminator="type")]


class Message(BaseModel):
    model_config = ConfigDict(extra="allow")

    role: Literal["system", "developer", "user", "assistant", "tool"]
    content: str | FirstFault[Part] | None = None
    tool_calls: FirstFault[dict[str, Any]] | None = None

    @property
    def text(self) -> str:
        """The content as one string, a line for each part."""
        return "\n".join(part.text for part in self.content) if isinstance(self.content, list) else self.content or ""

    def as_template(self) -> dict[str, Any]:
        """What chat templates expect: the content as one string, or none."""
        message = {"content": None, **self.model_dump(exclude_none=True)}
        if isinstance(self.content, list):
            message["content"] = self.text
        return message


class Function(BaseModel):
    model_config = ConfigDict(extra="allow")

    name: Annotated[str, Field(pattern=r"^[a-zA-Z0-9_.-]{1,64}$")]
    description: str | None = None
    parameters: dict[str, Any] | None = None
    strict: bool | None = None


class Tool(BaseModel):
    type: Literal["function"]
    function: Function


class NamedFunction(BaseModel):
    name: str


class NamedTool(BaseModel):
    type: Literal["function"] = "function"
    function: NamedFunction


class ChatRequest(Sampled):
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)]
    max_completion_tokens: int | None = None
    logprobs: bool | None = None
    top_logprobs: Annotated[int, Field(ge=0, le=MAX_LOGPROBS)] | None = None
    tools: Annotated[list[Tool], Field(max_length=512, fail_fast=True)] | None = None
    tool_choice: Literal["none", "auto", "required"] | NamedTool | None = None
    parallel_tool_calls: bool | None = None
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    add_special_tokens: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    documents: FirstFault[dict[str, Any]] | None = None
    reasoning_effort: Literal["none", "minimal", "low", "medium", "high", "xhigh", "max"] | None = None
    include_reasoning: bool = True
    echo: bool = False

    @property
    def wanted_logprobs(self) -> int | None:
        if not self.logprobs:
            if self.top_logprobs:
                raise RequestRejected("top_logprobs needs logprobs: set it to true", "top_logprobs")
            return None
        return self.top_logprobs or 0

    @property
    def choice(self) -> str | None:
        """none, auto, required, or the name of a function; None without tools."""
        if not self.tools:
            if self.tool_choice not in (None, "none", "auto"):
                raise RequestRejected("tool_choice asks for a call, and there are no tools", "tool_choice")
            return None
        if isinstance(self.tool_choice, NamedTool):
            name = self.tool_choice.function.name
            if name not in {tool.function.name for tool in self.tools}:
                raise RequestRejected(f"tool_choice names {name!r}, which is none of the tools", "tool_choice")
            return name
        return self.tool_choice or "auto"


class EmbeddingRequest(Request):
    input: (
        str
        | TokenIds
        | Annotated[list[str], Field(max_length=MOST_INPUTS, fail_fast=True)]
        | Annotated[list[TokenIds], Field(max_length=MOST_INPUTS, fail_fast=True)]
    )
    encoding_format: Literal["float", "base64"] = "float"
    dimensions: Annotated[int, Field(ge=1)] | None = None
    truncate_prompt_tokens: Annotated[int, Field(ge=-1), AfterValidator(_not_zero)] | None = None
    add_special_tokens: bool = True

    @property
    def texts(self) -> "list[str | list[int]]":
        given: Any = self.input
        several = isinstance(given, list) and given and not isinstance(given[0], int)
        return list(given) if several else [given]


class TokenizeRequest(Request):
    prompt: str | None = None
    messages: Annotated[list[Message], Field(min_length=1, max_length=MOST_MESSAGES, fail_fast=True)] | None = None
    tools: Annotated[list[Tool], Field(max_length=512, fail_fast=True)] | None = None
    add_special_tokens: bool | None = None  # unset: to a prompt, not to messages
    add_generation_prompt: bool = True
    continue_final_message: bool = False
    chat_template_kwargs: dict[str, Any] | None = None
    return_token_strs: bool = False


class DetokenizeRequest(Request):
    tokens: TokenIds
