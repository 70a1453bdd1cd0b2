"""The sets of weights inside what was saved, and the one that is meant.

People save {"step", "model", "ema", "opt"}, lists of state dicts, whole modules, averages that are lists in the order of the
parameters. Every set of tensors by name is a candidate under its path, such as "ema.module"; optimizers have none.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from engine.commands import command
from engine.errors import ArgumentError, CheckpointError, did_you_mean
from export.read.pickles import StandIn
from export.read.torch_file import StoredTensor, numpy_value
from export.read.wrappers import CONSTANTS, NETWORK, NETWORKS, STAGE, own_key, part_of, wrapper_of

Leaf = StoredTensor | torch.Tensor
MAX_DEPTH, MAX_KEYS = 16, 1_000_000
AVERAGES = re.compile(r"(?i:(?:^|[^a-z])(?:ema|swa|polyak|avg)|shadow|averag|target_network)|[a-z](?:Ema|EMA)")
TRAINED = re.compile(r"(?i:online)")  # beside an average, inside the object that keeps both
BACKUPS = ("backup", "collected_params", "temp_stored_params")  # where averages keep the weights while they stand in
ROOT = "."  # how --key calls what is saved itself
SHOWN = 8


@dataclass(frozen=True)
class Candidate:
    """A set of weights: `state` by name, or `order`, a list without names.

    words: the keys that lead to it from the outermost container; access: the same as Python spells it, "['ema'].module".
    """

    words: tuple[str, ...]
    access: str
    state: Mapping[Any, Any] = field(repr=False, default_factory=dict)
    order: Sequence[Leaf] = field(repr=False, default=())

    @property
    def path(self) -> str:
        """Its name for --key."""
        return ".".join(self.words) or ROOT

    @property
    def count(self) -> int:
        """How many tensors it has."""
        return len(self.order) or sum(is_leaf(value) for value in self.state.values())

    @property
    def is_average(self) -> bool:
        """Whether its name or its keys say that it holds a moving average."""
        return self._is_named_so() or self._has(NETWORKS[1])

    @property
    def is_online(self) -> bool:
        """Whether it may hold the weights themselves."""
        return not self._is_named_so() and (self._has(NETWORKS[0]) or not self._has(NETWORKS[1]))

    def has(self, part: str) -> bool:
        """Whether a weight of this part of a known model is in it."""
        return any(isinstance(key, str) and part_of(key) == part for key in self.state)

    def _is_named_so(self) -> bool:
        """By the innermost name that says anything: "ema.online_model" is none."""
        signs = ((AVERAGES.search(word), TRAINED.search(word)) for word in reversed(self.words))
        return next((bool(average) for average, trained in signs if average or trained), False)

    def _has(self, network: str) -> bool:
        return any(isinstance(key, str) and (own_key(key) or "").startswith(f"{network}.") for key in self.state)


def is_leaf(value: Any) -> bool:
    """Whether this is a tensor, in memory or in the file."""
    return isinstance(value, (StoredTensor, torch.Tensor))


def select(
    path: Path, content: Any, weights: str, key: str | None, part: str, flag: str
) -> tuple[dict[str, Leaf], str, list[str]]:
    """The tensors of the candidate that is meant, its path, and sentences on what was taken from others.

    weights: "ema" or "online", decides where names say which is which; key: the path of the candidate, decides before all;
    part: the part of the model that is looked for; flag: how messages call the option for `key`. CheckpointError with the
    list where there is no telling.
    """
    everything = list(_walk(path, content))
    if not everything:
        raise CheckpointError(f"{path}: {_without_weights(content)}")
    meant = [one for one in everything if not one.words or one.words[-1] not in BACKUPS]
    known = [one for found in meant for one in _networks(found, part) if one.has(part)]
    lists = [one for one in meant if one.order and any(_names_of(one, base) for base in known)]
    whole = [one for one in everything if one.words in ((), ("state_dict",)) and one.state]
    found = [*known, *lists] or whole[-1:] or everything
    chosen = _choose(path, found, meant, weights, flag) if key is None else _named(path, everything, key, part, flag)
    state, notes = _leaves(path, chosen), []
    others = [one for one in known if one is not chosen]
    if chosen.order:
        state, base = _with_names(path, chosen, others)
        notes.append(f"{chosen.path} has no names: they are those of {base.path}, whose shapes in their order are the same")
    elif (base := next((one for one in others if _completed(state, _leaves(path, one))), None)) is not None:  # type: ignore
        state = _completed(state, _leaves(path, base))
        notes.append(f"{chosen.path} has parameters of the network only: constants and the rest are those of {base.path}")
    if part != STAGE and not any(part_of(name) == CONSTANTS for name in state):
        state, more = _with_constants(state, everything)
        notes += more
    stages = [one for one in everything if one.has(STAGE) and not one.has(part)]
    if part != STAGE and len(stages) == 1 and not any(part_of(name) == STAGE for name in state):
        stage = {own_key(name) or name: value for name, value in _leaves(path, stages[0]).items()}
        state = state | {f"vae.{name.removeprefix('vae.')}": value for name, value in stage.items()}
        notes.append(f"the first stage is that of {stages[0].path}")
    return state, chosen.path, notes


def _walk(path: Path, content: Any) -> Iterator[Candidate]:
    """Every set of tensors in a tree, outer ones first. Trees may share branches: each is visited once."""
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], str, Any]] = [((), "", content)]
    for words, access, value in waiting:
        if id(value) in seen or len(words) > MAX_DEPTH or isinstance(value, (str, bytes)):
            continue
        seen.add(id(value))
        if isinstance(value, StandIn) and (state := _module_state(path, value)):
            yield Candidate(words, f"{access}.state_dict()", state)
            continue
        for entries, spell in _mappings(value):
            if {"param_groups", "state"} <= {key for key in entries if isinstance(key, str)}:
                continue
            leaves = {key: _as_leaf(entry) for key, entry in entries.items()}
            if any(isinstance(key, str) and (is_leaf(entry) or _needs_code(entry)) for key, entry in leaves.items()):
                yield Candidate(words, access if isinstance(value, dict) else f"{access}.__dict__", leaves)
            inner = ((key, entry) for key, entry in leaves.items() if isinstance(entry, (dict, list, tuple, StandIn)))
            waiting += [((*words, str(key)), f"{access}{spell(key)}", entry) for key, entry in inner]
        elements = value.elements if isinstance(value, StandIn) else value if isinstance(value, (list, tuple)) else ()
        if len(elements) > 1 and all(map(is_leaf, elements)):
            yield Candidate(words, access, order=elements)
            continue
        if elements and all(map(_is_named, elements)):
            yield Candidate(words, f"dict({access})", dict(elements))
            continue
        inner = ((i, entry) for i, entry in enumerate(elements) if isinstance(entry, (dict, list, tuple, StandIn)))
        waiting += [((*words, str(i)), f"{access}[{i}]", entry) for i, entry in inner]


def _mappings(value: Any) -> Iterator[tuple[Mapping[Any, Any], Callable[[Any], str]]]:
    """The entries of a dict, of an object that was one, and the attributes of an object."""
    entries = value if isinstance(value, dict) else value.entries if isinstance(value, StandIn) else {}
    if entries:
        yield entries, lambda key: f"[{key!r}]"
    attributes = value.state if isinstance(value, StandIn) else None
    for state in attributes if isinstance(attributes, tuple) else (attributes,):
        if isinstance(state, dict):
            yield state, lambda key: f".{key}"


def _is_named(value: Any) -> bool:
    """Whether this is a tensor with its name, as in a list of named_parameters()."""
    return isinstance(value, tuple) and len(value) == 2 and isinstance(value[0], str) and is_leaf(value[1])


def _as_leaf(value: Any) -> Any:
    """An array of NumPy as a tensor; anything else as it is."""
    if isinstance(value, StandIn) and (array := numpy_value(value)) is not None and array.ndim:
        return torch.from_numpy(array)
    return value


def _module_state(path: Path, module: StandIn) -> dict[str, Any]:
    """The state dict of a pickled torch module, from what it would have had as attributes; {} for another object."""
    result: dict[str, Any] = {}
    waiting: list[tuple[str, Any]] = [("", module)]
    for prefix, value in waiting:
        attributes = value.state if isinstance(value, StandIn) else None
        if not isinstance(attributes, dict) or not {"_parameters", "_modules"} <= attributes.keys():
            continue
        hidden = attributes.get("_non_persistent_buffers_set")
        for group in ("_parameters", "_buffers"):
            entries = attributes.get(group)
            for key, entry in entries.items() if isinstance(entries, dict) else ():
                if is_leaf(entry) and not (isinstance(hidden, list) and key in hidden):
                    result[f"{prefix}{key}"] = entry
        inner = attributes["_modules"]
        waiting += [(f"{prefix}{key}.", child) for key, child in inner.items()] if isinstance(inner, dict) else []
        if len(waiting) + len(result) > MAX_KEYS or len(prefix) > 1000:
            raise CheckpointError(
                f"{path}: found a pickled module of more than {MAX_KEYS} parts or nested without end, expected a model; "
                "save its state_dict()"
            )
    return result


def _networks(one: Candidate, part: str) -> list[Candidate]:
    """A state dict that holds a model twice, each under a name of its own ("model.…", "model_ema.…"), as one for each.

    What stands there once and under no such name, as a first stage does, belongs to each of them.
    """
    wrappers = {key: wrapper_of(key) for key in one.state if isinstance(key, str) and own_key(key)}
    clashes = {key for key, count in Counter(map(own_key, wrappers)).items() if count > 1}
    if not clashes:
        return [one]
    if part == STAGE and not any(part_of(str(key)) == STAGE for key in clashes):
        stage = {key: value for key, value in one.state.items() if key in wrappers and part_of(key) == STAGE}
        return [Candidate(one.words, one.access, stage)]
    bare = {key: one.state[key] for key, wrapper in wrappers.items() if not wrapper}
    shared = {key: value for key, value in bare.items() if key not in clashes and part_of(key) != NETWORK}
    named = [_under(one, name) for name in dict.fromkeys(filter(None, wrappers.values()))]
    found = [Candidate(each.words, each.access, {**shared, **each.state}) for each in named]
    return [*([Candidate(one.words, one.access, bare)] if len(bare) > len(shared) else []), *found]


def _under(one: Candidate, prefix: str) -> Candidate:
    """The part of a candidate whose keys begin with a prefix, without it."""
    cut = len(prefix) + 1
    state = {k[cut:]: value for k, value in one.state.items() if isinstance(k, str) and k.startswith(f"{prefix}.")}
    return Candidate((*one.words, prefix), one.access, state)


def _choose(
    path: Path, found: Sequence[Candidate], meant: Sequence[Candidate], weights: str, flag: str
) -> Candidate:
    """The one of `found` that names tell; `meant` has those, too, whose keys are no known model's."""
    fits = [one for one in found if (one.is_average if weights == "ema" else one.is_online)]
    if weights == "online" and len(fits) > 1:  # what an averaging object keeps is a copy
        fits = [one for one in fits if not AVERAGES.search(" ".join(one.words))] or fits
    if weights == "ema" and not fits:
        unread = next((one for one in meant if one.is_average and 2 * one.count > found[0].count), None)
        if unread is not None and unread not in found:
            raise CheckpointError(
                f"{path}: found {unread.path}, {unread.count} tensors that should be the average by their name and belong "
                f"to no known model by theirs, beside {found[0].path}; expected the same keys; save the averaged model's "
                "state_dict(), or build with --weights online"
            )
        fits = list(found)  # no name says "average": a file with just one set has no choice to offer
    if len(fits) == 1:
        return fits[0]
    listing = "; ".join(f"{one.path} ({one.count} tensors)" for one in found[:SHOWN])
    listing += f"; and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
    cure = f"{flag} {found[0].path}" if flag != "--key" else command("build", path, flag, (fits or list(found))[0].path)
    raise CheckpointError(
        f"{path}: found {len(found)} set{'s' if len(found) > 1 else ''} of weights: {listing}, and no sign which of them "
        f"is the {weights} one, expected one; choose it with {flag}, such as: {cure}"
    )


