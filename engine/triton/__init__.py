"""Triton Inference Server: a generator of model repositories, and the model that the server runs."""
