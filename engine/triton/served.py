"""The class that Triton's Python backend runs: one Sampler, or Cascade, an instance; requests in, responses out."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from time import perf_counter
from typing import Any

from engine.bundle.reader import Bundle
from engine.cascade import Cascade
from engine.errors import EngineError
from engine.sampler import Sampler
from engine.serving.groups import run_all
from engine.serving.warm import Measuring, warm_up
from engine.stages import followed
from engine.triton.answers import Answer
from engine.triton.metrics import Metrics
from engine.triton.numpy_check import check_numpy
from engine.triton.options import check_tensors, read_options
from engine.triton.samples import Reader
from engine.triton.tensors import BUDGET, WORDS


class TritonPythonModel:
    """The class that the server looks for in model.py; it calls these three methods, one at a time."""

    _sampler: Sampler | Cascade | None = None

    def initialize(self, args: Mapping[str, str]) -> None:
        """Open the bundle; what is raised here keeps the model unavailable, and its text is in the server's log."""
        self._server = importlib.import_module("triton_python_backend_utils")  # there is none outside a server
        try:
            check_numpy(self._server)
            options = read_options(args)
            bundle, *later = followed(Bundle.open(options.bundle))
            check_tensors(options.config, bundle.manifest, options.previews, [stage.manifest for stage in later])
            self._streams = options.previews
            self._reader = Reader(
                bundle, limit=options.max_batch, max_steps=options.max_steps, previews=options.previews, later=later
            )
            self._reader.check_defaults()
            offered = {entry["name"] for entry in options.config["input"]}
            if WORDS.name in offered:
                self._reader.check_text()
            machine = (options.backend, options.precision, options.threads)
            sized: dict[str, Any] = {"max_batch": options.max_batch, "device": options.device}
            sampler = Cascade([bundle, *later], *machine, **sized) if later else Sampler(bundle, *machine, **sized)
            self._sampler = sampler
            warm_up(sampler, options.max_batch, self._server.Logger.log_info)
            if BUDGET[0].name in offered and isinstance(sampler, Sampler):
                measuring = Measuring(sampler, range(1, options.max_batch + 1), self._server.Logger.log_info)
                while measuring:
                    measuring.step()
            self._metrics = Metrics(self._server, options.name, args["model_version"])
        except EngineError as error:
            self.finalize()
            raise self._server.TritonModelException(str(error)) from error
        self._server.Logger.log_info(
            f"{options.name}: bundle {bundle.manifest.name} on {self._sampler.backend}, {self._sampler.precision}, threads "
            f"{self._sampler.threads}; batches of up to {options.max_batch}, at most {options.max_steps} steps"
        )

    def execute(self, requests: Sequence[Any]) -> list[Any] | None:
        """One response a request, in order; None for one that was sent already. With previews all are sent."""
        arrived = perf_counter()
        if self._sampler is None:
            raise self._server.TritonModelException("The model is not initialized, or was finalized; load it again.")
        answers = [Answer(request, self._reader, self._server, arrived, self._streams) for request in requests]
        self._server.Logger.log_verbose(f"begins {len(answers)} requests")
        runs = run_all(self._sampler, answers, self._server.Logger.log_info)
        if self._streams:
            for answer in answers:
                answer.send_if_complete()
        responses = [None if answer.sent else answer.response() for answer in answers]
        self._metrics.count(answers, runs)
        return None if self._streams else responses

    def finalize(self) -> None:
        """Free weights and buffers."""
        if self._sampler is not None:
            self._sampler.close()
            self._sampler = None