def _named(path: Path, everything: Sequence[Candidate], key: str, part: str, flag: str) -> Candidate:
    """The candidate of this path; what stands behind its path may be a prefix of its keys."""
    for each in [*everything, *(network for one in everything for network in _networks(one, part))]:
        if each.path == key:
            return each
    for one in everything:
        inner = key if one.path == ROOT else key.removeprefix(f"{one.path}.")
        if (one.path == ROOT or inner != key) and _under(one, inner).state:
            return _under(one, inner)
    paths = [one.path for one in everything]
    raise ArgumentError(
        f"{flag}: found {key!r}, expected one of the sets of weights in {path}: {', '.join(paths[:SHOWN])}."
        f"{did_you_mean(key, paths)}"
    )


def _leaves(path: Path, one: Candidate) -> dict[str, Leaf]:
    """The tensors by key; CheckpointError where a weight is something else. What is beside the weights is left out."""
    result: dict[str, Leaf] = {}
    for key, value in one.state.items():
        if isinstance(key, str) and is_leaf(value):
            result[key] = value
        elif isinstance(key, str) and isinstance(value, StandIn) and (own_key(key) or _needs_code(value)):
            raise CheckpointError(f"{path}: {_why_not(path, one, key, value)}")
        elif is_leaf(value) or (isinstance(key, str) and own_key(key)):
            kind = "tensor" if is_leaf(value) else type(value).__name__
            name = key.name if isinstance(key, StandIn) else repr(str(key)[:80])
            raise CheckpointError(
                f"{path}: found {kind} under the key {name}, expected a tensor under a text key; save "
                "module.state_dict() alone"
            )
    return result


