"""The torch modules of every family, the graphs that a bundle has of them, and how checkpoints name their weights."""
