"""The UNet of improved-diffusion, guided-diffusion and latent diffusion, which share its code and its keys."""
