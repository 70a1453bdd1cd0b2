"""Keys of a state dict without the names that wrappers put into them.

Compiling, sharding, checkpointing and averaging wrap a module, any of a model's, and each wrapper's attribute becomes part
of the keys below: `target_network.decoder._orig_mod.input_blocks.0.0.weight`. No list of such names would be complete, so
what is known is the model's own keys: a name that belongs to none of them is left out where the rest is one.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch

from engine.errors import CheckpointError

NETWORKS = ("online_network", "target_network")
# The constants that the reference registers beside a network; betas and post_coeff_3 are read, the rest follows from them.
BUFFERS = frozenset(
    [
        *("betas", "sqrt_alpha_bar", "minus_sqrt_alpha_bar", "sqrt_recip_alphas_cumprod", "sqrt_recipm1_alphas_cumprod"),
        *("post_variance", "post_log_variance_clipped", "post_coeff_1", "post_coeff_2", "post_coeff_3"),
    ]
)
_N, _LEAF = r"\d{1,4}", r"\.(?:weight|bias)"
_OPENAI = r"(?:(?:in_layers|emb_layers|out_layers)\.\d|skip_connection|norm|qkv|proj_out|op|conv)"
_DDIM = r"(?:norm1|norm2|conv1|conv2|temb_proj|nin_shortcut|conv_shortcut|norm|q|k|v|proj_out)"
_UNET = "|".join(
    [
        rf"(?:time_embed|proj|out|temb\.dense)\.{_N}{_LEAF}",
        rf"input_blocks\.0\.0{_LEAF}",
        r"label_emb\.weight",
        rf"out\.2\.(?:positional_embedding|(?:qkv_proj|c_proj){_LEAF})",  # of a classifier's pool
        rf"(?:input_blocks\.{_N}|output_blocks\.{_N}|middle_block)\.{_N}\.{_OPENAI}{_LEAF}",
        rf"(?:conv_in|conv_out|norm_out){_LEAF}",
        rf"(?:down|up)\.{_N}\.(?:(?:block|attn)\.{_N}\.{_DDIM}|(?:downsample|upsample)\.conv){_LEAF}",
        rf"mid\.(?:block_1|block_2|attn_1)\.{_DDIM}{_LEAF}",
    ]
)
_VAE = rf"(?:enc|dec)\.block_mod\.{_N}(?:\.c[1-4])?{_LEAF}|(?:enc\.(?:in_conv|mu|logvar)|dec\.last_conv){_LEAF}"
_NAMED = rf"(?:(?:{'|'.join(NETWORKS)})\.)?"
NETWORK, STAGE, CONSTANTS = PARTS = ("network", "first stage", "constants")
_PATTERNS = {
    NETWORK: re.compile(rf"{_NAMED}(?:decoder\.)?(?:{_UNET})"),
    STAGE: re.compile(rf"(?:vae\.)?(?:{_VAE})"),
    CONSTANTS: re.compile(rf"{_NAMED}(?:{'|'.join(sorted(BUFFERS))})"),
}
WORDS = frozenset(re.findall(r"[a-z]\w*", re.sub(r"\\.", " ", f"{_UNET} {_VAE} decoder vae"))) | BUFFERS | {
    *NETWORKS, *("c1", "c2", "c3", "c4"),
}  # fmt: skip
# Parts of other models. Seen through, their keys could pass for this one's.
FOREIGN = frozenset(
    [
        *("diffusion_model", "first_stage_model", "cond_stage_model", "encoder", "quant_conv", "post_quant_conv", "fc"),
        *("down_blocks", "up_blocks", "transformer_blocks", "transformer", "text_model", "classifier", "synthesis"),
        *("mapping", "discriminator"),
    ]
)
KEPT = frozenset((*NETWORKS, "vae"))
COUNTERS = frozenset(("n_averaged", "num_updates", "initted", "step", "decay"))  # of wrappers that average


@dataclass(frozen=True)
class SeenThrough:
    """Tensors by the model's own keys, in the file's order, and the file's key of each."""

    tensors: dict[str, torch.Tensor]
    spelled: dict[str, str] = field(repr=False)

    def prefix(self, prefix: str) -> str:
        """How the file spells a prefix of the model's own keys, such as "vae."; what wraps all of a part belongs to it."""
        key = next((key for key in self.tensors if key.startswith(prefix)), None)
        if key is None:
            return prefix
        words, rest = self.spelled[key].split("."), key[len(prefix) :].split(".")
        index = len(words)
        for word in reversed(rest):
            index = next((i for i in range(index - 1, -1, -1) if words[i] == word), 0)
        return "".join(f"{word}." for word in words[:index])


def own_key(key: str) -> str | None:
    """The model's own key inside a file's; None where there is none, or more than one answer."""
    if _is_own(key):
        return key
    words = key.split(".")
    if len(words) > 64 or not FOREIGN.isdisjoint(words):
        return None
    known = [word for word in words if word in WORDS or word.isdigit()]
    while known and known[0].isdigit():
        del known[0]  # a wrapper that is a list has numbers for names
    found = ".".join(known)
    if _is_own(found):
        return found
    # A wrapper may bear the name of a part: one such name too many can be told, as long as the rest is clear.
    fewer = (".".join(known[:i] + known[i + 1 :]) for i, word in enumerate(known) if not word.isdigit() and word not in KEPT)
    answers = {text for text in fewer if _is_own(text)}
    return answers.pop() if len(answers) == 1 else None


def _is_own(key: str) -> bool:
    return any(pattern.fullmatch(key) for pattern in _PATTERNS.values())


def part_of(key: str) -> str | None:
    """The part of the model that a file's key belongs to: one of PARTS, or None."""
    own = own_key(key)
    return None if own is None else next(part for part, pattern in _PATTERNS.items() if pattern.fullmatch(own))


def wrapper_of(key: str) -> str:
    """What stands before the model's own key in a file's: "ema.module" of "ema.module.decoder.out.2.bias"."""
    own, words = own_key(key), key.split(".")
    return "" if own is None else ".".join(words[: words.index(own.split(".")[0])])


def see_through(tensors: Mapping[str, torch.Tensor], path: Path) -> SeenThrough:
    """Leave out what wrappers put into keys; CheckpointError, with both, for two that would become one."""
    own = {key: own_key(key) for key in tensors}
    common = _common_wrapper(own)
    spelled: dict[str, str] = {}
    for key, found in own.items():
        if found is None and tensors[key].numel() == 1 and key.rpartition(".")[2] in COUNTERS:
            continue
        name = found or key.removeprefix(common)
        if name in spelled:
            raise CheckpointError(
                f"{path}: found {spelled[name]} and {key}, which are both {name} once the names of wrappers are left out, "
                "expected one of them; name the prefix of the weights that are meant with --key"
            )
        spelled[name] = key
    return SeenThrough({name: tensors[key] for name, key in spelled.items()}, spelled)


def _common_wrapper(keys: Iterable[str]) -> str:
    """The usual wrappers' names where they stand before every key, for keys that are not the model's own."""
    names, result = list(keys), ""
    usual = [f"{name}." for name in ("module", "_forward_module", "_orig_mod")]
    while found := next((w for w in usual if names and all(n.startswith(result + w) for n in names)), ""):
        result += found
    return result
