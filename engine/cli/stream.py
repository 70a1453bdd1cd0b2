"""`diffusevae sample` and `interpolate` of many images: in pieces of one batch, each written before the next is made, so
that memory stays bounded."""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import click
import numpy as np

from engine.bundle.manifest import Manifest
from engine.checks import agree_on_count, count_of, input_of
from engine.cli.bulk import Bar
from engine.cli.output import (
    STDOUT,
    declared,
    describe,
    echo_json,
    finish,
    names_of,
    report,
    results_bytes,
    seeds_line,
    write,
)
from engine.cli.terminal import shows_progress
from engine.commands import command
from engine.errors import ArgumentError, EngineError
from engine.imaging import kind_of, save_images
from engine.places import unwritable
from engine.result import U8, Batch, Timings
from engine.sampler import Sampler
from engine.solver.noise import resolve_seeds

AT_ONCE = 4  # batches; a run of no more is one call, held in memory as a whole
_WORDS = "diffusevae.words"
_SEED_END = 2**64
Kind = TypeVar("Kind", bound="Run")


class Resumable(click.Command):
    """A command that knows the words it was given, to print them again with others in their place."""

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Keep the words before click takes them apart."""
        ctx.meta[_WORDS] = tuple(args)
        return super().parse_args(ctx, args)


@dataclass(frozen=True)
class Run:
    """`count` images, of which the first `first` are left out.

    options  of `Sampler.sample`, without n and inputs; the seed is None only where nothing is left out
    inputs   {name: [count or 1, ...]}
    """

    count: int
    first: int
    options: Mapping[str, Any]
    inputs: Mapping[str, np.ndarray]

    @classmethod
    def of(cls: type[Kind], manifest: Manifest, n: int | None, first: int, options: dict[str, Any], **more: Any) -> Kind:
        """Check the numbers and inputs of a command. ArgumentError where they contradict each other."""
        inputs = {spec.name: input_of(spec, options.pop(spec.name)) for spec in manifest.inputs if spec.name in options}
        seed = options["seed"]
        counts = {"n": count_of(n), "seed": len(seed) if isinstance(seed, list) else None}
        count = agree_on_count(counts | {name: len(array) for name, array in inputs.items()}, shared=inputs) or 1
        if first and seed is None:
            raise ArgumentError(f"first: found {first} without a seed, expected that of the run to go on with; add --seed")
        if first >= count:
            raise ArgumentError(f"first is {first}; expected less than the {count} images of the whole run. Lower it.")
        return cls(count, first, options, inputs, **more)

    def make(self, sampler: Sampler, begin: int, end: int, **more: Any) -> Batch:
        """Images begin..end of all. more: options in the place of the run's."""
        seed = self.options["seed"]
        if isinstance(seed, list):
            seed = seed[begin:end]
        elif begin:
            seed = (int(resolve_seeds(seed, 1)[0]) + begin) % _SEED_END
        return sampler.sample(**{**self.options, **self._cut(begin, end), "seed": seed, "n": end - begin, **more})

    def _cut(self, begin: int, end: int) -> dict[str, np.ndarray]:
        return {name: array[begin:end] if len(array) == self.count else array for name, array in self.inputs.items()}


@dataclass(frozen=True)
class Walk(Run):
    """A run of `Sampler.interpolate` from seed to seed; its images share the seed of the noise."""

    ends: tuple[int, int]
    how: Mapping[str, Any]  # mode and prior

    def make(self, sampler: Sampler, begin: int, end: int, **more: Any) -> Batch:
        """Images begin..end of all."""
        options = {**self.options, **self.how, **self._cut(begin, end), **more}
        return sampler.interpolate(*self.ends, self.count, part=(begin, end), **options)


