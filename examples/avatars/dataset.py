"""A small face data set that anyone can remake offline: attributed cartoon faces, 32x32 RGB.

The faces are SVG drawings composed by ``python_avatars``, cropped to the head and rendered with ``resvg_py``.
Face ``i`` of a set depends on ``(seed, i)`` alone, so sets of any size share their first faces, any face can
be drawn again on its own, and the number of worker processes never changes the result.

    python examples/avatars/dataset.py --out DIR
"""

from __future__ import annotations

import argparse
import functools
import io
import json
import math
import multiprocessing
import os
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import python_avatars as pa
import resvg_py
from PIL import Image
from tqdm import tqdm

SIZE = 32
# Left, top, width and height in the 264 x 280 drawing: head, hair and a strip of shoulders.
CROP = (34, 8, 196, 196)
TEMPLATE_HEADER = 'width="264px" height="280px" viewBox="0 0 264 280"'
# The held-out set uses another seed, far from any that a person is likely to type for the training set.
HELDOUT_SEED_OFFSET = 1_000_003

# Every table maps a category name to what draws it. Parts are chosen to stay inside the crop and to remain
# distinguishable at 32 pixels; colours are few and flat, so that a small model can learn them exactly.
HAIR: dict[str, pa.HairType | pa.HatType] = {
    "bald": pa.HairType.NONE,
    "short": pa.HairType.SHORT_FLAT,
    "curly": pa.HairType.SHORT_CURLY,
    "quiff": pa.HairType.QUIFF,
    "mohawk": pa.HairType.FRIZZLE,
    "messy": pa.HairType.MOWGLI,
    "afro": pa.HairType.FRO,
    "bun": pa.HairType.BUN,
    "pixie": pa.HairType.PIXIE,
    "bob": pa.HairType.BOB,
    "long": pa.HairType.STRAIGHT_1,
    "beanie": pa.HatType.WINTER_HAT_3,
    "turban": pa.HatType.TURBAN,
}
HAIR_COLOR = {
    "black": "#33303d",
    "brown": "#74452f",
    "ginger": "#d0652f",
    "blond": "#f0c95c",
    "silver": "#dfe0e8",
    "pink": "#f283ad",
}
SKIN = {"pale": "#ffdfc4", "light": "#f0bf94", "tan": "#d69c68", "brown": "#ab7048", "dark": "#7c5037"}
BACKGROUND = {
    "sky": (190, 222, 250),
    "mint": (196, 236, 208),
    "lemon": (252, 238, 186),
    "lilac": (220, 208, 246),
}
GLASSES = {
    "none": pa.AccessoryType.NONE,
    "glasses": pa.AccessoryType.PRESCRIPTION_2,
    "sunglasses": pa.AccessoryType.WAYFARERS,
}
BEARD = {
    "none": pa.FacialHairType.NONE,
    "beard": pa.FacialHairType.BEARD_MEDIUM,
    "moustache": pa.FacialHairType.MOUSTACHE_MAGNUM,
}
MOUTH = {
    "smile": pa.MouthType.SMILE,
    "grin": pa.MouthType.DEFAULT,
    "serious": pa.MouthType.SERIOUS,
    "open": pa.MouthType.SCREAM_OPEN,
}
EYES = {
    "open": pa.EyeType.DEFAULT,
    "happy": pa.EyeType.HAPPY,
    "surprised": pa.EyeType.SURPRISED,
    "wink": pa.EyeType.WINK,
}
EYEBROWS = {
    "relaxed": pa.EyebrowType.DEFAULT,
    "raised": pa.EyebrowType.RAISED_EXCITED_NATURAL,
    "angry": pa.EyebrowType.ANGRY_NATURAL,
}
CLOTHING_COLOR = {
    "coral": "#ef6a5a",
    "blue": "#3f7fd0",
    "green": "#3fa574",
    "plum": "#7d4f96",
    "charcoal": "#40454f",
}
TABLES = {
    "hair": HAIR,
    "hair_color": HAIR_COLOR,
    "skin": SKIN,
    "background": BACKGROUND,
    "glasses": GLASSES,
    "beard": BEARD,
    "mouth": MOUTH,
    "eyes": EYES,
    "eyebrows": EYEBROWS,
    "clothing_color": CLOTHING_COLOR,
}
ATTRIBUTES: dict[str, tuple[str, ...]] = {name: tuple(table) for name, table in TABLES.items()}

# Long styles overlap a beard's outline and blur both at 32 pixels, so they are drawn without facial hair.
BEARDLESS_HAIR = frozenset({"pixie", "bob", "long", "afro"})
# No strand shows here: the hair colour is visible only where there is facial hair too.
HIDDEN_HAIR = frozenset({"bald", "beanie", "turban"})
# A cheerful set: smiles twice as often as any other mouth.
MOUTH_ODDS = (0.40, 0.20, 0.20, 0.20)
GLASSES_ODDS = (0.60, 0.25, 0.15)
# About half where facial hair may grow (9 of the 13 styles) leaves 65 % of all faces without.
BEARD_ODDS = (0.50, 0.28, 0.22)


