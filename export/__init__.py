"""From a training checkpoint to a bundle: the only part of the project that knows torch and ONNX."""
