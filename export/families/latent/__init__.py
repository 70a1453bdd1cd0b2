"""Latent diffusion: a denoiser of the latents of an autoencoder."""
