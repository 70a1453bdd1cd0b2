"""The two networks of DiffuseVAE, and how foreign checkpoints name their weights."""
