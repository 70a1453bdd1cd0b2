"""The command `diffusevae triton-repo`: a bundle in, a model repository for Triton Inference Server out."""

from __future__ import annotations

from typing import Any

import click

from engine.serving.choice import KINDS
from engine.triton.repository import Written, write_repository
from engine.triton.serving import Serving


@click.command("triton-repo")
@click.argument("bundle")
@click.option("--out", required=True, help="The model repository; other models in it stay as they are.")
@click.option("--name", help="The model's name; default: the bundle's.")
@click.option("--max-batch", default=16, show_default=True, help="Samples computed at a time, of any number of requests.")
@click.option(
    "--delay-us", default=2000, show_default=True, help="How long a request may wait for others, in microseconds."
)
@click.option("--instances", default=1, show_default=True, help="Processes that serve the model, on each GPU with gpu.")
@click.option("--threads", type=int, help="Threads of each; default: what the server may use, divided by --instances.")
@click.option("--kind", type=click.Choice(list(KINDS)), default="cpu", show_default=True, help="Where it runs.")
@click.option("--backend", help="Runtime; default: the bundle's best of this kind, native or tensorrt first.")
@click.option("--precision", default="auto", show_default=True, help="As for `diffusevae sample`.")
@click.option("--max-steps", type=int, help="Most network calls of a request; default: 100 or what is recorded.")
@click.option("--max-queue", default=0, show_default=True, help="Requests that may wait; more are refused. 0: any number.")
@click.option("--previews", is_flag=True, help="Stream a preview of each step (decoupled: clients use gRPC streams).")
@click.option("--replace", is_flag=True, help="Replace a model of this name that this command wrote.")
@click.option("--allow-links", metavar="STORE", multiple=True, help="As for `diffusevae sample`; again for each.")
def triton_repo(bundle: str, out: str, replace: bool, allow_links: tuple[str, ...], **given: Any) -> None:
    """Write a model repository for Triton Inference Server that serves BUNDLE.

    OUT/NAME holds config.pbtxt, derived from the bundle, and a verified copy of the bundle; the server's Python needs this
    package. Where the bundle has a whole-sampler graph, OUT/NAME_graph serves it on servers without the package.
    """
    report(write_repository(bundle, out, Serving(**given), replace=replace, allow_links=allow_links), out)


def report(written: Written, out: str) -> None:
    """What was written, and how to start it."""
    settled = written.settled
    threads = "its share of the threads" if settled.threads is None else f"{settled.threads} threads"
    click.echo(
        f"{written.model}: backend {settled.backend}, precision {settled.precision}, "
        f"{settled.instances} x {settled.kind} with {threads}, batches of up to {settled.max_batch} within "
        f"{settled.delay_us} us, at most {settled.max_steps} steps{', previews' if settled.previews else ''}"
    )
    if written.graph is not None:
        click.echo(f"{written.graph}: the whole sampler as {written.graph_platform}, for servers without this package")
    click.echo(f"start it with: tritonserver --model-repository {out}")
    if settled.backend != "native":
        note = f"with {settled.backend} the batch around a sample may change how its last bits are rounded"
        click.echo(f"note: {note}", err=True)
