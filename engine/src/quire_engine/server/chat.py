"""Answers of /v1/chat/completions: reasoning, content and tool calls, read from the text as it comes."""

import uuid
from collections.abc import Iterator

from quire_engine.core.step import FinishReason, TokenLogprob
from quire_engine.messages.deltas import Arguments, CallStarted, Content, Delta, Reasoning, merged, message_of
from quire_engine.messages.formats import ToolFormat
from quire_engine.messages.parser import MessageParser
from quire_engine.server.answers import Answer, Json
from quire_engine.server.choices import Piece
from quire_engine.server.formats import Formats
from quire_engine.server.generation import Job
from quire_engine.server.requests import ChatRequest
from quire_engine.server.shapes import TokenNames, chat_logprobs, prompt_logprobs
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["ChatAnswer"]


class _Message:
    """One choice, as far as it has come."""

    def __init__(self, parser: MessageParser) -> None:
        self.parser = parser
        self.deltas: list[Delta] = []
        self.tokens: list[int] = []
        self.logprobs: list[TokenLogprob] = []
        self.finish: FinishReason | None = None
        self.stop_reason: str | int | None = None
        self.calls = 0

    def read(self, piece: Piece, parallel: bool) -> list[Delta]:
        """The deltas of its text; calls beyond the first are dropped unless there may be several."""
        deltas = self.parser.feed(piece.text) if piece.text else []
        if piece.finish is not None:
            deltas = [*deltas, *self.parser.finish()]
            self.finish, self.stop_reason = piece.finish, piece.stop_reason
        if not parallel:
            deltas = [d for d in deltas if not (isinstance(d, CallStarted | Arguments) and d.index > 0)]
        if len(deltas) == 1 and isinstance(deltas[0], Content):
            return deltas
        self.calls += sum(isinstance(delta, CallStarted) for delta in deltas)
        return merged(deltas)


class ChatAnswer(Answer):
    prefix, whole_name, chunk_name = "chatcmpl-", "chat.completion", "chat.completion.chunk"

    def __init__(self, request: ChatRequest, job: Job, tokenizer: Tokenizer, formats: Formats) -> None:
        super().__init__(request, job)
        choice = request.choice
        self._named = choice not in (None, "none", "auto", "required")
        self._parallel = request.parallel_tool_calls is not False
        self._logprobs = request.wanted_logprobs is not None
        self._prompt_logprobs = request.prompt_logprobs is not None
        self._with_ids = request.return_token_ids
        self._with_reasoning = request.include_reasoning
        self._echo = self._last_content(request) if request.echo else ""
        self._names = TokenNames(tokenizer.text_table(skip_special=False), request.return_tokens_as_token_ids)
        tools = self._tools = None if choice in (None, "none") else formats.tools
        schemas = {tool.function.name: tool.function.parameters or {} for tool in request.tools or ()}
        self._messages = [
            _Message(MessageParser(tools, formats.reasoning, schemas=schemas, in_reasoning=job.in_reasoning))
            for _ in job.asks
        ]

    @staticmethod
    def _last_content(request: ChatRequest) -> str:
        """What the answer goes on with: of anybody else it would be no part."""
        return request.messages[-1].text if request.messages[-1].role == "assistant" else ""

    # ------------------------------------------------------------------ whole

    def _take(self, piece: Piece) -> None:
        message = self._messages[piece.index]
        deltas = message.read(piece, self._parallel)
        self._count_reasoning(deltas, piece)
        message.deltas += deltas
        message.tokens += piece.tokens
        message.logprobs += piece.logprobs

    def _choices(self) -> list[Json]:
        choices: list[Json] = []
        for index, message in enumerate(self._messages):
            read = message_of(message.deltas)
            content = self._echo + (read.content or "")
            body: Json = {
                "role": "assistant",
                "content": content if content or not read.calls else None,
                "refusal": None,
            }
            if read.reasoning is not None and self._with_reasoning:
                body |= {"reasoning": read.reasoning, "reasoning_content": read.reasoning}
            if read.calls:
                body["tool_calls"] = [
                    {
                        "id": _call_id(self._tools),
                        "type": "function",
                        "function": {"name": call.name, "arguments": call.arguments},
                    }
                    for call in read.calls
                ]
            choice: Json = {
                "index": index,
                "message": body,
                "logprobs": chat_logprobs(message.logprobs, self._names) if self._logprobs else None,
                "finish_reason": self._reason(message),
                "stop_reason": message.stop_reason,
            }
            if self._with_ids:
                choice["token_ids"] = message.tokens
            choices.append(choice)
        return choices

    def _more(self) -> Json:
        more: Json = {}
        if self._prompt_logprobs:
            more["prompt_logprobs"] = prompt_logprobs(self.progress.prompt_logprobs[0], self._names)
        if self._with_ids:
            more["prompt_token_ids"] = list(self.job.asks[0].prompt)
        return more

    # ------------------------------------------------------------------ streamed

    def _openings(self) -> Iterator[Json]:
        for index in range(len(self._messages)):
            yield self._chunk(index, {"role": "assistant", "content": self._echo})

    def _more_of_stream(self) -> Json:
        return {"prompt_token_ids": list(self.job.asks[0].prompt)} if self._with_ids else {}

    def _events(self, piece: Piece) -> list[Json]:
        message, index = self._messages[piece.index], piece.index
        deltas = message.read(piece, self._parallel)
        self._count_reasoning(deltas, piece)
        logprobs = chat_logprobs(piece.logprobs, self._names) if self._logprobs and piece.logprobs else None
        bodies = [body for delta in deltas if (body := self._body(delta)) is not None]
        if not bodies and (logprobs or (self._with_ids and piece.tokens)):
            bodies = [{}]
        chunks = [self._chunk(index, body) for body in bodies]
        if chunks:  # what belongs to tokens goes with the first
            chunks[0]["logprobs"] = logprobs
        if self._with_ids:
            for number, chunk in enumerate(chunks):
                chunk["token_ids"] = [] if number else piece.tokens
        if piece.finish is not None:
            end = {"finish_reason": self._reason(message), "stop_reason": message.stop_reason}
            chunks.append(self._chunk(index, {}) | end)
        return chunks

    def _body(self, delta: Delta) -> Json | None:
        match delta:
            case Content(text):
                return {"content": text}
            case Reasoning(text):
                return {"reasoning": text, "reasoning_content": text} if self._with_reasoning else None
            case CallStarted(call, name):
                function = {"name": name, "arguments": ""}
                return {
                    "tool_calls": [
                        {"index": call, "id": _call_id(self._tools), "type": "function", "function": function}
                    ]
                }
            case Arguments(call, text):
                return {"tool_calls": [{"index": call, "function": {"arguments": text}}]}

    def _chunk(self, index: int, delta: Json) -> Json:
        return {"index": index, "delta": delta, "logprobs": None, "finish_reason": None}

    # ------------------------------------------------------------------ both

    def _count_reasoning(self, deltas: list[Delta], piece: Piece) -> None:
        """A piece belongs to reasoning if that is all it has, give or take a token at the border."""
        if deltas and isinstance(deltas[0], Reasoning) and all(isinstance(delta, Reasoning) for delta in deltas):
            self._num_reasoning += len(piece.tokens)

    def _reason(self, message: _Message) -> str | None:
        """A call that was asked for by name is a plain end, to OpenAI."""
        if message.finish is FinishReason.STOP and message.calls and not self._named:
            return "tool_calls"
        return message.finish


def _call_id(tools: ToolFormat | None) -> str:
    number = uuid.uuid4().hex
    return number[:9] if tools is not None and tools.short_ids else f"call_{number[:24]}"
