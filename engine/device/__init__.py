"""CUDA without a framework: context and driver, memory, streams and captured graphs, arrays that others may hold."""
