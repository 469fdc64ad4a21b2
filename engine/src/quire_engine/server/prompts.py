"""Requests -> jobs: prompts as token ids, and all that the engine must know, checked.

What the engine would refuse is refused here already, before the first byte of a stream.
"""

import asyncio
import json
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from quire_engine.core.request import GrammarKind
from quire_engine.errors import RequestRejected
from quire_engine.grammars.asked import StructuredOutputs, grammar_of
from quire_engine.messages.grammar import MOST_WHITESPACE, ToolSchema, after_reasoning, tool_grammar
from quire_engine.params import SamplingParams, of_sequence, resolve
from quire_engine.process.client import Ask
from quire_engine.server.formats import Formats
from quire_engine.server.generation import Job
from quire_engine.server.requests import ChatRequest, CompletionRequest, Message, Sampled, TokenizeRequest, Tool
from quire_engine.spec import ModelSpec
from quire_engine.text.chat import ChatTemplate
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["Prompts", "shortened"]

LONG_TEXT = 4096  # characters from which tokenising leaves the event loop
LONG_CHAT = 64  # messages from which rendering does
THE_END = "[[quire: the end of the last message]]"  # is not in any prompt; nobody will look for it
MOST_SEQUENCES = 1024  # of one request
MOST_SCORES = 1 << 20  # of prompts, which are written once for each answer
TEMPLATE_FIELDS = {"messages", "tools", "add_generation_prompt"}  # what a template is given of the request itself


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompts:
    spec: ModelSpec
    tokenizer: Tokenizer
    template: ChatTemplate
    formats: Formats
    max_output_tokens: int | None
    defaults: Mapping[str, Any]  # how the model's authors would have it sampled
    fresh_seeds: random.Random

    async def of_chat(self, request: ChatRequest, max_model_len: int) -> Job:
        ids, in_reasoning = await self.chat_ids(request)
        limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        choice = request.choice
        if request.prompt_logprobs is not None and request.stream:
            raise RequestRejected("prompt_logprobs come with whole answers only: leave out stream", "prompt_logprobs")
        more: dict[str, Any] = {"max_tokens": limit, "logprobs": request.wanted_logprobs}
        if choice not in (None, "none", "auto"):
            if request.asked_structure:
                raise RequestRejected(
                    "tool_choice asks for a call, and structured_outputs for another text: drop one", "tool_choice"
                )
            more["structured_outputs"] = self._call_grammar(request, str(choice), in_reasoning)
        asked = request.sampling(self.defaults, **more)
        if asked.structured_outputs is not None and "structured_outputs" not in more:
            asked = replace(asked, structured_outputs=self._after_reasoning(asked.structured_outputs, in_reasoning))
        shown = frozenset[int]()
        if asked.skip_special_tokens:
            shown = self._shown(tools=choice not in (None, "none"))
        _check_number(1, asked.n)
        job = self._job([ids], request, asked, max_model_len, shown)
        return replace(job, in_reasoning=in_reasoning)

    async def of_completion(self, request: CompletionRequest, max_model_len: int) -> Job:
        if request.best_of not in (None, request.n or 1):
            raise RequestRejected("best_of other than n is not supported: ask for n answers, and choose", "best_of")
        if request.prompt_logprobs is not None and request.stream:
            raise RequestRejected("prompt_logprobs come with whole answers only: leave out stream", "prompt_logprobs")
        wanted = 16 if request.max_tokens is None else request.max_tokens
        more: dict[str, Any] = {"max_tokens": wanted, "logprobs": request.logprobs}
        if request.echo:
            more["max_tokens"] = max(1, wanted)  # with 0, the token is not shown (completion.py)
            if request.logprobs is not None:
                more["prompt_logprobs"] = request.logprobs
        asked = request.sampling(self.defaults, **more)
        _check_number(len(request.prompts), asked.n)
        prompts = await self.encode_all(request.prompts, add_special_tokens=request.add_special_tokens)
        if request.echo and request.logprobs is not None and asked.n > 1:
            scores = sum(map(len, prompts)) * asked.n * (1 + request.logprobs)
            if scores > MOST_SCORES:
                raise RequestRejected(
                    f"echo with logprobs comes to {scores} log probabilities of prompts, and at most {MOST_SCORES} are given "
                    "with several answers: ask for fewer answers",
                    "n",
                )
        texts = tuple(each if isinstance(each, str) else None for each in request.prompts)
        return replace(self._job(prompts, request, asked, max_model_len), texts=texts)

    async def chat_ids(self, request: ChatRequest | TokenizeRequest) -> tuple[list[int], bool]:
        """And whether they end within reasoning, which the template has begun."""
        messages: Sequence[Message] = request.messages or ()
        tools: Sequence[Tool] | None = request.tools
        both = request.continue_final_message and request.add_generation_prompt
        if both and "add_generation_prompt" in request.model_fields_set:
            raise RequestRejected(
                "continue_final_message and add_generation_prompt exclude each other", "continue_final_message"
            )
        more: dict[str, Any] = dict(request.chat_template_kwargs or {})
        if taken := sorted(TEMPLATE_FIELDS & more.keys()):
            raise RequestRejected(
                f"chat_template_kwargs has {taken[0]}, which is a field of the request", "chat_template_kwargs"
            )
        if isinstance(request, ChatRequest):
            if request.documents:
                more["documents"] = request.documents
            if (effort := request.reasoning_effort) is not None:
                more = {"enable_thinking": effort != "none", **more, "reasoning_effort": effort}
            if request.tool_choice == "none":
                tools = None
        go_on, developers = request.continue_final_message, "developer" in (self.template.source or "")

        def rendered() -> str:
            shown = [message.as_template() for message in messages]
            if go_on:
                shown[-1] = _marked(messages[-1])
            text = self.template.render(
                [_for_template(message, developers=developers) for message in shown],
                [tool.model_dump(exclude_none=True) for tool in tools] if tools else None,
                add_generation_prompt=request.add_generation_prompt and not go_on,
                more=more,
            )
            return _up_to_mark(text) if go_on else text

        text = await asyncio.to_thread(rendered) if len(messages) > LONG_CHAT else rendered()
        reasoning = self.formats.reasoning
        in_reasoning = reasoning is not None and (
            reasoning.is_open(text) or (go_on and reasoning.is_within(messages[-1].text))
        )
        return await self.encode(text, add_special_tokens=bool(request.add_special_tokens)), in_reasoning

    async def encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        (ids,) = await self.encode_all([text], add_special_tokens=add_special_tokens)
        return ids

    async def encode_all(
        self, prompts: Sequence[str | list[int]], *, add_special_tokens: bool, limit: int | None = None
    ) -> list[list[int]]:
        """The first `limit` tokens of each; of a text, special ones that end it stay. Ids stay as they are, but for that."""

        def encoded_one(text: str) -> list[int]:
            ids = self.tokenizer.encode(text, add_special_tokens=add_special_tokens)
            if limit is None or len(ids) <= limit or not add_special_tokens:
                return ids[:limit]
            return shortened(ids, self.tokenizer.encode(text, add_special_tokens=False), limit)

        def encoded() -> list[list[int]]:
            return [encoded_one(each) if isinstance(each, str) else each[:limit] for each in prompts]

        try:
            if sum(len(each) for each in prompts if isinstance(each, str)) < LONG_TEXT:
                return encoded()
            return await asyncio.to_thread(encoded)
        except (TypeError, UnicodeEncodeError):
            raise RequestRejected("the prompt is no text: it has half of a surrogate pair", "prompt") from None

    # ------------------------------------------------------------------ the steps of the above

    def _call_grammar(self, request: ChatRequest, choice: str, in_reasoning: bool) -> StructuredOutputs:
        assert request.tools is not None
        if self.formats.tools is None:
            raise RequestRejected(
                "this model has no known format of tool calls: only tool_choice none works, or set --tool-call-parser",
                "tool_choice",
            )
        text = tool_grammar(
            self.formats.tools,
            [
                ToolSchema(
                    name=tool.function.name,
                    parameters=tool.function.parameters,
                    strict=tool.function.strict is not False,  # unset, arguments are valid
                )
                for tool in request.tools
            ],
            choice,
            parallel=request.parallel_tool_calls is not False,
            reasoning=self.formats.reasoning,
            in_reasoning=in_reasoning,
        )
        return StructuredOutputs(structural_tag=text, param="tools")

    def _after_reasoning(self, structured: StructuredOutputs, in_reasoning: bool) -> StructuredOutputs:
        """What binds the answer does not bind the thoughts before it."""
        if self.formats.reasoning is None:
            return structured
        grammar = grammar_of(structured)
        answer: dict[str, Any]
        match grammar.kind:
            case GrammarKind.JSON:
                answer = {
                    "type": "json_schema",
                    "json_schema": json.loads(grammar.text),
                    "max_whitespace_cnt": MOST_WHITESPACE,
                }
            case GrammarKind.REGEX:
                answer = {"type": "regex", "pattern": grammar.text}
            case GrammarKind.EBNF:
                answer = {"type": "grammar", "grammar": grammar.text}
            case GrammarKind.STRUCTURAL_TAG:
                answer = json.loads(grammar.text)["format"]
        text = after_reasoning(self.formats.reasoning, in_reasoning, answer)
        return StructuredOutputs(structural_tag=text, param=structured.param)

    def _shown(self, *, tools: bool) -> frozenset[int]:
        """Special tokens that mark calls and reasoning: to be read, they must be in the text."""
        markers = set(self.formats.reasoning.markers if self.formats.reasoning else ())
        if tools and self.formats.tools:
            markers |= set(self.formats.tools.markers)
        return frozenset(i for name in markers if (i := self.tokenizer.id_of(name)) is not None)

    def _job(
        self,
        prompts: Sequence[list[int]],
        request: Sampled,
        asked: SamplingParams,
        limit: int,
        shown: frozenset[int] = frozenset(),
    ) -> Job:
        asks: list[Ask] = []
        seed = request.seed if request.seed is not None else self.fresh_seeds.getrandbits(62)
        resolved = resolve(
            asked,
            vocabulary=self.spec.shape.vocabulary,
            end_tokens=self.spec.end_tokens,
            tokenizer=self.tokenizer,
            most_tokens=self.max_output_tokens,
        )
        for ids in prompts:
            prompt = tuple(self._checked(ids, asked, limit))
            for answer in range(asked.n):
                params = of_sequence(
                    resolved, seed=seed + answer, lead=answer == 0, prompt_length=len(prompt), max_model_len=limit
                )
                asks.append(
                    Ask(
                        prompt=prompt,
                        params=params,
                        priority=request.priority,
                        follows=len(asks) - answer if answer else None,
                        domain=("salt", request.cache_salt) if request.cache_salt else (),
                    )
                )
        return Job(asks=tuple(asks), asked=asked, shown=shown)

    def _checked(self, ids: list[int], asked: SamplingParams, limit: int) -> list[int]:
        ids = asked.truncated(ids, limit)
        vocabulary = self.spec.shape.vocabulary
        if not ids:
            raise RequestRejected("the prompt is empty: at least one token is needed", "prompt")
        if len(ids) >= limit:
            raise RequestRejected(
                f"this model's maximum context length is {limit} tokens with the output, and the prompt has {len(ids)}: shorten it",
                "prompt",
            )
        if max(ids) >= vocabulary:
            raise RequestRejected(
                f"prompt: token {max(ids)} is not below {vocabulary}, the size of the vocabulary", "prompt"
            )
        return ids


