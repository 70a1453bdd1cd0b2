"""ONNX graphs of a bundle: signatures, export, parity with torch, and the whole sampler as one."""
