"""The routes."""

import asyncio
import base64
import time
from array import array
from collections.abc import AsyncGenerator, Callable, Coroutine
from dataclasses import replace
from importlib.metadata import version
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response

from quire_engine.errors import RequestRejected
from quire_engine.process.client import EngineClient
from quire_engine.server import errors
from quire_engine.server.answers import Answer
from quire_engine.server.body import BoundedRoute
from quire_engine.server.chat import ChatAnswer
from quire_engine.server.choices import Piece
from quire_engine.server.completion import CompletionAnswer
from quire_engine.server.door import CLIENT_LEFT, PREPARED
from quire_engine.server.errors import ModelUnknown
from quire_engine.server.generation import Generation, Job
from quire_engine.server.metrics import EngineMetrics
from quire_engine.server.prompts import Prompts
from quire_engine.server.requests import (
    ChatRequest,
    CompletionRequest,
    DetokenizeRequest,
    EmbeddingRequest,
    Sampled,
    TokenizeRequest,
)
from quire_engine.server.requests import Request as Body
from quire_engine.server.stream import EventStream

__all__ = ["make_app"]

VERSION = version("quire-engine")


def make_app(
    generation: Generation,
    prompts: Prompts,
    client: EngineClient,
    metrics: EngineMetrics,
    check_room: Callable[[int], None],
) -> FastAPI:
    """`check_room` raises QueueFull for so many sequences, if they cannot wait."""
    app = FastAPI(title="Quire engine", version=VERSION, docs_url=None, redoc_url=None, strict_content_type=False)
    app.router.route_class = BoundedRoute
    errors.install(app)
    created = int(time.time())
    tokenizer = prompts.tokenizer

    # ------------------------------------------------------------------ models

    def card(name: str) -> dict[str, Any]:
        limit = {} if generation.why_not_ready() else {"max_model_len": generation.max_model_len}
        return {
            "id": name,
            "object": "model",
            "created": created,
            "owned_by": "quire",
            "root": generation.names[0],
            **limit,
        }

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        return {"object": "list", "data": [card(name) for name in generation.names]}

    @app.get("/v1/models/{name:path}")
    async def model(name: str) -> dict[str, Any]:
        check_name(name)
        return card(name)

    def check(body: Body) -> None:
        if body.model is not None:
            check_name(body.model)
        body.refuse_unsupported()

    def check_name(name: str) -> None:
        if name not in generation.names:
            served = ", ".join(generation.names)
            raise ModelUnknown(f"the model {name!r} does not exist; this engine serves {served}")

    # ------------------------------------------------------------------ text

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        check(body)
        needs_text()
        job = named(await prompts.of_chat(body, generation.max_model_len), request)
        return await respond(ChatAnswer(body, job, tokenizer, prompts.formats), body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        check(body)
        needs_text()
        job = named(await prompts.of_completion(body, generation.max_model_len), request)
        return await respond(CompletionAnswer(body, job, tokenizer), body, request)

    def named(job: Job, request: Request) -> Job:
        check_room(len(job.asks))
        return replace(
            job,
            request_id=request.scope.get("request_id", ""),
            model=generation.names[0],
            on_handed_over=request.scope.get(PREPARED, job.on_handed_over),
        )

    def needs_text() -> None:
        if not client.ready.result().num_blocks:
            raise RequestRejected("this model makes embeddings, no text: use /v1/embeddings", "model")

    async def respond(answer: Answer, body: Sampled, request: Request) -> Response:
        pieces: AsyncGenerator[list[Piece]] = generation.run(answer.job, answer.progress)
        if body.stream:
            return EventStream(answer.stream(pieces), _ignored(body))
        whole = await _while_connected(request, answer.whole(pieces))
        return Response(status_code=CLIENT_LEFT) if whole is None else JSONResponse(whole, headers=_ignored(body))

    # ------------------------------------------------------------------ embeddings and tokens

    @app.post("/v1/embeddings")
    async def embeddings(body: EmbeddingRequest, request: Request) -> Response:
        check(body)
        if client.ready.result().num_blocks:
            raise RequestRejected("this model makes text, no embeddings: load an embedding model", "model")
        if body.dimensions not in (None, prompts.spec.shape.hidden):
            hidden = prompts.spec.shape.hidden
            raise RequestRejected(f"dimensions: this model's vectors have {hidden}, and are not cut", "dimensions")
        limit = generation.max_model_len if body.truncate_prompt_tokens == -1 else body.truncate_prompt_tokens
        texts = await prompts.encode_all(body.texts, add_special_tokens=body.add_special_tokens, limit=limit)
        if not texts:
            raise RequestRejected("input is empty: there is nothing to embed", "input")
        request.scope.get(PREPARED, lambda: None)()
        vectors = await _while_connected(request, client.embed(texts))
        if vectors is None:
            return Response(status_code=CLIENT_LEFT)
        tokens = sum(map(len, texts))
        metrics["vllm:prompt_tokens_total"].inc(tokens)
        show = _base64 if body.encoding_format == "base64" else list
        return JSONResponse(
            {
                "object": "list",
                "data": [
                    {"object": "embedding", "index": index, "embedding": show(vector)}
                    for index, vector in enumerate(vectors)
                ],
                "model": body.model or generation.names[0],
                "usage": {"prompt_tokens": tokens, "total_tokens": tokens},
            },
            headers=_ignored(body),
        )

    @app.post("/tokenize")
    async def tokenize(body: TokenizeRequest) -> Response:
        check(body)
        if (body.prompt is None) == (body.messages is None):
            raise RequestRejected("give prompt or messages, one of them", "prompt")
        if body.prompt is not None:
            ids = await prompts.encode(body.prompt, add_special_tokens=body.add_special_tokens is not False)
        else:
            ids, _ = await prompts.chat_ids(body)
        table = tokenizer.text_table(skip_special=False)
        names = [table[i].decode("utf-8", "replace") for i in ids] if body.return_token_strs else None
        limit = generation.max_model_len
        return JSONResponse({"count": len(ids), "max_model_len": limit, "tokens": ids, "token_strs": names})

    @app.post("/detokenize")
    async def detokenize(body: DetokenizeRequest) -> Response:
        check(body)
        table = tokenizer.text_table(skip_special=False)
        if body.tokens and max(body.tokens) >= len(table):
            raise RequestRejected(
                f"tokens: {max(body.tokens)} is not below {len(table)}, the size of the vocabulary", "tokens"
            )
        return JSONResponse({"prompt": b"".join(table[i] for i in body.tokens).decode("utf-8", "replace")})

    # ------------------------------------------------------------------ health

    @app.get("/livez")
    async def livez() -> Response:
        """Is a restart the cure? Only when the engine process is gone, or hangs."""
        return PlainTextResponse("ok") if generation.alive else PlainTextResponse(generation.why_not_ready(), 503)

    @app.get("/readyz")
    @app.get("/health")
    async def readyz() -> Response:
        """Loaded, one token computed, not draining; and how much it has to do, which /metrics says to everybody, too."""
        if (reason := generation.why_not_ready()) is not None:
            return PlainTextResponse(reason, 503)
        load = metrics.load
        return JSONResponse({"running": load.running, "waiting": load.waiting, "kv_usage": load.kv_usage})

    @app.get("/version")
    async def version_() -> dict[str, str]:
        return {"version": VERSION}

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


def _ignored(body: Body) -> dict[str, str]:
    return {"X-Quire-Ignored": ", ".join(body.ignored)} if body.ignored else {}


def _base64(vector: "array[float]") -> str:
    return base64.b64encode(vector.tobytes()).decode()


async def _while_connected(request: Request, work: Coroutine[Any, Any, Any]) -> Any:
    """The result of `work`, or None, and `work` cancelled, when the client leaves first."""
    working = asyncio.create_task(work)
    leaving = asyncio.create_task(_disconnect(request))
    try:
        await asyncio.wait({working, leaving}, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        return None
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)


async def _disconnect(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass
