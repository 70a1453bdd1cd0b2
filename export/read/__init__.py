"""Reading checkpoints: files that are untrusted, the networks inside them, and what they say of themselves."""
