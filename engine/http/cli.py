"""The commands `diffusevae serve` and `diffusevae studio`: a bundle in, a server on this machine until Ctrl-C."""

from __future__ import annotations

import asyncio
import logging
import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click
import uvicorn

from engine.bundle.reader import Bundle
from engine.cascade import Cascade
from engine.errors import ArgumentError, EngineError
from engine.http.app import Options, create_app
from engine.http.guard import Door, check_address
from engine.http.limits import Limits
from engine.http.page import assets
from engine.sampler import Sampler
from engine.serving.choice import KINDS, backend_for, check_cascade, max_steps
from engine.sizes import KEPT
from engine.stages import followed

TOKEN = "DIFFUSEVAE_TOKEN"  # of the environment, where no file is named; an argument is seen by every user of a machine
CLOSING = 10  # seconds that answers under way have when the server ends
Command = TypeVar("Command", bound=Callable[..., Any])
USUAL = Limits()


def options(command: Command) -> Command:
    """The options of both commands, in the order of --help."""
    decorators = [
        click.argument("bundle"),
        click.option("--host", default="127.0.0.1", show_default=True, help="Address; others than loopback need a token."),
        click.option("--port", type=click.IntRange(0, 65535), default=8080, show_default=True, help="0: any that is free."),
        click.option("--token-file", metavar="FILE", help=f"What clients must send; or in the variable {TOKEN}."),
        click.option("--allow-host", "hosts", metavar="NAME", multiple=True, help="A name of this server; again for each."),
        click.option("--allow-origin", "origins", metavar="ORIGIN", multiple=True, help="A site whose pages may ask."),
        click.option("--kind", type=click.Choice(list(KINDS)), default="cpu", show_default=True, help="Where it runs."),
        click.option("--backend", help="Runtime; default: the bundle's best of this kind, native or tensorrt first."),
        click.option("--precision", default="auto", show_default=True, help="As for `diffusevae sample`."),
        click.option("--threads", type=click.IntRange(1), help="Default: what this process may use."),
        click.option(
            "--size", type=int, nargs=2, metavar="HEIGHT WIDTH", default=None, help="Of the images, as for `sample`."
        ),
        click.option("--overlap", type=float, help="With it, in tiles: the share that the next one covers."),
        click.option(
            "--max-size", type=int, nargs=2, metavar="HEIGHT WIDTH", default=None,
            help="Largest `size` that a request may ask for; default: none but the server's own.",
        ),
        click.option("--sizes", default=KEPT, show_default=True, help="Of those, so many stay ready, with their memory."),
        click.option("--max-batch", default=USUAL.max_batch, show_default=True, help="Images of a request, and of a run."),
        click.option("--max-steps", type=int, help="Most network calls of a request; default: 100 or what is recorded."),
        click.option("--max-pixels", default=USUAL.max_pixels, show_default=True, help="Of a picture that is sent."),
        click.option("--max-queue", default=USUAL.max_queue, show_default=True, help="Requests that may wait; then 429."),
        click.option("--max-body", default=USUAL.max_body, show_default=True, help="Bytes of a request."),
        click.option("--timeout", default=USUAL.timeout, show_default=True, help="Seconds for a body, and for its answer."),
        click.option("--allow-links", metavar="STORE", multiple=True, help="As for `diffusevae sample`; again for each."),
    ]
    for decorator in reversed(decorators):
        command = decorator(command)
    return command


@click.command()
@options
@click.option("--cascade", is_flag=True, help="Go on with the bundles that BUNDLE names next, stage by stage.")
def serve(**given: Any) -> None:
    """Serve BUNDLE over HTTP: pictures by seed, setting and input, several clients in one run.

    GET /docs shows what can be asked, with examples that run. Stop it with Ctrl-C.
    """
    run(studio=False, **given)


@click.command()
@options
def studio(**given: Any) -> None:
    """Serve BUNDLE, and a page to try it on: a wall of seeds, sliders that answer while you drag, your own pictures.

    As `diffusevae serve` otherwise. Open the address that it prints in a browser; it loads nothing from elsewhere.
    """
    run(studio=True, **given)


