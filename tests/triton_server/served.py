"""The models of the integration tests' repository, and their limits."""

from __future__ import annotations

from engine.triton.serving import Serving

DELAY_US = 100_000  # so long that requests sent at the same moment meet in the queue
SHARED = {"narrow": "toy", "streams": "toy"}  # bundles that a second model serves
MANY_STEPS = 1000  # a run that takes seconds, to be interrupted

SERVED = {
    "faces": Serving("faces", 8, DELAY_US, threads=1, backend="native", precision="bf16", max_steps=MANY_STEPS),
    "toy": Serving("toy", max_batch=4, delay_us=0, threads=1, backend="onnxruntime", max_steps=MANY_STEPS),
    "plain": Serving("plain", 4, delay_us=0, instances=2, threads=1, backend="onnxruntime"),
    "latents": Serving("latents", 8, DELAY_US, threads=1, backend="onnxruntime", max_steps=MANY_STEPS),
    "narrow": Serving("narrow", max_batch=1, threads=1, backend="onnxruntime", max_steps=MANY_STEPS, max_queue=2),
    "streams": Serving("streams", 4, DELAY_US, threads=1, backend="onnxruntime", max_steps=MANY_STEPS, previews=True),
    "cascade": Serving("cascade", 4, DELAY_US, threads=1, backend="onnxruntime", max_steps=MANY_STEPS),
    "guided": Serving("guided", 4, delay_us=0, threads=1, backend="onnxruntime", max_steps=MANY_STEPS),
    "nan": Serving("nan", max_batch=4, threads=1, backend="onnxruntime"),
}
