"""The engine as a library, in vLLM's shapes: `LLM(model).generate(prompts, SamplingParams(...))`.

Runs in the caller's process and thread. What is wrong with a prompt is said before anything runs, and leaves the
object as it was.
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import count
from numbers import Integral
from typing import Any

from pydantic import ValidationError
from tqdm import tqdm

from quire_api.engine import EngineConfig
from quire_api.errors import explain, nearest
from quire_engine.arrive import arrive
from quire_engine.build import BuiltEmbedder, BuiltEngine, build_model
from quire_engine.core.request import Request, RequestId
from quire_engine.core.step import Events, Finish, TokenLogprob
from quire_engine.errors import RequestRejected
from quire_engine.outputs import CompletionOutput, Embedding, EmbeddingRequestOutput, Logprob, RequestOutput
from quire_engine.params import SamplingParams, of_sequence, resolve
from quire_engine.text.chat import ChatTemplate
from quire_engine.text.stream import TextStream
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["LLM"]

Prompt = str | Mapping[str, Any]  # text, or {"prompt": text} or {"prompt_token_ids": [...]}


@dataclass(slots=True)
class _Open:
    """One answer that is being written."""

    request: RequestOutput
    output: CompletionOutput
    params: SamplingParams
    text: TextStream | None  # None: only ids are wanted


class LLM:
    def __init__(self, model: str, *, skip_tokenizer_init: bool = False, **options: Any) -> None:
        """`options` are those of `quire serve`, with underscores: dtype, max_model_len, max_num_seqs, seed, ..."""
        for name in options:
            if name not in EngineConfig.model_fields:
                raise TypeError(f"LLM has no option {name!r}; {nearest(name, EngineConfig.model_fields)}")
        try:
            config = EngineConfig(model=str(model), **options)
        except ValidationError as error:
            raise explain(error, EngineConfig, lambda path: str(path[0]) if path else "options") from None
        config = config.model_copy(
            update={"model": str(arrive(config.model, config.download_dir, config.include).folder)}
        )
        self._built = build_model(config, with_tokenizer=not skip_tokenizer_init)
        self._streaming = False  # one at a time: each step brings news of all that is open
        self._ids = count()
        self._seeds = random.Random(config.seed)

    def get_tokenizer(self) -> Tokenizer:
        if self._built.tokenizer is None:
            raise RequestRejected("no tokenizer was loaded: leave out skip_tokenizer_init", "prompt")
        return self._built.tokenizer

    def generate(
        self,
        prompts: Prompt | Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        priority: Sequence[int] | None = None,
    ) -> list[RequestOutput]:
        """An output for each prompt, in their order."""
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        outputs: list[RequestOutput] = []
        read = written = 0
        with tqdm(total=len(listed), desc="prompts", disable=not use_tqdm, dynamic_ncols=True) as bar:
            for output in self.stream(listed, sampling_params, priority=priority, outputs=outputs):
                if output.finished:
                    bar.update()
                    read += len(output.prompt_token_ids)
                    written += sum(len(each.token_ids) for each in output.outputs)
                    elapsed = max(bar.format_dict["elapsed"], 1e-9)
                    speed = f"in {read / elapsed:.0f} tok/s, out {written / elapsed:.0f} tok/s"
                    bar.set_postfix_str(speed, refresh=False)
        return outputs

    def stream(
        self,
        prompts: Sequence[Prompt],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        priority: Sequence[int] | None = None,
        outputs: list[RequestOutput] | None = None,
    ) -> Iterator[RequestOutput]:
        """Each output again whenever there is more of it. `outputs` receives all of them, in the order of the prompts."""
        built = self._generator()
        prompts = [prompts] if isinstance(prompts, str | Mapping) else prompts
        if self._streaming:
            raise RequestRejected(
                "another stream of this LLM is open: read it to its end, or close it, before", "prompts"
            )
        if not isinstance(sampling_params, Sequence):
            sampling_params = [sampling_params or SamplingParams()] * len(prompts)
        priority = priority or [0] * len(prompts)
        for name, given in (("sampling_params", sampling_params), ("priority", priority)):
            if len(given) != len(prompts):
                raise RequestRejected(f"{len(prompts)} prompts, but {len(given)} of {name}: give one for each", name)
        if not all(isinstance(rank, int) for rank in priority):
            raise RequestRejected(f"priority is {list(priority)!r}, and must be whole numbers", "priority")
        requests = [
            each
            for number, (prompt, params, rank) in enumerate(zip(prompts, sampling_params, priority, strict=True))
            for each in self._requests(number, prompt, params, rank, built)
        ]
        open_ = {request.id: answer for request, answer in requests}
        if outputs is not None:
            outputs += {id(answer.request): answer.request for answer in open_.values()}.values()
        self._streaming = True
        try:
            for number, (request, _) in enumerate(requests):
                _add(built, number, request)
            numbers = {request.id: number for number, (request, _) in enumerate(requests)}
            while open_:
                events = built.engine.step()
                for request_id, refusal in events.refused.items():
                    del open_[request_id]
                    raise RequestRejected(f"prompt {numbers[request_id]}: {refusal}", refusal.param)
                yield from self._take(events, open_)
        finally:  # an error, Ctrl-C, or a caller that has had enough
            self._streaming = False
            for request_id in open_:
                built.engine.abort(request_id)

    def chat(
        self,
        messages: Sequence[Any],
        sampling_params: SamplingParams | Sequence[SamplingParams] | None = None,
        *,
        use_tqdm: bool = True,
        add_generation_prompt: bool = True,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[RequestOutput]:
        """One conversation, a list of messages, or several of them; by the checkpoint's own template."""
        if isinstance(messages, Mapping | str):
            raise RequestRejected(f"messages is {messages!r}: give a list of messages", "messages")
        conversations = [messages] if messages and isinstance(messages[0], Mapping) else messages
        how = {**(chat_template_kwargs or {}), "add_generation_prompt": add_generation_prompt}
        prompts = [{"prompt_token_ids": self.chat_ids(each, **how)} for each in conversations]
        return self.generate(prompts, sampling_params, use_tqdm=use_tqdm)

    def chat_ids(self, messages: Sequence[Mapping[str, Any]], **how: Any) -> list[int]:
        """A conversation as the prompt that it becomes; `how` is for the template."""
        tokenizer = self.get_tokenizer()
        add_generation_prompt = how.pop("add_generation_prompt", True)
        text = ChatTemplate(tokenizer).render(messages, None, add_generation_prompt=add_generation_prompt, more=how)
        return tokenizer.encode(text, add_special_tokens=False)

    def embed(self, prompts: Prompt | Sequence[Prompt]) -> list[EmbeddingRequestOutput]:
        """A vector for each prompt; for models that make embeddings."""
        if not isinstance(self._built, BuiltEmbedder):
            raise RequestRejected("this model makes text: load an embedding model to embed", "prompts")
        listed = [prompts] if isinstance(prompts, str | Mapping) else list(prompts)
        ids = [self._ids_of(number, prompt)[1] for number, prompt in enumerate(listed)]
        vectors = self._built.embedder.embed(ids).tolist()
        return [
            EmbeddingRequestOutput(
                request_id=str(next(self._ids)), prompt_token_ids=each, outputs=Embedding(embedding=vector)
            )
            for each, vector in zip(ids, vectors, strict=True)
        ]

    # ------------------------------------------------------------------ the steps of the above

    def _generator(self) -> BuiltEngine:
        if not isinstance(self._built, BuiltEngine):
            raise RequestRejected("this model makes embeddings, no text: use `embed`", "prompts")
        return self._built

    def _ids_of(self, number: int, prompt: Prompt) -> tuple[str | None, list[int]]:
        """The text, if there is one, and the ids."""
        text = prompt.get("prompt") if isinstance(prompt, Mapping) else prompt
        if isinstance(prompt, Mapping) and prompt.get("prompt_token_ids") is not None:
            ids = prompt["prompt_token_ids"]
            if isinstance(ids, str | bytes | Mapping) or not all(isinstance(token, Integral) for token in ids):
                raise RequestRejected(f"prompt {number}: prompt_token_ids must be a list of whole numbers", "prompts")
            return text, [int(token) for token in ids]
        if not isinstance(text, str):
            seen = f"has the keys {sorted(prompt)}" if isinstance(prompt, Mapping) else f"is {prompt!r}"
            raise RequestRejected(
                f"prompt {number} {seen}: give text, or a dictionary with prompt or prompt_token_ids", "prompts"
            )
        if self._built.tokenizer is None:
            raise RequestRejected(
                f"prompt {number} is text, and no tokenizer was loaded: give prompt_token_ids, "
                "or leave out skip_tokenizer_init",
                "prompts",
            )
        try:
            return text, self._built.tokenizer.encode(text, add_special_tokens=True)
        except (TypeError, UnicodeEncodeError):
            raise RequestRejected(f"prompt {number} is no text: it has half of a surrogate pair", "prompts") from None

    def _requests(
        self, number: int, prompt: Prompt, params: SamplingParams, priority: int, built: BuiltEngine
    ) -> Iterator[tuple[Request, _Open]]:
        """One for each of the `n` answers; the first computes the prompt for all."""
        text, ids = self._ids_of(number, prompt)
        ids = params.truncated(ids, built.max_model_len)
        seed = self._seeds.getrandbits(62) if params.seed is None else params.seed
        leader: RequestId | None = None
        request = RequestOutput(request_id=str(next(self._ids)), prompt=text, prompt_token_ids=ids)
        if params.prompt_logprobs is not None:
            request.prompt_logprobs = [None]
        resolved = resolve(
            params,
            vocabulary=built.spec.shape.vocabulary,
            end_tokens=built.spec.end_tokens,
            tokenizer=built.tokenizer,
        )
        for index in range(params.n):
            token_params = of_sequence(
                resolved,
                seed=seed + index,
                lead=leader is None,
                prompt_length=len(ids),
                max_model_len=built.sizes.max_model_len,
            )
            output = CompletionOutput(index=index)
            if params.logprobs is not None:
                output.logprobs, output.cumulative_logprob = [], 0.0
            request.outputs.append(output)
            stream = None
            if built.tokenizer is not None and params.detokenize:
                table = built.tokenizer.text_table(params.skip_special_tokens)
                stream = TextStream(table, token_params.stop, params.include_stop_str_in_output)
            request_id = RequestId(next(self._ids))
            yield (
                Request(id=request_id, prompt=tuple(ids), params=token_params, priority=priority, leader=leader),
                _Open(request, output, params, stream),
            )
            leader = request_id if leader is None else leader

    def _take(self, events: Events, open_: dict[RequestId, _Open]) -> Iterator[RequestOutput]:
        """Write what a step brought into the outputs; those that have changed."""
        for request_id, scores in events.prompt_logprobs.items():
            logprobs = open_[request_id].request.prompt_logprobs
            assert logprobs is not None  # it was asked for
            logprobs += [self._logprobs(score) for score in scores]
        for request_id, found in events.cached.items():
            if open_[request_id].output.index == 0:
                open_[request_id].request.num_cached_tokens = found
        for i, (request_id, token) in enumerate(zip(events.ids, events.tokens, strict=True)):
            answer, finish = open_[request_id], events.finished.get(i)
            output = answer.output
            if token >= 0:
                output.token_ids.append(token)
            if answer.text is not None:
                output.text += answer.text.feed(token if token >= 0 else None, finish)
            if output.logprobs is not None and (score := events.logprobs.get(i)):
                output.logprobs.append(self._logprobs(score))
                output.cumulative_logprob = (output.cumulative_logprob or 0.0) + score.logprob
            if finish is not None:
                del open_[request_id]
                _finish(answer, finish, token)
            yield answer.request

    def _logprobs(self, score: TokenLogprob) -> dict[int, Logprob]:
        found = {score.token: (score.logprob, score.rank)}
        found |= {token: (logprob, rank) for rank, (token, logprob) in enumerate(score.top, 1) if token != score.token}
        tokenizer = self._built.tokenizer
        return {
            token: Logprob(logprob, rank, None if tokenizer is None else tokenizer.decode([token]))
            for token, (logprob, rank) in found.items()
        }


def _add(built: BuiltEngine, number: int, request: Request) -> None:
    try:
        built.engine.add(request)
    except RequestRejected as refusal:
        raise RequestRejected(f"prompt {number}: {refusal}", refusal.param) from None


def _finish(answer: _Open, finish: Finish, token: int) -> None:
    output = answer.output
    output.finish_reason = finish.reason.value
    if finish.stop is not None:
        output.stop_reason = finish.stop.decode()
    elif finish.message is not None:
        output.stop_reason = finish.message
    elif token in (answer.params.stop_token_ids or ()):
        output.stop_reason = token
    answer.request.finished = all(each.finish_reason for each in answer.request.outputs)