def shortened(ids: list[int], bare: list[int], limit: int) -> list[int]:
    """As tokenizers truncate: the text is cut, and what they put around it stays. `bare` is the text without that."""
    around = len(ids) - len(bare)
    if around >= limit:
        return ids[:limit]
    before = next((i for i in range(around + 1) if ids[i : i + len(bare)] == bare), around)
    return ids[:before] + bare[: limit - around] + ids[before + len(bare) :]


def _check_number(prompts: int, answers: int) -> None:
    if prompts * answers > MOST_SEQUENCES:
        raise RequestRejected(
            f"{prompts} prompts with {answers} answers each are more than {MOST_SEQUENCES} sequences: ask for fewer",
            "n",
        )


def _for_template(message: dict[str, Any], *, developers: bool) -> dict[str, Any]:
    """As templates expect it, which know what their model was trained on: arguments of calls as what the JSON text means,
    thoughts by any of their names, nothing rather than null or an empty list, and developers only if they do."""
    if message["role"] == "developer" and not developers:
        message["role"] = "system"
    if not message.get("tool_calls"):
        message.pop("tool_calls", None)
        message["content"] = message["content"] or ""
    thoughts = message.get("reasoning_content") or message.get("reasoning")
    if isinstance(thoughts, str):
        message |= dict.fromkeys(("reasoning_content", "reasoning", "thinking"), thoughts)
    for call in message.get("tool_calls") or ():
        function = call.get("function") if isinstance(call, Mapping) else None
        if isinstance(function, dict) and isinstance(function.get("arguments"), str):
            try:
                function["arguments"] = json.loads(function["arguments"] or "{}")
            except (ValueError, RecursionError):
                pass  # as it is, then
    return message


def _marked(last: Message) -> dict[str, Any]:
    """A last message that is to be gone on with: it is rendered with a mark at its end, and cut there."""
    if not last.text:
        raise RequestRejected("continue_final_message: the last message has no content", "continue_final_message")
    return {**last.as_template(), "content": last.text + THE_END}


def _up_to_mark(text: str) -> str:
    at = text.rfind(THE_END)
    if at < 0:
        raise RequestRejected(
            "continue_final_message: the model's chat template does not show the end of the last message",
            "continue_final_message",
        )
    return text[:at]
