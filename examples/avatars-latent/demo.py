"""The demonstration: one picture of what the text model does, and the milliseconds that each row took.

    python examples/avatars-latent/demo.py out/avatars-latent.bundle --faces out/avatars.bundle --out out/avatars-latent.png

From the top, one column a prompt: the setting that was fitted for few steps without guidance and with a scale of 3; the eyes
of those painted anew with sunglasses, the rest kept by blending; a walk between two noises under one prompt; faces of the
32 x 32 model; and these brought to 64 x 64, the second stage of a cascade.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from engine import Batch, Cascade, Sampler
from engine.bundle.fitted import as_options
from engine.places import check_file

PROMPTS = (
    "long red hair, glasses, smiling",
    "bald, black beard, brown skin",
    "pink mohawk, no glasses, grinning",
    "black afro, dark skin, sky background",
    "blond bob, surprised eyes, pale skin",
    "turban, brown moustache, tan skin",
    "curly brown hair, glasses, winking",
    "coral beanie, happy eyes, light skin",
)
WALK = "smiling"
ENLARGED = "smiling, no glasses"
STEPS, GUIDANCE, SEED = 10, 2.0, 0  # guidance: the scale of 3, less one
EYES = slice(26, 46), slice(8, 56)
ENDS = 3, 11  # the walk's seeds
T_START = 300  # of the enlarged faces: late enough for who it is, early enough for what 32 x 32 pixels cannot hold
CELL, MARGIN, HEAD = 128, 132, 54


def fitted(sampler: Sampler, guidance: float) -> dict[str, Any]:
    """The fitted setting of STEPS steps with another guidance, as options of `sample`."""
    found = sampler.bundle.manifest.fitted
    setting = None if found is None else found.get(STEPS)
    if setting is None:
        fit = f"diffusevae fit-setting {sampler.bundle.path} --images data/train.npz --text-file data/train.txt --guidance 2"
        raise SystemExit(f"{sampler.bundle.path}: found no fitted setting of {STEPS} steps; fit them with: {fit}")
    return {**as_options(setting), "guidance": guidance}


def kept(phrase: str) -> bool:
    """Whether a phrase of a prompt says nothing of what sunglasses hide."""
    return not any(word in phrase for word in ("glasses", "eyes", "winking"))


def rows_of(sampler: Sampler, small: Sampler) -> dict[str, np.ndarray | Batch]:
    """{what a row shows: its images}. small: of the 32 x 32 model."""
    count = len(PROMPTS)
    guided, plain = fitted(sampler, GUIDANCE), fitted(sampler, 0.0)
    masks = np.zeros((64, 64), np.uint8)
    masks[EYES] = 255
    first = sampler.sample(seed=range(SEED, SEED + count), text=PROMPTS, **plain)
    second = sampler.sample(seed=range(SEED, SEED + count), text=PROMPTS, **guided)
    wishes = [", ".join([*(part for part in prompt.split(", ") if kept(part)), "sunglasses"]) for prompt in PROMPTS]
    filled = sampler.inpaint(second.images, masks, seed=SEED, text=wishes, **guided)
    # Without noise in the steps: with it, shared by all, the noise that a chain starts from decides little.
    walk = sampler.interpolate(*ENDS, n=count, text=WALK, steps=2 * STEPS, spacing="trailing", guidance=GUIDANCE)
    later = {"steps": STEPS, "t_start": T_START, "guidance": 0.0}
    sharp = Cascade([small, sampler]).sample(count, seed=SEED, text=ENLARGED, stages=[later])
    faces = sharp.stages[0].images
    return {
        "guidance 1": first, "guidance 3": second, "eyes painted anew: sunglasses": filled,
        f"from noise to noise: {WALK}": walk, "faces of the 32x32 model": faces, "brought to 64x64": sharp,
    }  # fmt: skip


def sheet(rows: dict[str, np.ndarray | Batch]) -> Image.Image:
    """All rows with what they show at the left, and the prompts on top."""
    small = ImageFont.load_default(size=12)
    picture = Image.new("RGB", (MARGIN + CELL * len(PROMPTS), HEAD + CELL * len(rows)), "white")
    draw = ImageDraw.Draw(picture)
    for column, prompt in enumerate(PROMPTS):
        draw.multiline_text((MARGIN + CELL * column + 3, 4), prompt.replace(", ", ",\n"), "black", small, spacing=1)
    for row, (label, found) in enumerate(rows.items()):
        images = found.images if isinstance(found, Batch) else found
        draw.multiline_text((4, HEAD + CELL * row + 40), wrapped(label), "black", small, spacing=2)
        for column, image in enumerate(images):
            cell = Image.fromarray(image).resize((CELL - 2, CELL - 2), Image.Resampling.LANCZOS)
            picture.paste(cell, (MARGIN + CELL * column, HEAD + CELL * row))
    return picture


def wrapped(label: str, width: int = 18) -> str:
    """Broken at spaces into lines of at most so many characters."""
    lines = [""]
    for word in label.split():
        fits = len(lines[-1]) + len(word) < width
        lines = [*lines[:-1], f"{lines[-1]} {word}".strip()] if fits else [*lines, word]
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Sample, write the picture, print the times."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("bundle", type=Path)
    parser.add_argument("--faces", type=Path, required=True, help="the bundle of the 32 x 32 model")
    parser.add_argument("--out", type=Path, default=Path("out/avatars-latent.png"))
    args = parser.parse_args(arguments)
    check_file(args.out)
    with Sampler(args.faces) as small, Sampler(args.bundle) as sampler:
        print(f"{args.bundle.name}: {sampler.backend} {sampler.precision}, {sampler.threads} threads")
        sampler.warmup(len(PROMPTS), text=PROMPTS[0], guidance=GUIDANCE)
        rows = rows_of(sampler, small)
    picture = sheet(rows)
    args.out.parent.mkdir(parents=True, exist_ok=True)
    picture.save(args.out)
    for label, found in rows.items():
        if isinstance(found, Batch):
            t = found.timings
            print(f"{label}: {t.total_ms:.0f} ms for {len(found)} images, {len(found.timesteps)} steps")
    print(f"wrote {args.out}")


if __name__ == "__main__":
    main()
