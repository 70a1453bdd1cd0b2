"""A served toy without a server, and requests in one line: how tests load what the generator wrote, and ask it."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np

from engine import Sampler
from engine.triton.repository import write_repository
from engine.triton.served import TritonPythonModel
from engine.triton.serving import Serving
from tests import fake_triton
from tests.fake_triton import Request
from tests.samplers import ANY_BACKEND, bundle

CHOSEN = Serving(max_batch=8, threads=1, backend=ANY_BACKEND, precision="f32", max_steps=50)


class Served:
    """A loaded model and the stand-in for its server."""

    def __init__(self, model: TritonPythonModel, server: Any) -> None:
        self.model, self.server = model, server

    @property
    def sampler(self) -> Sampler:
        assert self.model._sampler is not None
        return self.model._sampler

    def answer(self, *requests: Request) -> list[Any]:
        """The last or only response to each."""
        responses = self.model.execute(requests) or [None] * len(requests)
        assert [response is None for response in responses] == [request.final for request in requests]
        return [response or request.sent[-1] for request, response in zip(requests, responses, strict=True)]

    def one(self, **inputs: np.ndarray) -> dict[str, np.ndarray]:
        found: dict[str, np.ndarray] = self.answer(Request(**inputs))[0].arrays()
        return found

    def refusal(self, **inputs: np.ndarray) -> tuple[int, str]:
        found: tuple[int, str] = self.answer(Request(**inputs))[0].refusal()
        return found


Open = Callable[..., Served]


@contextmanager
def loading(folder: Path) -> Iterator[Open]:
    """open(kind or path, chosen, **changes to the configuration): a model, initialized as a server does."""
    opened: list[TritonPythonModel] = []
    with fake_triton.server() as server:

        def start(source: str | Path = "form1", chosen: Serving = CHOSEN, **changes: Any) -> Served:
            path = bundle(source) if isinstance(source, str) else source
            written = write_repository(path, folder / f"repo{len(opened)}", chosen)
            model = TritonPythonModel()
            opened.append(model)
            model.initialize(fake_triton.arguments(written.model, chosen, **changes))
            return Served(model, server)

        yield start
        for model in opened:
            model.finalize()


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)[:, None]


def int32(*values: int) -> np.ndarray:
    return np.array(values, np.int32)[:, None]


def floats(*values: float) -> np.ndarray:
    return np.array(values, np.float32)[:, None]


def texts(*values: str | bytes) -> np.ndarray:
    return np.array([value if isinstance(value, bytes) else value.encode() for value in values], object)[:, None]


def same(found: dict[str, np.ndarray], batch: Any, rows: slice = slice(None)) -> None:
    """The response holds exactly these rows of a batch, bit for bit."""
    assert set(found) == {"image", "recon", "z"}
    for name, expected in (("image", batch.images), ("recon", batch.start), ("z", batch.values["z"])):
        assert found[name].dtype == expected.dtype
        assert found[name].flags.c_contiguous
        np.testing.assert_array_equal(found[name], expected[rows])


def lone(kind: str = "form1", **options: Any) -> Any:
    """What a Sampler of a toy makes by itself."""
    with Sampler(bundle(kind), ANY_BACKEND, "f32", 1) as sampler:
        return sampler.sample(**options)
