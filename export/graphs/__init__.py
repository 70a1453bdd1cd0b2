"""From the two networks to the ONNX graphs of a bundle: what each role computes, its export, and its parity."""