@dataclass(frozen=True)
class AvatarSet:
    """One stored set of N faces with K attributes each.

    images: (N, S, S, 3) uint8 in [0, 255], RGB; attributes: (N, K) int16, column k in
    [0, len(categories[attribute_names[k]])); categories: the names of each attribute's values.
    """

    images: np.ndarray
    attributes: np.ndarray
    attribute_names: tuple[str, ...]
    categories: dict[str, tuple[str, ...]]
    seed: int


def draw_attributes(rng: np.random.Generator) -> dict[str, int]:
    """Draw one face: attribute name -> index into ``ATTRIBUTES[name]``.

    Uniform and independent, but for mouths, glasses and facial hair (see the odds above).
    """
    values = {name: int(rng.integers(len(categories))) for name, categories in ATTRIBUTES.items()}
    values["mouth"] = int(rng.choice(len(MOUTH), p=MOUTH_ODDS))
    values["glasses"] = int(rng.choice(len(GLASSES), p=GLASSES_ODDS))
    # Drawn even where it is not used: each face consumes the same numbers, whatever its hair.
    beard = int(rng.choice(len(BEARD), p=BEARD_ODDS))
    allowed = ATTRIBUTES["hair"][values["hair"]] not in BEARDLESS_HAIR
    values["beard"] = beard if allowed else ATTRIBUTES["beard"].index("none")
    return values


def count_combinations() -> int:
    """The number of different faces that ``draw_attributes`` can give, hidden hair colours counted once."""
    independent = set(ATTRIBUTES) - {"hair", "hair_color", "beard"}
    heads = 0
    for hair in HAIR:
        for beard in ("none",) if hair in BEARDLESS_HAIR else BEARD:
            hidden = hair in HIDDEN_HAIR and beard == "none"
            heads += 1 if hidden else len(HAIR_COLOR)
    return heads * math.prod(len(ATTRIBUTES[name]) for name in independent)


def render(attributes: dict[str, int], size: int = SIZE) -> np.ndarray:
    """Render one face as (size, size, 3) uint8 RGB in [0, 255]; the same attributes give the same bytes."""
    pick = {name: list(table.values())[attributes[name]] for name, table in TABLES.items()}
    svg = pa.Avatar(
        style=pa.AvatarStyle.TRANSPARENT,
        top=pick["hair"],
        hat_color=pick["clothing_color"],
        hair_color=pick["hair_color"],
        facial_hair=pick["beard"],
        facial_hair_color=pick["hair_color"],
        skin_color=pick["skin"],
        accessory=pick["glasses"],
        mouth=pick["mouth"],
        eyes=pick["eyes"],
        eyebrows=pick["eyebrows"],
        nose=pa.NoseType.DEFAULT,
        clothing=pa.ClothingType.HOODIE,  # the one garment that reaches high enough to show in the crop
        clothing_color=pick["clothing_color"],
    ).render()
    if TEMPLATE_HEADER not in svg:
        raise RuntimeError("python_avatars changed its SVG header; the head can no longer be cropped")
    # Twice the size, then a box average: resvg's own antialiasing at 1x leaves thin lines uneven.
    side = 2 * size
    view_box = " ".join(map(str, CROP))
    svg = svg.replace(TEMPLATE_HEADER, f'width="{side}" height="{side}" viewBox="{view_box}"', 1)
    png = bytes(resvg_py.svg_to_bytes(svg_string=svg, skip_system_fonts=True))
    rgba = np.asarray(Image.open(io.BytesIO(png)).convert("RGBA"), dtype=np.float32)
    alpha = rgba[..., 3:] / 255.0
    flat = rgba[..., :3] * alpha + np.asarray(pick["background"], dtype=np.float32) * (1.0 - alpha)
    return np.rint(flat.reshape(size, 2, size, 2, 3).mean(axis=(1, 3))).astype(np.uint8)


def make_face(seed_and_index: tuple[int, int], size: int = SIZE) -> tuple[np.ndarray, list[int]]:
    """Face ``index`` of the set ``seed``: its (size, size, 3) uint8 picture and its K attribute values."""
    attributes = draw_attributes(np.random.default_rng(seed_and_index))
    return render(attributes, size), [attributes[name] for name in ATTRIBUTES]