def run(
    bundle: str, host: str, port: int, token_file: str | None, hosts: tuple[str, ...], origins: tuple[str, ...], kind: str,
    backend: str | None, precision: str, threads: int | None, allow_links: tuple[str, ...], size: tuple[int, int] | None,
    overlap: float | None, sizes: int, studio: bool, cascade: bool = False, **limits: Any,
) -> None:  # fmt: skip
    """Open the bundle, take the port, and serve until a signal; EngineError where something cannot be."""
    token = read_token(token_file)
    check_address(host, token)
    if cascade and (size or overlap is not None or limits["max_size"]):
        raise ArgumentError("cascade: found it with another size, expected the bundles' own; leave one of the two out")
    first = Bundle.open(bundle, list(allow_links)).resized(size, overlap)
    opened, *later = followed(first, list(allow_links)) if cascade else [first]
    if cascade:
        check_cascade((opened, *later))
    steps = max_steps(opened.manifest, limits.pop("max_steps"), [stage.manifest for stage in later])
    files = assets(studio)
    door = Door(tuple(name.lower() for name in hosts), origins, token, tuple(file.path for file in files))
    settled = Options(Limits(max_steps=steps, **limits), door, files)
    settled.limits.check()
    chosen = backend_for(opened.manifest, kind, backend)
    for stage in later:
        backend_for(stage.manifest, kind, chosen)
    place = listen(host, port)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    machine, batch = (chosen, precision, threads), settled.limits.max_batch
    with place, (
        Cascade([opened, *later], *machine, max_batch=batch)
        if cascade
        else Sampler(opened, *machine, max_batch=batch, sizes=sizes)
    ) as sampler:
        app = create_app(sampler, settled)
        click.echo(
            f"{', '.join(stage.manifest.name for stage in (opened, *later))}: backend {sampler.backend}, "
            f"precision {sampler.precision}, threads {sampler.threads}; "
            f"batches of up to {settled.limits.max_batch}, at most {steps} steps"
        )
        if sampler.backend != "native":
            note = f"with {sampler.backend} the batch around a sample may change how its last bits are rounded"
            click.echo(f"note: {note}", err=True)
        click.echo(f"open {address(place, host)}{'' if studio else '/docs'} (Ctrl-C ends it)")
        serve_until_stopped(app, place)


def read_token(path: str | None) -> str | None:
    """The token of a file, or of the environment; None without."""
    if path is None:
        return os.environ.get(TOKEN) or None
    try:
        return Path(path).read_text(encoding="utf-8").strip()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or "no text"
        raise ArgumentError(
            f"token-file {path}: found that it cannot be read ({reason}), expected a token in it; make one with: "
            f"openssl rand -hex 32 > {path}"
        ) from error


def listen(host: str, port: int) -> socket.socket:
    """A bound socket, before anything is loaded; ArgumentError where the address is taken or none of this machine's."""
    try:
        family = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0][0]
        place = socket.create_server((host, port), family=family, backlog=256)
        # Connections inherit it. asyncio sets it only on sockets that say their protocol, which accepted ones do not.
        # Without it the second part of an answer waits 40 ms for the client's delayed acknowledgement of the first.
        place.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        return place
    except OSError as error:
        raise ArgumentError(
            f"host {host}, port {port}: found that they cannot be had ({error.strerror or error}), expected a free port of "
            "this machine; choose another --port, or 0 for any"
        ) from error


def address(place: socket.socket, host: str) -> str:
    """The URL of a socket."""
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{place.getsockname()[1]}"


def serve_until_stopped(app: Any, place: socket.socket) -> None:
    """Run the server; the end of its worker is an error."""
    worker = app.state.service.worker
    config = uvicorn.Config(app, log_level="warning", server_header=False, timeout_graceful_shutdown=CLOSING, lifespan="on")
    server = uvicorn.Server(config)

    async def watch() -> None:
        while not server.should_exit and worker.failed is None:
            await asyncio.sleep(0.1)
        server.should_exit = True

    async def both() -> None:
        watching = asyncio.ensure_future(watch())
        await server.serve(sockets=[place])
        await watching

    asyncio.run(both())
    if worker.failed is not None:
        failed: EngineError = worker.failed
        raise failed
