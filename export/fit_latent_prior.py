"""Fitting a prior from a terminal: `diffusevae fit-prior BUNDLE --images FILE --out FILE`.

From a checkout this file itself is the command: `python export/fit_latent_prior.py BUNDLE --images FILE --out FILE`.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NEEDED = ("torch", "onnx", "onnxscript", "onnxruntime", "safetensors", "sklearn")

if __name__ == "__main__":
    # From a checkout nothing needs to be installed; and this folder itself must not shadow other packages.
    HERE = Path(__file__).resolve().parent
    sys.path[:] = [str(HERE.parent), *(entry for entry in sys.path if Path(entry).resolve() != HERE)]
    if missing := [name for name in NEEDED if find_spec(name) is None]:
        from engine.commands import install_extra

        raise SystemExit(
            f"Error: found no {', '.join(missing)}, expected the packages that fitting needs; install them with: "
            f"{install_extra('export')}"
        )

import click

from engine import Sampler
from engine.bundle.files import MANIFEST_FILE
from engine.bundle.links import AllowLinks
from engine.cli.inputs import LINKS
from engine.cli.terminal import Program
from engine.places import check_file
from export.build import Request, build
from export.latent_prior import fit, log_likelihood, sample_posterior, size_of_prior, standard_prior, write_prior
from export.posterior import bar, encode, encoder_shape, posterior_of
from export.training_images import KEY, read_images


@contextmanager
def opened(
    source: Path, links: AllowLinks, vae: Path | None, weights: str, key: str | None, options: Mapping[str, Any]
) -> Iterator[Sampler]:
    """A sampler on a bundle, or on one that is built of a checkpoint for as long as this takes."""
    if (source / MANIFEST_FILE).exists():
        with Sampler(source, precision="f32", allow_links=links) as sampler:
            yield sampler
        return
    with tempfile.TemporaryDirectory() as folder:
        click.echo(f"Building a bundle of {source} to encode with")
        out = Path(folder) / "encoder.bundle"
        build(Request(source, vae, out, weights, key, backends=("onnxruntime",), options=options))
        with Sampler(out, "onnxruntime", "f32") as sampler:
            yield sampler


@click.command(cls=Program, context_settings={"help_option_names": ["-h", "--help"], "terminal_width": 100})
@click.argument("source", metavar="CKPT_OR_BUNDLE", type=click.Path(path_type=Path))
@click.option(
    "--images",
    required=True,
    type=click.Path(path_type=Path),
    help=f"Training images: an .npz file with {KEY!r}, uint8 [N, H, W, 3], or a folder of pictures of the right size.",
)
@click.option("--components", type=click.IntRange(1), default=16, show_default=True, help="Gaussians in the mixture.")
@click.option(
    "--draws",
    type=click.IntRange(1),
    default=4,
    show_default=True,
    help="Latents drawn of each image's posterior; with few, many components fit their noise.",
)
@click.option(
    "--out", required=True, type=click.Path(path_type=Path), help="File to write, for the option --latent-prior of build."
)
@click.option("--heldout", type=click.Path(path_type=Path), help="Images to measure the fit on, in the same form.")
@click.option("--seed", type=click.IntRange(0, 2**32 - 1), default=0, show_default=True, help="Of sampling and fitting.")
@click.option("--vae", type=click.Path(path_type=Path), help="Of a checkpoint: the VAE's own one, when it holds none.")
@click.option("--weights", type=click.Choice(["ema", "online"]), default="ema", show_default=True, help="Of a checkpoint.")
@click.option("--key", metavar="PATH", help="Of a checkpoint: as for build.")
@click.option("--heads", type=click.IntRange(1), help="Of a checkpoint: as for build.")
@click.option("--preset", metavar="NAME", help="Of a checkpoint: as for build.")
@LINKS
def main(
    source: Path,
    images: Path,
    components: int,
    draws: int,
    out: Path,
    heldout: Path | None,
    seed: int,
    vae: Path | None,
    weights: str,
    key: str | None,
    heads: int | None,
    preset: str | None,
    allow_links: tuple[str, ...],
) -> None:
    """Fit a density to the latents that a model's VAE encodes its training images to.

    Samples drawn from it instead of N(0, I) meet the decoder where it was trained. Put it into a bundle with the option
    --latent-prior OUT of build. With --heldout the log-likelihood of unseen latents is printed, which tells
    how many components are too many.
    """
    check_file(out)
    with opened(source, allow_links, vae, weights, key, {"heads": heads, "preset": preset}) as sampler:
        manifest = sampler.bundle.manifest
        posterior = posterior_of(manifest, source)
        check_file(out, size_of_prior(components, posterior.width))
        shape = encoder_shape(sampler)
        fitted = encode(sampler, posterior, read_images(images, shape), "encode")
        unseen = encode(sampler, posterior, read_images(heldout, shape), "encode held-out") if heldout else None
    prior = fit(*fitted, components, seed, draws, bar("fit", "round"))
    write_prior(out, prior, manifest.source.other_sha256 or manifest.source.sha256)
    click.echo(f"Wrote {out}: {components} Gaussians of width {posterior.width}, fitted to {len(fitted[0])} images.")
    for label, moments in (("these images", fitted), ("held-out images", unseen)):
        if moments is not None:
            z = sample_posterior(*moments, seed + 1)
            ours, plain = log_likelihood(prior, z), log_likelihood(standard_prior(posterior.width), z)
            click.echo(f"  log-likelihood of {label:<16} {ours:9.3f} nats a latent ({plain:.3f} under N(0, I))")


if __name__ == "__main__":
    main()