def _needs_code(value: Any) -> bool:
    """Whether this is a tensor that torch would make by code: sparse, quantised, sharded over devices."""
    return isinstance(value, StandIn) and value.made and value.name.startswith(("torch._utils.", "torch._tensor."))


def _why_not(path: Path, one: Candidate, key: str, value: StandIn) -> str:
    """Why a weight cannot be read, and the line that turns it into one that can where its class is at hand."""
    line = (
        f"import torch; state = torch.load({str(path)!r}, map_location='cpu', weights_only=False){one.access}; "
        "torch.save({k: v.detach().to_dense().clone() for k, v in state.items() if torch.is_tensor(v)}, 'plain.pt')"
    )
    return (
        f"found that the weight {key!r} is made by {value.name}, expected numbers: a pickle can run code, so none is run. "
        f'If you trust the file, write plain tensors where it was made: python -c "{line}"'
    )


def _without_weights(content: Any) -> str:
    shown = f"keys {[str(key) for key in list(content)[:5]]}" if isinstance(content, dict) else "no dict"
    kind = content.name if isinstance(content, StandIn) else type(content).__name__
    return (
        f"found a {kind} without weights ({shown}), expected a state dict or {{'state_dict': …}}; save module.state_dict()"
    )


def _with_constants(state: dict[str, Leaf], everything: Sequence[Candidate]) -> tuple[dict[str, Leaf], list[str]]:
    """The weights and the schedule's constants that lie elsewhere in the file, where there is one such place."""
    found = [(one, {own: value for key, value in one.state.items() if (own := _constant(key, value))}) for one in everything]
    places = [(one, constants) for one, constants in found if "betas" in constants]
    if len(places) != 1:
        return state, []
    (one, constants), names = places[0], {(own_key(key) or "").partition(".")[0] for key in state}
    prefixes = [f"{name}." for name in NETWORKS if name in names] or [""]
    more = {f"{prefix}{key}": value for prefix in prefixes for key, value in constants.items()}
    return state | more, [f"the schedule's constants are those of {one.path if one.words else 'the outermost level'}"]


