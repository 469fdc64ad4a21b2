"""The routes."""

import asyncio
import time
from collections.abc import AsyncIterator, Coroutine
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

from quire_engine.server import errors
from quire_engine.server.answers import CHAT, COMPLETION, Answer
from quire_engine.server.generation import Generation
from quire_engine.server.metrics import EngineMetrics
from quire_engine.server.requests import ChatRequest, CompletionRequest

__all__ = ["make_app"]

CLIENT_LEFT = 499  # nobody reads it; it is for the access log


def make_app(generation: Generation, metrics: EngineMetrics) -> FastAPI:
    app = FastAPI(title="Quire engine", version="0.1.0", docs_url=None, redoc_url=None, strict_content_type=False)
    errors.install(app)
    created = int(time.time())

    @app.get("/v1/models")
    async def models() -> dict[str, Any]:
        limit = {} if generation.why_not_ready() else {"max_model_len": generation.max_model_len}
        return {
            "object": "list",
            "data": [
                {"id": name, "object": "model", "created": created, "owned_by": "quire", **limit}
                for name in generation.names
            ],
        }

    @app.post("/v1/chat/completions")
    async def chat(body: ChatRequest, request: Request) -> Response:
        prompt = await generation.chat_prompt(body)
        return await respond(Answer(CHAT, body.model, prompt), body, request)

    @app.post("/v1/completions")
    async def completions(body: CompletionRequest, request: Request) -> Response:
        prompt = await generation.completion_prompt(body)
        return await respond(Answer(COMPLETION, body.model, prompt), body, request)

    async def respond(answer: Answer, body: ChatRequest | CompletionRequest, request: Request) -> Response:
        headers = {"X-Quire-Ignored": ", ".join(body.ignored)} if body.ignored else {}
        pieces = generation.run(answer.prompt)
        if body.stream:
            include_usage = body.stream_options is not None and body.stream_options.include_usage
            events: AsyncIterator[bytes] = answer.stream(pieces, include_usage)
            return StreamingResponse(
                events, media_type="text/event-stream", headers={**headers, "Cache-Control": "no-cache"}
            )
        whole = await _while_connected(request, answer.whole(pieces))
        return Response(status_code=CLIENT_LEFT) if whole is None else JSONResponse(whole, headers=headers)

    @app.get("/livez")
    async def livez() -> Response:
        """Is a restart the cure? Only when the engine process is gone."""
        return PlainTextResponse("ok") if generation.alive else PlainTextResponse(generation.why_not_ready(), 503)

    @app.get("/readyz")
    @app.get("/health")
    async def readyz() -> Response:
        """Loaded, one token computed, not draining."""
        reason = generation.why_not_ready()
        return PlainTextResponse(reason, 503) if reason else PlainTextResponse("ok")

    @app.get("/metrics")
    async def prometheus() -> Response:
        return Response(metrics.render(), media_type="text/plain; version=0.0.4; charset=utf-8")

    return app


async def _while_connected(request: Request, work: Coroutine[Any, Any, dict[str, Any]]) -> dict[str, Any] | None:
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
