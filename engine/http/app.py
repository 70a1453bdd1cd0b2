"""The application: routes from a request to an answer, over one worker.

    admit (429 when the queue is full) -> body -> read -> wait for a run, with an eye on the client -> encode
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from time import perf_counter
from typing import Any, TypeVar

from fastapi import FastAPI, Request, Response
from fastapi.responses import StreamingResponse
from starlette.exceptions import HTTPException
from starlette.middleware.cors import CORSMiddleware
from starlette.requests import ClientDisconnect

from engine import __version__
from engine.cascade import Cascade
from engine.errors import BackendError, Cancelled, EngineError
from engine.http import formats
from engine.http.answers import Answer
from engine.http.description import info, openapi
from engine.http.guard import Door, Guard
from engine.http.limits import Limits
from engine.http.metrics import Metrics
from engine.http.page import Asset
from engine.http.reader import Reader
from engine.http.refusals import CLIENT_GONE, Refusal, error_body, status_of
from engine.http.worker import Worker
from engine.sampler import Sampler
from engine.serving.answers import CANCELLED

READERS = 2  # threads that read bodies and write pictures: the event loop has time for a refusal meanwhile
METRICS = "text/plain; version=0.0.4; charset=utf-8"
Result = TypeVar("Result")


class Service:
    """What the routes share: the reader, the worker, the metrics, and threads for what takes longer than a moment."""

    def __init__(self, sampler: Sampler | Cascade, limits: Limits) -> None:
        self.sampler, self.limits = sampler, limits
        self.reader = Reader(sampler, limits)
        self.metrics = Metrics(lambda: self.worker.waiting)
        largest = limits.largest(sampler.bundle)
        self.worker = Worker(sampler, limits.max_batch, limits.max_queue, self.metrics.count, largest)
        self.pool = ThreadPoolExecutor(READERS, "diffusevae-http")
        self.pictures = self.reader.pictures

    async def aside(self, call: Callable[..., Result], *arguments: Any) -> Result:
        """The result of a call in one of the threads."""
        return await asyncio.get_running_loop().run_in_executor(self.pool, call, *arguments)

    async def answer(self, verb: str, request: Request) -> Response:
        """The response to a request of a verb."""
        try:
            kind, answer = await self._admitted(verb, request)
        except EngineError as error:
            self.metrics.refused(verb, "overload" if status_of(error) == 429 else "refused")
            raise
        if kind == formats.EVENTS:
            return StreamingResponse(self._events(answer, request), media_type=kind, headers={"Cache-Control": "no-store"})
        async with watched(answer, request, self.limits.timeout) as events:
            async for _ in events:
                pass  # this answer shows no steps
        if answer.error is not None:
            raise answer.error
        body = await self.aside(formats.encode, kind, answer, self.pictures)
        return Response(body, media_type=kind, headers={"Cache-Control": "no-store", **formats.headers(answer)})

    async def _admitted(self, verb: str, request: Request) -> tuple[str, Answer]:
        """A request that has been read and waits for its run, and the kind of answer that it is for."""
        arrived = perf_counter()
        self.worker.admit()
        try:
            kind = formats.kind_for(request.headers.get("accept"))
            body = await self._body(request)
            ask = await self.aside(self.reader.read, verb, body, dict(request.query_params))
            formats.check_outputs(kind, ask.wanted, self.pictures)
            shows_steps = kind == formats.EVENTS
            answer = Answer(ask, arrived, shows_steps=shows_steps)
        except BaseException:
            self.worker.give_back()
            raise
        self.worker.submit(answer)
        return kind, answer

    async def _body(self, request: Request) -> bytes:
        """The body, as long as it is within the limits of size and time."""
        said, most = request.headers.get("content-length", "0"), self.limits.max_body
        kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
        if kind != formats.JSON:
            found = kind[:100] or "none"
            raise Refusal(415, f"content-type: found {found}, expected {formats.JSON}; send a JSON body and this header")
        if said.isdecimal() and int(said[:20]) > most:
            raise Refusal(413, f"body: found {said[:20]} bytes, expected at most {most}; send fewer or smaller pictures")
        try:
            return await asyncio.wait_for(_received(request, most), self.limits.timeout)
        except asyncio.TimeoutError as error:
            message = f"body: found none within {self.limits.timeout:g} s, expected a complete one; send it faster"
            raise Refusal(408, message) from error
        except ClientDisconnect as error:
            raise Refusal(CLIENT_GONE, CANCELLED) from error

    async def _events(self, answer: Answer, request: Request) -> AsyncIterator[bytes]:
        """Server-sent events: `step` after each, then `result` or `error`."""
        try:
            async with watched(answer, request, self.limits.timeout) as events:
                async for step in events:
                    yield formats.event("step", await self.aside(formats.step_data, step))
            if answer.error is not None:
                raise answer.error
            body = await self.aside(formats.encode, formats.JSON, answer, self.pictures)
            yield formats.event("result", body.decode())
        except EngineError as error:
            yield formats.event("error", error_body(error).decode())


async def _received(request: Request, most: int) -> bytes:
    parts, size = [], 0
    async for part in request.stream():
        size += len(part)
        if size > most:
            raise Refusal(413, f"body: found more than {most} bytes, expected at most that; send fewer or smaller pictures")
        parts.append(part)
    return b"".join(parts)


@asynccontextmanager
async def watched(answer: Answer, request: Request, timeout: float) -> AsyncIterator[AsyncIterator[Any]]:
    """The steps of an answer until its end. A client that leaves, or a time that is up, ends its run after the next step."""
    hung_up = asyncio.ensure_future(_disconnected(request))

    async def events() -> AsyncIterator[Any]:
        ends = asyncio.get_running_loop().time() + timeout
        while True:
            event = asyncio.ensure_future(answer.events.get())
            left = ends - asyncio.get_running_loop().time()
            await asyncio.wait({event, hung_up}, timeout=max(0.0, left), return_when=asyncio.FIRST_COMPLETED)
            if event.done():
                if event.result() is None:
                    return
                yield event.result()
                continue
            event.cancel()
            if hung_up.done():
                raise Cancelled(CANCELLED)
            message = f"timeout: found no answer within {timeout:g} s, expected one; ask for less, or ask again later"
            raise Refusal(504, message)

    try:
        yield events()
    finally:
        answer.leave()  # of no effect once it is complete
        hung_up.cancel()


async def _disconnected(request: Request) -> None:
    while (await request.receive())["type"] != "http.disconnect":
        pass


@dataclass(frozen=True)
class Options:
    """How an application serves: its limits, its door, and the files of a page that it shows beside."""

    limits: Limits = field(default_factory=Limits)
    door: Door = field(default_factory=Door)
    assets: Sequence[Asset] = ()


def create_app(sampler: Sampler | Cascade, options: Options | None = None) -> FastAPI:
    """The ASGI application over an open Sampler, or Cascade, which it closes at its end.

    ArgumentError for limits that cannot be.

    The lifespan starts the worker; `/readyz` is 200 once its warm-up is done, and `app.state.service.worker.failed` says
    why where it is not.
    """
    options = options or Options()
    options.limits.check()
    service = Service(sampler, options.limits)

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        service.worker.start()
        try:
            yield
        finally:
            await service.aside(service.worker.close)
            service.pool.shutdown()
            sampler.close()

    app = FastAPI(title=sampler.bundle.manifest.name, version=__version__, docs_url=None, redoc_url=None, lifespan=lifespan)
    app.state.service = service
    app.openapi = lambda: openapi(service.reader)  # type: ignore[method-assign]
    _add_routes(app, service)
    for asset in options.assets:
        app.add_api_route(asset.path, asset.serve, methods=["GET"], include_in_schema=False)
    app.add_middleware(Guard, door=options.door)
    if options.door.origins:
        allowed = ["Authorization", "Content-Type", "Accept"]
        app.add_middleware(
            CORSMiddleware, allow_origins=options.door.origins, allow_methods=["POST"], allow_headers=allowed,
            expose_headers=["Server-Timing", "Diffusevae-Seeds", "Diffusevae-Setting", "Diffusevae-Batch", "Retry-After"],
        )  # fmt: skip
    return app


def _add_routes(app: FastAPI, service: Service) -> None:
    def verb_route(verb: str) -> Callable[[Request], Any]:
        async def route(request: Request) -> Response:
            return await service.answer(verb, request)

        return route

    for verb in service.reader.verbs:
        app.add_api_route(f"/v1/{verb}", verb_route(verb), methods=["POST"])
    app.add_api_route("/v1/info", lambda: info(service.reader), methods=["GET"])
    app.add_api_route("/healthz", lambda: Response("alive\n", media_type="text/plain"), methods=["GET"])
    app.add_api_route("/readyz", lambda: _ready(service.worker), methods=["GET"])
    app.add_api_route("/metrics", lambda: Response(service.metrics.text(), media_type=METRICS), methods=["GET"])
    app.add_exception_handler(EngineError, _engine_error)
    app.add_exception_handler(HTTPException, _no_route)
    app.add_exception_handler(Exception, _fault)


def _ready(worker: Worker) -> Response:
    if worker.ready:
        return Response("ready\n", media_type="text/plain")
    raise Refusal(503, f"not ready: {worker.failed or 'the warm-up is not done yet'}")


async def _engine_error(_: Request, error: Exception) -> Response:
    assert isinstance(error, EngineError)
    headers = error.headers if isinstance(error, Refusal) else {}
    return Response(error_body(error), status_of(error), headers, formats.JSON)


async def _fault(_: Request, error: Exception) -> Response:
    """A fault of ours, which Starlette logs."""
    message = f"this request met a fault of the server's ({type(error).__name__}), which its log describes. Report it"
    return Response(error_body(BackendError(message)), 500, media_type=formats.JSON)


async def _no_route(request: Request, error: Exception) -> Response:
    """Starlette's own refusals: a path that is not there, another method."""
    assert isinstance(error, HTTPException)
    message = f"found {request.method} {request.url.path[:200]} ({error.detail}), expected one of GET /openapi.json's paths"
    return Response(error_body(Refusal(error.status_code, message)), error.status_code, error.headers, formats.JSON)


