"""TensorRT plans, built with or without a GPU."""
