"""config.pbtxt of a bundle: every field that Triton needs, derived from the manifest and a checked choice."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.backends import backend_class
from engine.bundle.examples import examples_of
from engine.bundle.manifest import Manifest
from engine.stages import all_inputs
from engine.triton.pbtxt import Value, Word, entries
from engine.triton.serving import Settled
from engine.triton.tensors import Tensor, inputs_of, outputs_of

KIND = {"cpu": Word("KIND_CPU"), "gpu": Word("KIND_GPU")}
LATEST = {"latest": {"num_versions": 1}}


def model_config(manifest: Manifest, settled: Settled, later: Sequence[Manifest] = ()) -> dict[str, Value]:
    """The fields of the served model: the Python backend drives a Sampler or, with stages after the first, a Cascade."""
    return {
        "name": settled.name,
        "backend": "python",
        "max_batch_size": settled.max_batch,
        "version_policy": LATEST,
        "input": [_tensor(tensor) for tensor in inputs_of(manifest, later)],
        "output": [_tensor(tensor) for tensor in outputs_of(manifest, settled.previews, later)],
        **({"model_transaction_policy": {"decoupled": True}} if settled.previews else {}),
        **_batching(manifest, settled),
        "instance_group": instance_groups(settled),
        "model_warmup": _warmup(manifest, settled, later),
        "parameters": parameters(
            {
                "backend": settled.backend,
                "precision": settled.precision,
                "threads": "auto" if settled.threads is None else str(settled.threads),
                "max_steps": str(settled.max_steps),
            }
        ),
    }


def parameters(values: Mapping[str, str]) -> list[Value]:
    """The field `parameters`: Triton hands them to the backend as strings."""
    return entries({key: {"string_value": value} for key, value in values.items()})


def instance_groups(settled: Settled) -> list[Value]:
    """How many processes serve the model, and where."""
    group: dict[str, Value] = {"count": settled.instances, "kind": KIND[settled.kind]}
    if settled.kind == "gpu" and not backend_class(settled.backend).ON_DEVICE:
        group["gpus"] = [0]  # ONNX Runtime's providers are opened on the first GPU
    return [group]


def _tensor(tensor: Tensor) -> dict[str, Value]:
    optional: dict[str, Value] = {"optional": True} if tensor.optional else {}
    return {"name": tensor.name, "data_type": Word(tensor.kind), "dims": list(tensor.dims), **optional}


def _batching(manifest: Manifest, settled: Settled) -> dict[str, Value]:
    """Requests of several clients wait `delay_us` for each other; a queue that is full refuses.

    The queue's policy never has allow_timeout_override: with it the batcher of Triton 2.51 misses wake-ups, and one request
    in five waits half a second on an idle server.
    """
    queue: dict[str, Value] = {"default_queue_policy": {"max_queue_size": settled.max_queue}} if settled.max_queue else {}
    if settled.max_batch == 1:
        return {"dynamic_batching": queue} if queue else {}
    preferred = preferred_sizes(manifest, settled)
    return {
        "dynamic_batching": {
            **({"preferred_batch_size": preferred} if preferred else {}),
            "max_queue_delay_microseconds": settled.delay_us,
            **queue,
        }
    }


def preferred_sizes(manifest: Manifest, settled: Settled) -> Sequence[int]:
    """Batch sizes worth not waiting beyond: those that a TensorRT plan was tuned for. Elsewhere every size is alike."""
    engines = [e for e in manifest.engines if (e.backend, e.graph) == (settled.backend, manifest.pipeline.step.graph)]
    profile = engines[0].options.get("profile") if engines and backend_class(settled.backend).ON_DEVICE else None
    sizes = profile.get("batch") if isinstance(profile, dict) else None
    if not (isinstance(sizes, list) and len(sizes) == 3 and all(type(size) is int for size in sizes)):
        return []
    return sorted({size for size in sizes[1:] if 1 < size <= settled.max_batch})


def _warmup(manifest: Manifest, settled: Settled, later: Sequence[Manifest]) -> list[Value]:
    """The first request of a shape pays for a runtime's preparations: the smallest and the largest batch run at load.

    Seed 0 at the bundle's recorded setting: what a client gets who asks for nothing else. An error keeps the model away.
    Triton can fill an input with zeros or from a file: where zeros are not allowed, the model's own warm-up must do.
    """
    examples = examples_of(all_inputs((manifest, *later)))
    if examples is None or any(array.any() for array in examples.values()):
        return []
    needed = [tensor for tensor in inputs_of(manifest, later) if not tensor.optional or tensor.name in examples]
    zeros: dict[str, Value] = {
        tensor.name: {"data_type": Word(tensor.kind), "dims": list(tensor.dims), "zero_data": True} for tensor in needed
    }
    sizes = {"one sample": 1} | ({"full batch": settled.max_batch} if settled.max_batch > 1 else {})
    return [{"name": name, "batch_size": size, "inputs": entries(zeros)} for name, size in sizes.items()]