def replace_file(path: Path, data: bytes) -> None:
    """Write ``data`` so that a reader sees the old file or the whole new one, never a part."""
    temporary = path.with_name(f"{path.name}.{os.getpid()}.tmp")
    try:
        temporary.write_bytes(data)
        os.replace(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def draw(
    count: int, seed: int, workers: int | None = None, size: int = SIZE, title: str = "faces"
) -> tuple[np.ndarray, np.ndarray]:
    """Images (count, size, size, 3) uint8 and attributes (count, K) int16 of the set ``seed``.

    workers: processes, None for one per core. title: what the progress bar says.
    """
    images = np.empty((count, size, size, 3), dtype=np.uint8)
    attributes = np.empty((count, len(ATTRIBUTES)), dtype=np.int16)
    jobs = ((seed, index) for index in range(count))
    # Not forked: a caller with threads (a benchmark, a test) would leave its locks held in the children.
    with multiprocessing.get_context("spawn").Pool(workers) as pool:
        # Ordered, and in chunks: a face takes milliseconds, so passing them one by one would cost as much.
        faces = pool.imap(functools.partial(make_face, size=size), jobs, chunksize=32)
        for index, (image, values) in enumerate(tqdm(faces, total=count, desc=title, unit="face", disable=None)):
            images[index], attributes[index] = image, values
    return images, attributes


def save(path: str | Path, images: np.ndarray, attributes: np.ndarray, seed: int, **more: np.ndarray) -> None:
    """Write what ``draw`` returned, and ``more`` arrays beside it, into the .npz ``path``."""
    buffer = io.BytesIO()
    np.savez_compressed(
        buffer,
        images=images,
        attributes=attributes,
        attribute_names=np.array(list(ATTRIBUTES)),
        categories=np.array(json.dumps(ATTRIBUTES)),
        seed=np.array(seed, dtype=np.int64),
        **more,
    )
    replace_file(Path(path), buffer.getvalue())


def build(path: str | Path, count: int, seed: int, workers: int | None = None) -> None:
    """Render ``count`` faces of the set ``seed`` into the .npz ``path``; ``workers`` None: one per core."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)  # found out now where it cannot be
    save(path, *draw(count, seed, workers, title=path.name), seed)


def load(path: str | Path) -> AvatarSet:
    """Read what ``save`` wrote."""
    with np.load(path, allow_pickle=False) as stored:
        categories = json.loads(str(stored["categories"]))
        return AvatarSet(
            images=stored["images"],
            attributes=stored["attributes"],
            attribute_names=tuple(str(name) for name in stored["attribute_names"]),
            categories={name: tuple(values) for name, values in categories.items()},
            seed=int(stored["seed"]),
        )


def save_preview(path: str | Path, images: np.ndarray, columns: int = 8, scale: int = 4) -> None:
    """Write the first columns**2 of ``images``, (N, S, S, 3) uint8, as a square PNG of enlarged faces."""
    side = images.shape[1]
    cells = np.full((columns * columns, side, side, 3), 255, dtype=np.uint8)
    shown = images[: len(cells)]
    cells[: len(shown)] = shown
    grid = cells.reshape(columns, columns, side, side, 3).swapaxes(1, 2)
    grid = grid.reshape(columns * side, columns * side, 3).repeat(scale, axis=0).repeat(scale, axis=1)
    buffer = io.BytesIO()
    Image.fromarray(grid).save(buffer, format="PNG", optimize=True)
    replace_file(Path(path), buffer.getvalue())


def main() -> None:
    """Build the training and the held-out set and a preview."""
    parser = argparse.ArgumentParser(description="Make the cartoon face data set.")
    parser.add_argument("--out", type=Path, required=True, metavar="DIR")
    parser.add_argument("--train", type=int, default=24_000, help="faces to train on (default: 24000)")
    parser.add_argument("--heldout", type=int, default=4_000, help="faces to hold out (default: 4000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one per core)")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)  # found out now where it cannot be

    print(f"{count_combinations():,} different faces are possible")
    sets = {"train": (options.train, options.seed)}
    sets["heldout"] = (options.heldout, options.seed + HELDOUT_SEED_OFFSET)
    start = time.perf_counter()
    for name, (count, seed) in sets.items():
        build(options.out / f"{name}.npz", count, seed, options.workers)
    seconds = time.perf_counter() - start
    total = options.train + options.heldout
    print(f"{total:,} faces in {seconds:.0f} s ({1000 * seconds / max(total, 1):.2f} ms a face)")

    train, heldout = (load(options.out / f"{name}.npz") for name in sets)
    # Pixels, not attributes, are compared: a hidden hair colour does not make another face.
    seen = {image.tobytes() for image in train.images}
    repeated = sum(image.tobytes() in seen for image in heldout.images)
    print(f"{repeated} of {len(heldout.images):,} held-out faces are the same picture as a training face")
    save_preview(options.out / "preview.png", train.images)


if __name__ == "__main__":
    main()