def _constant(key: Any, value: Any) -> str | None:
    """The name of a schedule's constant; "betas" may be those of Adam, which are two."""
    own = own_key(key) if isinstance(key, str) and is_leaf(value) and len(value.shape) == 1 else None
    return own.rpartition(".")[2] if own and part_of(own) == CONSTANTS and value.shape[0] > 2 else None


def _with_names(path: Path, chosen: Candidate, others: Sequence[Candidate]) -> tuple[dict[str, Leaf], Candidate]:
    """A list of parameters with the names of a state dict beside it, and that one; it gives what the list leaves out."""
    for base in others:
        if names := _names_of(chosen, base):
            beside = _leaves(path, base)
            state = dict(zip(names, chosen.order, strict=True))
            return _completed(state, beside) or state, base
    raise CheckpointError(
        f"{path}: found {chosen.path}, a list of {len(chosen.order)} tensors without names, and no state dict beside it "
        "whose parameters have these shapes in this order, expected one; save the averaged model's state_dict(), or build "
        "with --weights online"
    )


def _names_of(one: Candidate, base: Candidate) -> tuple[str, ...]:
    """The keys of `base` that a list of parameters belongs to: all of them, or those of one part, by shapes in order."""
    shapes = [tuple(tensor.shape) for tensor in one.order]
    own = {
        key: own_key(key) or key
        for key, value in base.state.items()
        if isinstance(key, str) and is_leaf(value) and part_of(key) != CONSTANTS
    }
    without_stage = tuple(key for key in own if not own[key].startswith("vae."))
    parts = (tuple(key for key in own if own[key].startswith(f"{name}.")) for name in (*NETWORKS, "decoder", "vae"))
    for names in (tuple(own), without_stage, *parts):
        if names and [tuple(base.state[key].shape) for key in names] == shapes:
            return names
    return ()


def _completed(state: Mapping[str, Leaf], base: Mapping[str, Leaf]) -> dict[str, Leaf]:
    """`base` with these tensors in the places of its own; empty where it holds others, or no more than they are.

    The name of the network goes: what is left is one network, neither the trained nor the averaged one of the base.
    """
    ours = {own_key(key) or key: value for key, value in state.items()}
    theirs = {own_key(key) or key: value for key, value in base.items()}
    if len(theirs) < len(base) or len(ours) < len(state) or not ours or len(theirs) <= len(ours):
        return {}
    first = next(iter(ours))
    for prefix in dict.fromkeys(key.removesuffix(first) for key in theirs if key.endswith(first)):
        places = {f"{prefix}{key}": value for key, value in ours.items()}
        if not places.keys() <= theirs.keys():
            continue
        full = theirs | places
        named = [name for name in NETWORKS if any(place.startswith(f"{name}.") for place in places)]
        if len(named) != 1:
            return full
        other = next(f"{name}." for name in NETWORKS if name != named[0])
        return {key.removeprefix(f"{named[0]}."): value for key, value in full.items() if not key.startswith(other)}
    return {}
