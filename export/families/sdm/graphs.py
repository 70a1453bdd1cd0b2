"""The graphs of a semantic diffusion model: signatures, and in which precision each may be computed.

    label_map       labels, (instances) -> segmap      one-hot, and the edges of instances where the network knows them
    modulation      segmap -> modulation               gamma and beta of all norms over maps of up to 64 x 64
    timestep_table  timesteps -> rows
    denoiser        x, (segmap), (modulation), row -> eps, or what else it predicts, and range; segmap for larger maps
    renormalizer    x0 -> renormalized                 only where channels are to be brought to a mean and a deviation
"""

from __future__ import annotations

from engine.bundle.tensors import TensorSpec
from export.families.adm.architecture import Architecture
from export.families.adm.graphs import EXACT, table_of
from export.families.sdm.architecture import HOISTED, Labels
from export.graphs.roles import Role, tensor
from export.models.openai.graphs import MappedDenoiser, Renormalizer
from export.models.openai.spade import LabelMap, Modulation, modulation_width
from export.models.openai.unet import OpenAIUNet

INSTANCES = 65535.0  # the largest id: those of 16-bit pictures


def roles(of: Architecture, labels: Labels, unet: OpenAIUNet) -> dict[str, Role]:
    """The graphs of a bundle by name, in the order in which sampling uses them."""
    height, width = of.size
    spec, state = of.unet, ("batch", of.unet.channels, height, width)
    segmap = tensor("segmap", ("batch", spec.map_channels or 0, height, width), range=(0.0, 1.0))
    spades = unet.spades()
    hoisted = [(spade, factor) for spade, factor in spades if height // factor * (width // factor) <= HOISTED]
    label_map = LabelMap(labels.classes, edges=labels.edges)
    result = [Role("label_map", label_map, given(of, labels), (segmap,), compute=EXACT)]
    conds: tuple[TensorSpec, ...] = () if len(hoisted) == len(spades) else (segmap,)
    if hoisted:
        modulation = tensor("modulation", ("batch", modulation_width(hoisted, of.size)))
        result.append(Role("modulation", Modulation(hoisted), (segmap,), (modulation,), compute=EXACT))
        conds = (*conds, modulation)
    table = table_of(of, unet)
    (rows,) = table.outputs
    gives = (tensor(of.prediction, state), *((tensor("range", state),) if spec.learned_variance else ()))
    made_from = min((factor for _, factor in hoisted), default=1 << len(spec.channel_mult))
    takes = (tensor("x", state), *conds, tensor("row", (1, rows.shape[-1])))
    result += [table, Role("denoiser", MappedDenoiser(unet, made_from), takes, gives)]
    if labels.moments is not None:
        ports = (tensor("x0", state),), (tensor("renormalized", state),)
        result.append(Role("renormalizer", Renormalizer(*labels.moments), *ports, compute=EXACT))
    return {role.name: role for role in result}


def given(of: Architecture, labels: Labels) -> tuple[TensorSpec, ...]:
    """What a request says: the label of every pixel, and where the network knows edges its instance."""
    shape = ("batch", *of.size)
    instances = (tensor("instances", shape, "int64", (0.0, INSTANCES)),) if labels.edges else ()
    return (tensor("labels", shape, "int64", (0.0, labels.classes - 1.0)), *instances)
