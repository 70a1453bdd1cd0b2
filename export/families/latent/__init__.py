"""Latent diffusion: a denoiser in the latent space of an autoencoder (Rombach et al. 2022, https://arxiv.org/abs/2112.10752).

config.py         the model that a YAML describes;  fields.py: how it is read;  conditioning.py: its conditioner
weights.py        the weights of a checkpoint, sorted and checked
published.py      the configurations of the published models, recognised by shapes
diffusers_folder.py  both from a folder of diffusers;  diffusers_keys.py: its keys for those here
"""
