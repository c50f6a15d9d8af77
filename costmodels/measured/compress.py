"""A configuration put into the model, and taken out again.

Weights are replaced for the time of a measurement: pruned columns become zero, then what is left is rounded. Inputs of
linear modules are rounded as they arrive, with one scale per position (a strided convolution over pixels: per sample).
Cached keys and values are rounded where their projections give them: keys per feature over the positions, before
their rotary embedding, values per position in groups of neighbouring features; every position is, the latest too.
A dropped block hands on what it was given.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch

from costmodels.measured.anatomy import Anatomy, BlockKey, Units, matrix_of
from costmodels.measured.quantise import PLAIN_BITS, Quantiser, in_groups, over_positions
from costmodels.measured.target import IMAGE_KNOBS
from dse.entries import Entry
from dse.params import Value
from dse.profile import Group


@dataclass
class Settings:
    """A configuration, resolved to single places; what is not there is uncompressed.

    Attributes:
        weight_bits: path -> bits of each part of its output channels.
        act_bits: path -> bits.
        blocks: knob -> block -> value, of k_bits, v_bits, head_keep, ffn_keep and block_keep.
        image: knob -> value.
    """

    weight_bits: dict[str, tuple[int, ...]] = field(default_factory=dict)
    act_bits: dict[str, int] = field(default_factory=dict)
    blocks: dict[str, dict[BlockKey, float]] = field(default_factory=dict)
    image: dict[str, Value] = field(default_factory=dict)


def resolve(
    chosen: Mapping[str, Mapping[str, Value]], groups: Mapping[str, Group], entries: Mapping[str, Sequence[Entry]]
) -> Settings:
    """Return the settings of a map knob -> group -> value; where groups overlap, the finer one holds.

    Args:
        chosen: the map.
        groups: what each group path names.
        entries: places of each knob.
    """
    found = Settings()
    for knob, by_group in chosen.items():
        if knob in IMAGE_KNOBS:
            found.image[knob] = by_group[""]
            continue
        ordered = sorted(by_group.items(), key=lambda item: groups[item[0]].fineness)
        n_parts = math.lcm(*(groups[g].n_channels for g in by_group)) if knob == "weight_bits" else 1
        for entry in entries[knob]:
            parts: list[Value | None] = [None] * n_parts
            for part in range(n_parts):
                place = entry._replace(channel=part, n_channels=n_parts)
                for path, value in ordered:
                    if groups[path].holds(place):
                        parts[part] = value
            if parts == [None] * n_parts:
                continue
            if knob == "weight_bits":
                found.weight_bits[entry.path] = tuple(PLAIN_BITS if p is None else int(p) for p in parts)
            elif knob == "act_bits":
                found.act_bits[entry.path] = int(parts[0] or PLAIN_BITS)
            else:
                found.blocks.setdefault(knob, {})[entry.component, entry.block] = float(parts[0] or 0.0)
    return found


@contextmanager
def applied(
    net: torch.nn.Module, anatomy: Anatomy, settings: Settings, quantiser: Quantiser, scores: Mapping[str, np.ndarray]
) -> Iterator[None]:
    """Compress ``net`` for the duration of the block.

    Args:
        net: the full model.
        anatomy: of it.
        settings: what is done to it.
        quantiser: how weights are rounded.
        scores: name of a projection -> what each input column adds to its output.
    """
    pruned = _pruned_columns(anatomy, settings, scores)
    by_path = {anatomy.names[p]: bits for p, bits in settings.weight_bits.items() if p in anatomy.names}
    with ExitStack() as undo:
        for name in dict.fromkeys([*pruned, *by_path]):
            found = matrix_of(net.get_submodule(name))
            assert found is not None
            weight, inputs_first = found
            full = weight.data
            undo.callback(setattr, weight, "data", full)
            weight.data = _compressed(full, inputs_first, pruned.get(name), by_path.get(name, ()), quantiser)
        for path, bits in settings.act_bits.items():
            if bits < PLAIN_BITS and path in anatomy.linear:
                module = net.get_submodule(anatomy.names[path])
                undo.callback(module.register_forward_pre_hook(_round_inputs(module, bits)).remove)
        for knob, rounded in (("k_bits", _keys), ("v_bits", _values)):
            for key, bits_of in settings.blocks.get(knob, {}).items():
                name = getattr(anatomy.blocks[key], "keys" if knob == "k_bits" else "values")
                if name and bits_of < PLAIN_BITS:
                    undo.callback(net.get_submodule(name).register_forward_hook(rounded(int(bits_of))).remove)
        for key, keep in settings.blocks.get("block_keep", {}).items():
            if keep == 0 and anatomy.blocks[key].name:
                block = net.get_submodule(anatomy.blocks[key].name)
                undo.callback(block.register_forward_hook(_hand_on, with_kwargs=True).remove)
        yield


def _compressed(
    full: torch.Tensor, inputs_first: bool, pruned: np.ndarray | None, bits: Sequence[int], quantiser: Quantiser
) -> torch.Tensor:
    matrix = full.t() if inputs_first else full.flatten(1)
    out = matrix.float().clone()
    if pruned is not None:
        out[:, torch.from_numpy(pruned).to(out.device)] = 0.0
    # Parts of the output channels as the knob has them: channel c is in part c n / outputs.
    for part, width in enumerate(bits):
        start, stop = (-(-edge * len(out) // len(bits)) for edge in (part, part + 1))
        if width < PLAIN_BITS and stop > start:
            out[start:stop] = quantiser.weights(out[start:stop], width)
    out = out.t() if inputs_first else out
    return out.reshape(full.shape).to(full.dtype).contiguous()


def _pruned_columns(anatomy: Anatomy, settings: Settings, scores: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Return the input columns that each projection loses."""
    found: dict[str, np.ndarray] = {}
    for knob, kind in (("head_keep", "heads"), ("ffn_keep", "channels")):
        for key, keep in settings.blocks.get(knob, {}).items():
            for units in getattr(anatomy.blocks[key], kind) if keep < 1.0 else ():
                found[units.name] = _lost(units, keep, scores[units.name])
    return found


def _lost(units: Units, keep: float, score: np.ndarray) -> np.ndarray:
    n_units = units.columns.shape[1]
    # As everywhere: rounded up to whole units, but not by what floating point adds to a product.
    n_kept = max(1, math.ceil(round(keep * n_units, 9)))
    worth = score[units.columns].sum(axis=2)
    order = np.argsort(worth, axis=1, kind="stable")[:, : n_units - n_kept]
    return np.take_along_axis(units.columns, order[:, :, None], axis=1).reshape(-1)


def _round_inputs(module: torch.nn.Module, bits: int) -> Any:
    over_positions_too = isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)

    def hook(_: torch.nn.Module, args: tuple[Any, ...]) -> tuple[Any, ...]:
        x = args[0]
        flat = x.flatten(1) if over_positions_too else x
        return (in_groups(flat.float(), bits, flat.shape[-1]).reshape(x.shape).to(x.dtype), *args[1:])

    return hook


def _keys(bits: int) -> Any:
    return lambda _module, _args, out: over_positions(out.float(), bits).to(out.dtype)


def _values(bits: int) -> Any:
    return lambda _module, _args, out: in_groups(out.float(), bits, Quantiser.group_size).to(out.dtype)


def _hand_on(_: torch.nn.Module, args: tuple[Any, ...], kwargs: Mapping[str, Any], out: Any) -> Any:
    given = args[0] if args else kwargs["hidden_states"]
    return (given, *out[1:]) if isinstance(out, tuple) else given
