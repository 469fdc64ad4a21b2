"""The composition root of the server: EngineConfig -> the parts that serve.

Whatever can be wrong is found here, before anything is started.
"""

import asyncio
import os
import random
import ssl
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.middleware.cors import CORSMiddleware
from starlette.types import ASGIApp

from quire_api.engine import EngineConfig
from quire_api.flags import to_argv
from quire_engine.errors import ConfigFailure, RequestRejected
from quire_engine.locate import locate_model
from quire_engine.params import SamplingParams
from quire_engine.process.client import EngineClient
from quire_engine.process.link import Ready, Report
from quire_engine.server.admin import admin_app, admin_routes, load_route
from quire_engine.server.app import make_app
from quire_engine.server.door import CLIENT_LEFT, Door, Keys, Visit
from quire_engine.server.errors import QueueFull
from quire_engine.server.formats import choose_formats
from quire_engine.server.generation import Generation
from quire_engine.server.metrics import EngineMetrics
from quire_engine.server.prompts import Prompts
from quire_engine.spec import read_spec
from quire_engine.text.chat import ChatTemplate
from quire_engine.text.tokenizer import Tokenizer

__all__ = ["Parts", "assemble"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Parts:
    """What serves, made from the config."""

    generation: Generation
    client: EngineClient
    door: Door
    front: ASGIApp  # with the door in it
    admin: ASGIApp
    tls: dict[str, str]


def assemble(config: EngineConfig) -> Parts:
    folder = locate_model(config.model)
    spec = read_spec(folder)
    names = config.served_model_name or tuple(dict.fromkeys([folder.resolve().name, config.model]))
    tokenizer = Tokenizer(folder, spec.shape.vocabulary)
    template = ChatTemplate(tokenizer, config.chat_template)
    formats = choose_formats(
        config.tool_call_parser, config.reasoning_parser, template.source, tokenizer.special_tokens
    )
    keys = Keys.read(
        (*config.api_key, *os.environ.get("QUIRE_API_KEY", os.environ.get("VLLM_API_KEY", "")).split()),
        config.api_key_file,
    )
    metrics = EngineMetrics(names[0])
    last: list[Report] = []

    def on_report(report: Report) -> None:
        last[:] = [report]
        metrics.on_report(report)

    secretless = config.model_copy(update={"api_key": ()})  # everybody can read the list of processes
    client = EngineClient(to_argv(secretless), on_report)
    generation = Generation(names, tokenizer, client, metrics, log_prompts=config.log_prompts)
    prompts = Prompts(
        spec=spec,
        tokenizer=tokenizer,
        template=template,
        formats=formats,
        max_output_tokens=config.max_output_tokens,
        defaults=_defaults(spec.sampling, folder) if config.generation_config == "auto" else {},
        fresh_seeds=random.Random(config.seed),
    )

    def why_full() -> str | None:
        limit = config.max_num_queued_reqs
        if limit is None or client.num_waiting + door.preparing < limit:
            return None
        metrics["vllm:admission_rejections_total"].inc()
        return f"the queue is full, with {limit} requests that wait: come again later"

    def check_room(sequences: int) -> None:
        limit, others = config.max_num_queued_reqs, client.num_waiting + door.preparing - 1
        if limit is not None and sequences > 1 and others > 0 and others + sequences > limit:
            metrics["vllm:admission_rejections_total"].inc()
            raise QueueFull(
                f"{sequences} sequences are too many beside {others} that wait, of at most {limit}: come again later"
            )

    app = make_app(generation, prompts, client, metrics, check_room)

    def on_answer(visit: Visit) -> None:
        kind = str(CLIENT_LEFT) if visit.status == CLIENT_LEFT else f"{visit.status // 100}xx"
        metrics["http_requests_total"].labels(visit.handler, visit.scope["method"], kind).inc()
        if config.enable_log_requests:
            visit.log()

    door = Door(
        app,
        generation.why_not_ready,
        why_full,
        keys=keys,
        origins=config.allowed_origins,
        max_body_bytes=int(config.max_body_mib * 2**20),
        on_answer=on_answer,
    )
    front: ASGIApp = door
    if config.allowed_origins:  # outside the door, so that a page may read its refusals, too
        front = CORSMiddleware(
            door,
            allow_origins=config.allowed_origins,
            allow_methods=["*"],
            allow_headers=["*"],
            expose_headers=["X-Request-Id", "X-Quire-Ignored", "Retry-After"],
            max_age=3600,
        )

    def load() -> dict[str, Any]:
        now = last[0].load if last else None
        loaded = client.ready.result() if client.ready.done() and not client.ready.cancelled() else None
        return {
            "inside": door.inside,
            "running": now.running if now else 0,
            "waiting": now.waiting if now else 0,
            "kv_usage": now.kv_usage if now else 0.0,
            "kv_tokens": loaded.num_blocks * loaded.block_size if loaded else 0,
            "max_num_seqs": loaded.max_num_seqs if loaded else 0,
            "preemptions": now.preemptions if now else 0,
            "finished": now.finished if now else 0,
            "ttft_p95_s": metrics.first_tokens.quantile(0.95, time.monotonic()),
        }

    routes, telling = admin_routes(generation, load), load_route(load)
    app.include_router(telling)
    if config.admin_on_main_port:
        app.include_router(routes)
    metrics.watch("quire_engine_heartbeat_age_seconds", lambda: client.silent_for)
    metrics.watch("quire_requests_inside", lambda: door.inside)
    started = time.monotonic()

    def on_ready(ready: asyncio.Future[Ready]) -> None:
        if not ready.cancelled():
            cache = (ready.result().block_size, ready.result().num_blocks, config.enable_prefix_caching)
            metrics.labelled("vllm:cache_config_info", *map(str, cache)).set(1)
            metrics["quire_ready_seconds"].set(time.monotonic() - started)

    client.ready.add_done_callback(on_ready)
    return Parts(
        generation=generation, client=client, door=door, front=front, admin=admin_app(routes, telling), tls=_tls(config)
    )


def _defaults(sampling: Mapping[str, Any], folder: Path) -> Mapping[str, Any]:
    """How the model's authors would have it sampled, once that makes sense: else no request would."""
    try:
        SamplingParams(**sampling)
    except RequestRejected as wrong:
        raise ConfigFailure(
            f"{folder / 'generation_config.json'}: {wrong}; mend it, or leave it aside with --generation-config vllm"
        ) from None
    return sampling


def _tls(config: EngineConfig) -> dict[str, str]:
    """uvicorn's options."""
    if config.ssl_certfile is None and config.ssl_keyfile is None:
        return {}
    if config.ssl_certfile is None:
        raise ConfigFailure("--ssl-keyfile without --ssl-certfile: give both")
    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(config.ssl_certfile, config.ssl_keyfile)
    except (OSError, ssl.SSLError) as error:
        raise ConfigFailure(f"--ssl-certfile and --ssl-keyfile cannot be used: {error}") from None
    files = {"ssl_certfile": config.ssl_certfile}
    return files if config.ssl_keyfile is None else {**files, "ssl_keyfile": config.ssl_keyfile}
