"""Families: how a kind of model is recognised, and the pipeline that its bundles declare.

A new family is one module here, named in FAMILIES, and its torch modules in export/models.
"""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import cast

from export.families.base import Command, Family, FolderFamily
from export.read.checkpoint import Checkpoint

# name -> module, which is a `Family`.
FAMILIES = {
    "diffusevae": "export.families.diffusevae",
    "latent": "export.families.latent",
    "adm": "export.families.adm",
    "sdm": "export.families.sdm",
    "ddgan": "export.families.ddgan",
}
# The order in which they are asked for their claims: DiffuseVAE's networks and those of sdm have keys of adm's. What none
# claims is refused by the last.
ASKED = ("ddgan", "sdm", "adm", "latent", "diffusevae")


def load_family(name: str) -> Family:
    """The module of a family."""
    return cast(Family, importlib.import_module(FAMILIES[name]))


FOLDERS = ("latent",)  # of these, the `FolderFamily`s


def folder_family(path: Path) -> FolderFamily | None:
    """The family whose model a folder is; None for a file, or for a folder of another kind."""
    families = [cast(FolderFamily, load_family(name)) for name in FOLDERS] if path.is_dir() else []
    return next((family for family in families if family.claims_folder(path)), None)


def family_of(checkpoint: Checkpoint) -> Family:
    """The first family that claims a checkpoint; where none does the last one, whose refusal says what it found."""
    families = [load_family(name) for name in ASKED]
    return next((family for family in families if family.claims(checkpoint)), families[-1])


def family_flags(command: Command) -> Command:
    """Add the options of every family to a click command."""
    for name in reversed(FAMILIES):
        command = load_family(name).flags(command)
    return command
