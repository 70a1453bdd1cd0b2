"""What does config.pbtxt say about a bundle? Every field that Triton needs, derived from the manifest and a checked plan."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from engine.backends import GPU_BACKENDS
from engine.bundle.manifest import Manifest
from engine.triton.pbtxt import Value, Word, entries
from engine.triton.serving import Plan
from engine.triton.tensors import Tensor, inputs_of, outputs_of

KIND = {"cpu": Word("KIND_CPU"), "gpu": Word("KIND_GPU")}
LATEST = {"latest": {"num_versions": 1}}


def model_config(manifest: Manifest, plan: Plan) -> dict[str, Value]:
    """The fields of the served model: the Python backend drives a Sampler."""
    return {
        "name": plan.name,
        "backend": "python",
        "max_batch_size": plan.max_batch,
        "version_policy": LATEST,
        "input": [_tensor(tensor) for tensor in inputs_of(manifest.model)],
        "output": [_tensor(tensor) for tensor in outputs_of(manifest.model)],
        **_batching(manifest, plan),
        "instance_group": instance_groups(plan),
        "model_warmup": _warmup(plan),
        "parameters": parameters(
            {
                "backend": plan.backend,
                "precision": plan.precision,
                "threads": "auto" if plan.threads is None else str(plan.threads),
                "max_steps": str(plan.max_steps),
            }
        ),
    }


def parameters(values: Mapping[str, str]) -> list[Value]:
    """The field `parameters`: Triton hands them to the backend as strings."""
    return entries({key: {"string_value": value} for key, value in values.items()})


def instance_groups(plan: Plan) -> list[Value]:
    """How many processes serve the model, and where."""
    group: dict[str, Value] = {"count": plan.instances, "kind": KIND[plan.kind]}
    if plan.kind == "gpu" and plan.backend not in GPU_BACKENDS:
        group["gpus"] = [0]  # ONNX Runtime's providers are opened on the first GPU
    return [group]


def _tensor(tensor: Tensor) -> dict[str, Value]:
    optional: dict[str, Value] = {"optional": True} if tensor.optional else {}
    return {"name": tensor.name, "data_type": Word(tensor.kind), "dims": list(tensor.dims), **optional}


def _batching(manifest: Manifest, plan: Plan) -> dict[str, Value]:
    """Requests of several clients wait `delay_us` for each other; a queue that is full refuses.

    The queue's policy never has allow_timeout_override: with it the batcher of Triton 2.51 misses wake-ups, and one request
    in five waits half a second on an idle server.
    """
    queue: dict[str, Value] = {"default_queue_policy": {"max_queue_size": plan.max_queue}} if plan.max_queue else {}
    if plan.max_batch == 1:
        return {"dynamic_batching": queue} if queue else {}
    preferred = preferred_sizes(manifest, plan)
    return {
        "dynamic_batching": {
            **({"preferred_batch_size": preferred} if preferred else {}),
            "max_queue_delay_microseconds": plan.delay_us,
            **queue,
        }
    }


def preferred_sizes(manifest: Manifest, plan: Plan) -> Sequence[int]:
    """Batch sizes worth not waiting beyond: those that a TensorRT plan was tuned for. Elsewhere every size is alike."""
    engines = [e for e in manifest.engines if (e.backend, e.role) == (plan.backend, "denoiser")]
    profile = engines[0].options.get("profile") if engines and plan.backend in GPU_BACKENDS else None
    sizes = profile.get("batch") if isinstance(profile, dict) else None
    if not (isinstance(sizes, list) and len(sizes) == 3 and all(type(size) is int for size in sizes)):
        return []
    return sorted({size for size in sizes[1:] if 1 < size <= plan.max_batch})


def _warmup(plan: Plan) -> list[Value]:
    """The first request of a shape pays for a runtime's preparations: the smallest and the largest batch run at load.

    Seed 0 at the bundle's recorded setting: what a client gets who asks for nothing else. An error keeps the model away.
    """
    seed: Value = {"data_type": Word("TYPE_INT64"), "dims": [1], "zero_data": True}
    sizes = {"one sample": 1} | ({"full batch": plan.max_batch} if plan.max_batch > 1 else {})
    return [{"name": name, "batch_size": size, "inputs": entries({"seed": seed})} for name, size in sizes.items()]
