"""Answers of /v1/completions."""

from collections.abc import Iterator
from dataclasses import dataclass, field

from quire_engine.core.step import FinishReason, TokenLogprob
from quire_engine.server.answers import Answer, Json
from quire_engine.server.choices import Piece
from quire_engine.server.generation import Job
from quire_engine.server.requests import CompletionRequest
from quire_engine.server.shapes import TokenNames, completion_logprobs, prompt_logprobs
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["CompletionAnswer"]


@dataclass(slots=True)
class _Text:
    """One choice of the whole answer, as far as it has come."""

    text: str = ""
    tokens: list[int] = field(default_factory=list)
    logprobs: list[TokenLogprob] = field(default_factory=list)
    finish: FinishReason | None = None
    stop_reason: str | int | None = None


class CompletionAnswer(Answer):
    prefix, whole_name, chunk_name = "cmpl-", "text_completion", "text_completion"

    def __init__(self, request: CompletionRequest, job: Job, tokenizer: Tokenizer) -> None:
        super().__init__(request, job)
        self._echo = request.echo
        self._silent = request.max_tokens == 0  # the prompt alone is wanted; the engine made a token all the same
        self._logprobs = request.logprobs is not None
        self._prompt_logprobs = request.prompt_logprobs is not None
        self._with_ids = request.return_token_ids
        self._table = tokenizer.text_table(skip_special=False)
        self._names = TokenNames(self._table, request.return_tokens_as_token_ids)
        self._texts = [_Text() for _ in job.asks]
        self._echoed = [not self._echo] * len(job.asks)
        self._ids_due = set(range(len(job.asks))) if self._with_ids else set()  # of prompts, which a stream tells once
        self._offsets = [0] * len(job.asks)

    def _openings(self) -> Iterator[Json]:
        return iter(())

    def _take(self, piece: Piece) -> None:
        piece = self._dropped(piece) if self._silent else piece
        text = self._texts[piece.index]
        text.text += piece.text
        text.tokens += piece.tokens
        text.logprobs += piece.logprobs
        text.finish, text.stop_reason = piece.finish, piece.stop_reason

    def _choices(self) -> list[Json]:
        choices = []
        for index, text in enumerate(self._texts):
            piece = Piece(index, text.text, text.tokens, text.logprobs, text.finish, text.stop_reason)
            choice = self._choice(self._with_prompt(piece), index)
            if self._prompt_logprobs:
                prompt = self.progress.prompt_logprobs[index // self.job.asked.n]
                choice["prompt_logprobs"] = prompt_logprobs(prompt, self._names)
            if self._with_ids:
                choice["prompt_token_ids"] = list(self.job.asks[index].prompt)
            choices.append(choice)
        return choices

    def _events(self, piece: Piece) -> list[Json]:
        piece = self._dropped(piece) if self._silent else piece
        part: tuple[int | None, Piece] = (None, piece)
        if not self._echoed[piece.index]:
            self._echoed[piece.index] = True
            part = self._with_prompt(piece)
        elif not (piece.text or piece.finish or self._logprobs or self._with_ids):
            return []
        choice = self._choice(part, piece.index)
        if piece.index in self._ids_due:
            self._ids_due.remove(piece.index)
            choice["prompt_token_ids"] = list(self.job.asks[piece.index].prompt)
        return [choice]

    def _dropped(self, piece: Piece) -> Piece:
        self._num_tokens -= len(piece.tokens)
        return Piece(piece.index, finish=piece.finish)

    def _with_prompt(self, piece: Piece) -> tuple[int | None, Piece]:
        """The piece after the prompt, if that is to be echoed, and the prompt's first token, which has no score."""
        if not self._echo:
            return None, piece
        prompt = self.job.asks[piece.index].prompt
        scores = self.progress.prompt_logprobs[piece.index // self.job.asked.n]
        text = self.job.texts[piece.index // self.job.asked.n]
        if text is None:
            text = b"".join(self._table[token] for token in prompt).decode("utf-8", "replace")
        return prompt[0], Piece(
            piece.index, text + piece.text, piece.tokens, [*scores, *piece.logprobs], piece.finish, piece.stop_reason
        )

    def _choice(self, part: tuple[int | None, Piece], index: int) -> Json:
        first, piece = part
        logprobs = None
        if self._logprobs:
            logprobs = completion_logprobs(first, piece.logprobs, self._names, self._offsets[index], self._length)
            self._offsets[index] += sum(self._length(token) for token in self._scored(first, piece))
        choice = {
            "index": index,
            "text": piece.text,
            "logprobs": logprobs,
            "finish_reason": piece.finish,
            "stop_reason": piece.stop_reason,
        }
        if self._with_ids:
            choice["token_ids"] = piece.tokens
        return choice

    def _scored(self, first: int | None, piece: Piece) -> list[int]:
        return [*([] if first is None else [first]), *(score.token for score in piece.logprobs)]

    def _length(self, token: int) -> int:
        """Characters of a token's text, when it stands alone."""
        return len(self._table[token].decode("utf-8", "replace"))
