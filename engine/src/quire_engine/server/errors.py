"""Every error leaves in OpenAI's shape: {"error": {message, type, param, code}}."""

from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from starlette.exceptions import HTTPException

from quire_engine.errors import RequestRejected
from quire_engine.process.client import EngineLost, GenerationFailed

__all__ = ["RETRY_AFTER", "ModelUnknown", "QueueFull", "body", "install", "sentence_of"]

LONGEST = 2000  # characters of a message
RETRY_AFTER = {"Retry-After": "2"}  # seconds


class ModelUnknown(Exception):
    """The `model` of a request is none that we serve."""


class QueueFull(Exception):
    """Known only when the request has been read: it asks for more sequences than may wait."""


def body(message: str, kind: str, code: int, param: str | None = None) -> dict[str, Any]:
    shown = None if param is None else _shown(param)
    return {"error": {"message": _shown(message), "type": kind, "param": shown, "code": code}}


def _shown(text: str) -> str:
    """What of a request is quoted may be long, and may be no text: half of a surrogate pair becomes its escape."""
    cut = text if len(text) <= LONGEST else text[:LONGEST] + "..."
    return cut.encode("utf-8", "backslashreplace").decode()


def _is_step(step: str | int) -> bool:
    """Not the body itself, and not pydantic's name for a branch of a union, such as `list[int]`."""
    return isinstance(step, int) or (step not in ("body", "str") and "[" not in step)


def install(app: FastAPI) -> None:
    @app.exception_handler(RequestValidationError)
    async def invalid(_: Request, error: RequestValidationError) -> JSONResponse:
        # Of a union, the branch that got furthest, and of these one whose type was right.
        first = max(error.errors(), key=lambda e: (len(e["loc"]), not e["type"].endswith("_type")))
        steps = [] if first["type"] == "json_invalid" else [step for step in first["loc"] if _is_step(step)]
        where = ".".join(str(step) for step in steps) or "body"
        return JSONResponse(body(f"{where}: {first['msg']}", "invalid_request_error", 400, where), 400)

    @app.exception_handler(RequestRejected)
    async def rejected(_: Request, error: RequestRejected) -> JSONResponse:
        return JSONResponse(body(str(error), "invalid_request_error", 400, error.param), 400)

    @app.exception_handler(ModelUnknown)
    async def unknown(_: Request, error: ModelUnknown) -> JSONResponse:
        return JSONResponse(body(str(error), "not_found_error", 404, "model"), 404)

    @app.exception_handler(QueueFull)
    async def full(_: Request, error: QueueFull) -> JSONResponse:
        return JSONResponse(body(str(error), "rate_limit_error", 429), 429, RETRY_AFTER)

    @app.exception_handler(EngineLost)
    @app.exception_handler(GenerationFailed)
    async def lost(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(body(str(error), "internal_error", 500), 500)

    @app.exception_handler(HTTPException)
    async def plain(_: Request, error: HTTPException) -> JSONResponse:
        return JSONResponse(
            body(str(error.detail), "invalid_request_error", error.status_code), error.status_code, error.headers
        )

    @app.exception_handler(Exception)
    async def unforeseen(_: Request, error: Exception) -> JSONResponse:
        return JSONResponse(sentence_of(error), 500)  # uvicorn logs the traceback


def sentence_of(error: Exception) -> dict[str, Any]:
    """The body for an error after which nothing can be answered; of one we did not foresee, no details."""
    if isinstance(error, RequestRejected):
        return body(str(error), "invalid_request_error", 400, error.param)
    known = isinstance(error, EngineLost | GenerationFailed)
    return body(str(error) if known else f"internal error: {type(error).__name__}", "internal_error", 500)
