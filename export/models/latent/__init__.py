"""The networks of latent diffusion (arXiv 2112.10752): a UNet with transformers, first stages, conditioners."""
