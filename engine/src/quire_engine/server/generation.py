"""What chat and completions share: from prompts to pieces of text.

Holds the state of the API process: which model, whether it is ready, whether it drains.
"""

import logging
from collections.abc import AsyncGenerator, Callable, Iterator
from contextlib import aclosing
from dataclasses import dataclass

from quire_engine.core.step import FinishReason, TokenLogprob
from quire_engine.errors import RequestRejected
from quire_engine.params import SamplingParams
from quire_engine.process.client import Ask, EngineClient, EngineLost, GenerationFailed, PromptNews
from quire_engine.server.choices import Choice, Piece
from quire_engine.server.metrics import EngineMetrics
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["Generation", "Job", "Progress"]

log = logging.getLogger("quire.requests")


def _nothing() -> None:
    pass


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The sequences of one request: `n` for each prompt, one prompt after another."""

    asks: tuple[Ask, ...]
    asked: SamplingParams
    shown: frozenset[int] = frozenset()  # special tokens whose text is needed all the same
    in_reasoning: bool = False  # the prompt ends within it
    texts: tuple[str | None, ...] = ()  # of the prompts, as they were given
    request_id: str = ""
    model: str = ""  # the name of an answer whose request named none
    on_handed_over: Callable[[], None] = _nothing  # the engine has been given it

    @property
    def prompts(self) -> Iterator[tuple[int, ...]]:
        return (ask.prompt for ask in self.asks[:: self.asked.n])

    @property
    def num_prompt_tokens(self) -> int:
        return sum(len(prompt) for prompt in self.prompts)


class Progress:
    """What is known of the prompts of a job under way."""

    def __init__(self, job: Job) -> None:
        self._n = job.asked.n
        self.num_cached = 0
        self.prompt_logprobs: list[list[TokenLogprob]] = [[] for _ in job.prompts]

    def take(self, news: PromptNews) -> None:
        prompt, answer = divmod(news.index, self._n)
        self.prompt_logprobs[prompt] += news.logprobs
        if answer == 0:  # the others find the first one's
            self.num_cached += news.cached


class Generation:
    def __init__(
        self,
        names: tuple[str, ...],
        tokenizer: Tokenizer,
        client: EngineClient,
        metrics: EngineMetrics,
        *,
        log_prompts: bool = False,
    ) -> None:
        self.names = names
        self.draining = False  # the operator, or whoever, wants nothing new to come in
        self.stopping = False  # nor does a signal, which is final
        self._tokenizer = tokenizer
        self._client = client
        self._metrics = metrics
        self._log_prompts = log_prompts

    @property
    def alive(self) -> bool:
        return self._client.alive

    @property
    def max_model_len(self) -> int:
        return self._client.ready.result().max_model_len

    def why_not_ready(self) -> str | None:
        if not self._client.alive:
            return f"the engine has ended: {self._client.ended.result().reason}"
        if self.draining or self.stopping:
            return "the engine is draining"
        return None if self._client.ready.done() else "the model is being loaded"

    async def run(self, job: Job, progress: Progress) -> AsyncGenerator[list[Piece]]:
        """The answers in pieces, each choice's last one final. Leaving early aborts the request."""
        table = self._tokenizer.text_table(job.asked.skip_special_tokens, job.shown)
        choices = [Choice(index, ask, job.asked, table) for index, ask in enumerate(job.asks)]
        clocks = [self._metrics.clock(ask) for ask in job.asks]
        self._metrics["vllm:request_params_n"].observe(job.asked.n)
        for prompt in job.prompts if self._log_prompts else ():
            log.info(
                "prompt",
                extra={
                    "request_id": job.request_id,
                    "tokens": len(prompt),
                    "text": self._tokenizer.decode(list(prompt[:2000]))[:2000],
                },
            )
        try:
            job.on_handed_over()
            async with aclosing(self._client.generate(job.asks)) as batches:
                async for events in batches:
                    pieces: dict[int, Piece] = {}
                    for event in events:
                        clock = clocks[event.index]
                        if isinstance(event, PromptNews):
                            clock.begin(event.started, event.cached)
                            progress.take(event)
                            continue
                        piece = pieces.get(event.index)
                        if piece is None:
                            piece = pieces[event.index] = Piece(event.index)
                        if event.token is not None:
                            clock.token(event.arrived)
                        choices[event.index].add(piece, event)
                        if event.finish is not None:
                            clock.finish(event.finish.reason)
                            if event.finish.reason is FinishReason.ERROR:
                                message = event.finish.message or "the engine could not go on with this request"
                                raise (RequestRejected if event.finish.by_request else GenerationFailed)(message)
                    if pieces:
                        yield list(pieces.values())
        except EngineLost:
            for clock in clocks:
                clock.finish(FinishReason.ERROR)
            raise
        finally:
            for clock in clocks:
                clock.finish(FinishReason.ABORT)  # unless it has finished
            self._metrics["vllm:request_max_num_generation_tokens"].observe(max(clock.tokens for clock in clocks))