def sample_to(sampler: Sampler, run: Run, *, out: str, with_start: bool, add: bool, as_json: bool) -> None:
    """Make the images of a run, write them to `out` and report them: in one call where they are few, else in pieces."""
    if run.count - run.first <= AT_ONCE * sampler.max_batch:
        batch = run.make(sampler, run.first, run.count)
        finish(sampler, batch, out=out, with_start=with_start, add=add, as_json=as_json, first=run.first)
        return
    if run.options["seed"] is None:
        run = replace(run, options={**run.options, "seed": int(resolve_seeds(None)[0])})
    images = run.count - run.first
    megabytes = results_bytes(sampler.bundle.manifest, images, with_start) / 1e6
    click.echo(f"{images:,} images, {megabytes:,.1f} MB of pixels, {sampler.max_batch} at a time", err=True)
    end, timings, begun = run.first, Timings(), 0
    with closing(Bar(not as_json and shows_progress())) as bar, closing(_place(out, run, with_start)) as place:
        bar.start(run.count, run.first)
        try:
            for batch in _pieces(sampler, run):
                seeds = batch.seeds.tolist()
                begun = seeds[0] if end == run.first else begun
                place.write(batch.images, batch.start if with_start else None, seeds, end)
                end += len(batch)
                timings.add(batch.timings)
                bar.made(len(batch))
        except (KeyboardInterrupt, EngineError, MemoryError) as error:
            if isinstance(error, KeyboardInterrupt):
                raise KeyboardInterrupt(place.stop(end)) from error
            if end > run.first:
                bar.note(f"stopped; {place.stop(end)}")
            raise
        files = place.finish()
    _report(sampler, run, begun, replace(batch, timings=timings), files, as_json)


def _pieces(sampler: Sampler, run: Run) -> Iterator[Batch]:
    for begin in range(run.first, run.count, sampler.max_batch):
        yield run.make(sampler, begin, min(begin + sampler.max_batch, run.count), progress=False)


def _report(sampler: Sampler, run: Run, begun: int, last: Batch, files: list[Path], as_json: bool) -> None:
    """The report of all pieces; begun: the first seed; last: the last piece, with the timings of all."""
    listed = run.options["seed"] if isinstance(run.options["seed"], list) else None
    ends = {"first": begun, "last": int(last.seeds[-1])}
    count = run.count - run.first
    if not as_json:
        line = f"{begun}, for all {count}" if begun == ends["last"] else f"{begun} to {ends['last']}"
        report(sampler, last, files, seeds_line(listed[run.first :]) if listed else line)
        return
    values = {name: last.values[name] for name in declared(sampler, last)}
    inputs = {name: f"{value.dtype.name} {[count, *value.shape[1:]]}" for name, value in values.items()}
    seeds = listed[run.first :] if listed else ends
    echo_json({**describe(sampler, last, files), "n": count, "seeds": seeds, "inputs": inputs})


def _resume(run: Run, end: int, out: str | None = None) -> str:
    """The command that was given, so that it goes on with image `end`; with the seed, where it was drawn."""
    words = list(click.get_current_context().meta[_WORDS])
    more = ["--first", str(end)] if out is None else ["--first", str(end), "--out", out]
    kept = _without(words, more[::2])
    if not any(word.partition("=")[0] == "--seed" for word in words):
        more = ["--seed", str(run.options["seed"]), *more]
    at = kept.index("--") if "--" in kept else len(kept)
    return command(str(click.get_current_context().info_name), *kept[:at], *more, *kept[at:])


def _without(words: list[str], options: list[str]) -> list[str]:
    """The words of a command line without these options and their values."""
    kept, skip = [], False
    for word in words:
        if skip or word.partition("=")[0] in options:
            skip = not skip and word in options
        else:
            kept.append(word)
    return kept


class _Folder:
    """A folder of PNG files."""

    def __init__(self, out: str, run: Run) -> None:
        self.out, self.run = out, run

    def write(self, images: U8, start: U8 | None, seeds: list[int], first: int) -> None:
        """Write a piece; `first` is the index of its first image."""
        save_images(self.out, images, start=start, names=list(names_of(seeds, first)), add=True)

    def finish(self) -> list[Path]:
        """The folder: its files may be a million."""
        return [Path(self.out)]

    def stop(self, end: int) -> str:
        """What is kept of images up to `end`, and how to go on."""
        return f"{self.out} holds {end} of {self.run.count} images; go on with: {_resume(self.run, end)}"

    def close(self) -> None:
        """Nothing is open."""


