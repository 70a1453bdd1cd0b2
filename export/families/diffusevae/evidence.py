"""Where answers about a DiffuseVAE model come from, beside its weights: the file's own metadata, a preset, flags."""

from __future__ import annotations

from dataclasses import dataclass

from export.families.diffusevae.presets import Preset, preset
from export.read.evidence import Facts
from export.read.parts import Network, Stage


@dataclass(frozen=True)
class Options:
    """What the user said about the model; None where they said nothing. `schedule` is (beta_1, beta_T, T)."""

    heads: int | None = None
    image_size: int | None = None
    formulation: int | None = None
    schedule: tuple[float, float, int] | None = None
    prediction: str | None = None
    variance: str | None = None
    preset: str | None = None
    name: str | None = None
    vae_enc_blocks: str | None = None
    vae_dec_blocks: str | None = None
    vae_key: str | None = None


@dataclass(frozen=True)
class Evidence(Facts):
    """A file's metadata, the networks found in it, and what was said of them."""

    network: Network
    stage: Stage | None
    options: Options

    @property
    def preset(self) -> Preset | None:
        """The preset that the user named."""
        return preset(self.options.preset) if self.options.preset else None

    @property
    def preset_label(self) -> str:
        """How messages call it."""
        return f"preset {self.options.preset}"
