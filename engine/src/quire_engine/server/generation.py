"""What chat and completions share: from a prompt to pieces of text.

Holds the state of the API process: which model, whether it is ready, whether it drains.
"""

import asyncio
import random
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass

from quire_api.engine import EngineConfig
from quire_engine.core.request import TokenParams
from quire_engine.core.step import FinishReason
from quire_engine.errors import RequestRejected
from quire_engine.params import SamplingParams, resolve
from quire_engine.process.client import EngineClient, EngineLost, GenerationFailed
from quire_engine.server.errors import ModelUnknown
from quire_engine.server.metrics import EngineMetrics
from quire_engine.server.requests import ChatRequest, CompletionRequest
from quire_engine.spec import ModelSpec
from quire_engine.text.chat import ChatTemplate
from quire_engine.text.stream import TextStream
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["Generation", "Piece", "Prompt"]

LONG_TEXT = 4096  # characters from which tokenising leaves the event loop


@dataclass(frozen=True, slots=True)
class Prompt:
    ids: tuple[int, ...]
    params: TokenParams
    asked: SamplingParams
    priority: int


@dataclass(frozen=True, slots=True)
class Piece:
    """Some more text; the last piece has the reason."""

    text: str
    finish: FinishReason | None
    tokens: int  # generated so far


class Generation:
    def __init__(
        self,
        config: EngineConfig,
        names: tuple[str, ...],
        spec: ModelSpec,
        tokenizer: Tokenizer,
        client: EngineClient,
        metrics: EngineMetrics,
    ) -> None:
        self.names = names
        self.draining = False
        self._spec = spec
        self._tokenizer = tokenizer
        self._template = ChatTemplate(tokenizer)
        self._client = client
        self._metrics = metrics
        self._fresh_seeds = random.Random(config.seed)

    @property
    def alive(self) -> bool:
        return self._client.alive

    @property
    def max_model_len(self) -> int:
        return self._client.ready.result().max_model_len

    def why_not_ready(self) -> str | None:
        if not self._client.alive:
            return f"the engine has ended: {self._client.ended.result().reason}"
        if self.draining:
            return "the engine is draining"
        return None if self._client.ready.done() else "the model is being loaded"

    async def chat_prompt(self, request: ChatRequest) -> Prompt:
        self._check(request)
        text = self._template.render([message.as_template() for message in request.messages], tools=None)
        ids = await self._encode(text, add_special_tokens=False)
        limit = request.max_tokens if request.max_completion_tokens is None else request.max_completion_tokens
        return self._prompt(ids, request, request.sampling(limit))

    async def completion_prompt(self, request: CompletionRequest) -> Prompt:
        self._check(request)
        if isinstance(request.prompt, str):
            ids = await self._encode(request.prompt, add_special_tokens=True)
        else:
            ids = request.prompt
        return self._prompt(ids, request, request.sampling(16 if request.max_tokens is None else request.max_tokens))

    async def run(self, prompt: Prompt) -> AsyncGenerator[Piece]:
        """The answer in pieces, the last of them final. Leaving early aborts the request."""
        table = self._tokenizer.text_table(prompt.asked.skip_special_tokens)
        text = TextStream(table, prompt.params.stop, prompt.asked.include_stop_str_in_output)
        clock = self._metrics.clock(len(prompt.ids))
        reason, tokens = FinishReason.ABORT, 0
        try:
            async with aclosing(self._client.generate(prompt.ids, prompt.params, prompt.priority)) as events:
                async for event in events:
                    if event.token is not None:
                        tokens += 1
                        clock.token()
                    delta = text.feed(event.token, event.finish)
                    if event.finish is None:
                        if delta:
                            yield Piece(delta, None, tokens)
                        continue
                    reason = event.finish.reason
                    if reason is FinishReason.ERROR:
                        raise GenerationFailed(event.finish.message or "the engine could not go on with this request")
                    yield Piece(delta, reason, tokens)
        except EngineLost:
            reason = FinishReason.ERROR
            raise
        finally:
            clock.finish(reason)

    def _check(self, request: ChatRequest | CompletionRequest) -> None:
        if request.model not in self.names:
            served = ", ".join(self.names)
            raise ModelUnknown(f"the model {request.model!r} does not exist; this engine serves {served}")
        request.refuse_unsupported()

    async def _encode(self, text: str, *, add_special_tokens: bool) -> list[int]:
        try:
            if len(text) < LONG_TEXT:
                return self._tokenizer.encode(text, add_special_tokens=add_special_tokens)
            return await asyncio.to_thread(self._tokenizer.encode, text, add_special_tokens=add_special_tokens)
        except (TypeError, UnicodeEncodeError):
            raise RequestRejected("the prompt is no text: it has half of a surrogate pair", "prompt") from None

    def _prompt(self, ids: list[int], request: ChatRequest | CompletionRequest, asked: SamplingParams) -> Prompt:
        """What the engine would refuse is refused here already, before the first byte of a stream."""
        ids = ids[-asked.truncate_prompt_tokens :] if asked.truncate_prompt_tokens else ids
        limit, vocabulary = self.max_model_len, self._spec.shape.vocabulary
        if not ids:
            raise RequestRejected("the prompt is empty: at least one token is needed", "prompt")
        if len(ids) >= limit:
            raise RequestRejected(
                f"the prompt has {len(ids)} tokens, and this model takes at most {limit} with the output: shorten it",
                "prompt",
            )
        if max(ids) >= vocabulary:
            raise RequestRejected(
                f"prompt: token {max(ids)} is not below {vocabulary}, the size of the vocabulary", "prompt"
            )
        return Prompt(
            tuple(ids),
            resolve(
                asked,
                seed=request.seed if request.seed is not None else self._fresh_seeds.getrandbits(63),
                prompt_length=len(ids),
                max_model_len=limit,
                vocabulary=vocabulary,
                end_tokens=self._spec.end_tokens,
                tokenizer=self._tokenizer,
            ),
            asked,
            request.priority,
        )