class _Arrays:
    """A .npy array, and NAME.start.npy beside it, under other names until they are finished."""

    def __init__(self, out: str, run: Run, with_start: bool) -> None:
        self.target, self.run = Path(out), run
        targets = [self.target, self.target.with_suffix(".start.npy")] if with_start else [self.target]
        self.shape: tuple[int, ...] = ()
        with _writing(self.target):
            self.target.parent.mkdir(parents=True, exist_ok=True)
            # Without a buffer: what does not fit on a disk is then not tried again when the file is closed.
            self.files = {target: target.with_name(f".{target.name}.part").open("wb", buffering=0) for target in targets}

    def write(self, images: U8, start: U8 | None, seeds: list[int], first: int) -> None:
        """Append a piece; `first` is the index of its first image."""
        with _writing(self.target):
            if not self.shape:
                self.shape = images.shape[1:]
                self._head(self.run.count - self.run.first)
            for file, stack in zip(self.files.values(), (images, start), strict=False):
                left = memoryview(b"" if stack is None else stack.tobytes())
                while left:
                    left = left[file.write(left) :]

    def finish(self) -> list[Path]:
        """Give the arrays their names."""
        with _writing(self.target):
            for target, file in self.files.items():
                file.close()
                os.replace(file.name, target)
        return list(self.files)

    def stop(self, end: int) -> str:
        """Keep the images up to `end` as an array of so many; how to make the others."""
        made = end - self.run.first
        if not made:
            return f"nothing was made; the same again: {_resume(self.run, end)}"
        with _writing(self.target):
            at = self._head(made)
            for file in self.files.values():
                file.truncate(at + made * math.prod(self.shape))
        self.finish()
        rest = self.target.with_name(f"{self.target.stem}-from{end}.npy")
        return f"{self.target} holds {made} images; make the others with: {_resume(self.run, end, str(rest))}"

    def close(self) -> None:
        """Remove what was not finished."""
        for file in self.files.values():
            file.close()
            Path(file.name).unlink(missing_ok=True)

    def _head(self, count: int) -> int:
        """Write the headers for so many images: 128 bytes whatever the count, as numpy pads them; where the images begin."""
        for file in self.files.values():
            file.seek(0)
            header = {"descr": "|u1", "fortran_order": False, "shape": (count, *self.shape)}
            np.lib.format.write_array_header_1_0(file, header)
        return file.tell()


class _Grid:
    """One PNG of all images, whose size is limited before the work (engine/imaging/write.py)."""

    def __init__(self, out: str) -> None:
        self.out = out
        self.images: list[U8] = []
        self.starts: list[U8] = []

    def write(self, images: U8, start: U8 | None, seeds: list[int], first: int) -> None:
        """Keep a piece until all are there."""
        self.images.append(images)
        if start is not None:
            self.starts.append(start)

    def finish(self) -> list[Path]:
        """Write the grid."""
        start = np.concatenate(self.starts) if self.starts else None
        return write(self.out, np.concatenate(self.images), start, [])

    def stop(self, end: int) -> str:
        """What is lost."""
        return "nothing was written, as a grid needs all its images: give a folder or a .npy to keep what is done"

    def close(self) -> None:
        """Nothing is open."""


def _place(out: str, run: Run, with_start: bool) -> _Folder | _Arrays | _Grid:
    kind = ".png" if out == STDOUT else kind_of(out)
    if kind == ".npy":
        return _Arrays(out, run, with_start)
    return _Grid(out) if kind else _Folder(out, run)


@contextmanager
def _writing(target: Path) -> Iterator[None]:
    """A disk that is full is an ArgumentError."""
    try:
        yield
    except OSError as error:
        raise unwritable(target, error) from error
