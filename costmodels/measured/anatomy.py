"""What of a model can be compressed: its linear modules along the hierarchy, heads, channels, blocks and caches.

With a description (a :class:`dse.model.Model`: from the checkpoint's config.json, or a catalogue name) the hierarchy is
that of the description, whose module paths are the names in PyTorch. Without one it is read off the names: the
repeated children of a list are blocks, words such as "visual" or "projector" tell components, "attn" and "mlp" the
halves of a block.

Pruned heads and channels are input columns of the projection that ends their half of a block: where those columns are
zero, the outputs are exactly those of the smaller matrices. Units that go first are those that add least to that
projection's output over the samples, E[x^2] |w|^2 summed over their columns; with grouped queries every key-value head
keeps the same number of query heads.

What is not measurable is said by name in :attr:`Anatomy.notes`: experts that are one tensor, projections of keys and
values in one matrix, modules that the forward pass does not call.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

import numpy as np
import torch

from dse.errors import ModelError
from dse.model import Block, Model, Module, ModuleKind, OpKind, Section
from dse.profile import ProfiledModule

BlockKey = tuple[str, int]
_SHOWN: Final = 4


@dataclass(frozen=True)
class Units:
    """Prunable units of a block's half, as input columns of the projection that ends it.

    Attributes:
        name: that projection in PyTorch.
        columns: which columns belong to them, shape (key-value heads or 1, units, columns per unit).
    """

    name: str
    columns: np.ndarray


@dataclass(frozen=True)
class BlockParts:
    """What can be done to a block.

    Attributes:
        name: in PyTorch, "" if it is no module of its own.
        heads, channels: what pruning removes, one entry per attention or MLP in it.
        keys, values: modules whose outputs are cached, "" where not recognised.
    """

    name: str = ""
    heads: tuple[Units, ...] = ()
    channels: tuple[Units, ...] = ()
    keys: str = ""
    values: str = ""


@dataclass(frozen=True)
class Anatomy:
    """A model taken apart.

    Attributes:
        model: what it is called.
        modules: linear modules and token tables, as a profile's header lists them.
        names: path -> name in PyTorch, of those that can be reached.
        linear: paths of linear modules (activations enter them), not of tables.
        blocks: (component, index) -> its parts.
        notes: what cannot be measured, one sentence each.
    """

    model: str
    modules: tuple[ProfiledModule, ...]
    names: Mapping[str, str]
    linear: frozenset[str]
    blocks: Mapping[BlockKey, BlockParts]
    notes: Sequence[str] = field(default=())


def matrix_of(module: torch.nn.Module) -> tuple[torch.nn.Parameter, bool] | None:
    """Return the weight of a linear module or table and whether its inputs come first; None if it has none."""
    weight = getattr(module, "weight", None)
    if not isinstance(weight, torch.nn.Parameter) or weight.dim() < 2:
        return None
    return weight, type(module).__name__ == "Conv1D"  # the one of transformers: (inputs, outputs)


def n_inputs(module: torch.nn.Module) -> int:
    """Return the input features of a linear module, kernel positions included."""
    found = matrix_of(module)
    assert found is not None
    weight, inputs_first = found
    return weight.shape[0] if inputs_first else weight[0].numel()


# ---------------------------------------------------------------------------------------------- with a description


def described(net: torch.nn.Module, model: Model, caches: Mapping[BlockKey, tuple[str, str]] | None) -> Anatomy:
    """Return the anatomy of a model by its description.

    Args:
        net: the model in PyTorch.
        model: its description.
        caches: modules that give keys and values, as the user names them.

    Raises:
        ModelError: most modules of the description are not there, or of another size; names the first differences.
    """
    inside = dict(net.named_modules())
    quantised = [m for m in model.modules if m.kind in (ModuleKind.LINEAR, ModuleKind.EMBEDDING)]
    prefix = _prefix(inside, [m.path for m in quantised])
    names = {m.path: prefix + m.path for m in quantised if prefix + m.path in inside}
    names = {path: name for path, name in names.items() if matrix_of(inside[name]) is not None}
    absent = [m for m in quantised if m.path not in names and not m.tied_to]
    notes = []
    if 2 * len(absent) > len(quantised):
        there = [n for n, m in inside.items() if isinstance(m, torch.nn.Linear)]
        raise ModelError(
            f"the model in PyTorch is not {model.name}: it has no {_some([m.path for m in absent])}; "
            f"its linear modules are {_some(there)}",
            "name the description that belongs to it (--model), or leave it out",
        )
    if absent:
        notes.append(f"weights that are no module of their own are not measured: {_some([m.path for m in absent])}")
    units = model.units
    for m in quantised:
        heads, channels = units.get((m.component, m.block), (0, 0))
        weight = matrix_of(inside[names[m.path]]) if m.path in names else None
        if weight is not None and m.n_copies == 1 and weight[0].numel() != m.n_weights(heads, channels):
            raise ModelError(
                f"{m.path} has {weight[0].numel()} weights, {model.name} says {m.n_weights(heads, channels)}",
                "the description is of another size of this model: name the right one",
            )
    blocks = {
        (b.component, b.index): _described_block(b, model, names, caches or {}, notes) for b in model.blocks if b.used
    }
    modules = tuple(
        ProfiledModule(
            m.path, m.component, str(m.section), m.block, m.leaf, m.part,
            m.n_weights(*units.get((m.component, m.block), (0, 0))), m.tied_to,
        )
        for m in quantised
    )  # fmt: skip
    linear = frozenset(m.path for m in quantised if m.kind is ModuleKind.LINEAR and m.path in names)
    return Anatomy(model.name, modules, names, linear, blocks, tuple(dict.fromkeys(notes)))


def _prefix(inside: Mapping[str, Any], paths: Sequence[str]) -> str:
    """Return what stands before the description's paths in PyTorch: nothing, or the name of a wrapper."""
    wrappers = ["", *(f"{name}." for name in inside if name and name.count(".") < 2)]
    return max(wrappers, key=lambda p: sum(p + path in inside for path in paths))


def _described_block(
    block: Block, model: Model, names: Mapping[str, str], caches: Mapping[BlockKey, tuple[str, str]], notes: list[str]
) -> BlockParts:
    key = (block.component, block.index)
    inside = [m for m in model.modules if (m.component, m.block) == key and m.section is Section.BLOCK]
    known = [m for m in inside if m.path in names]
    name = names[known[0].path].removesuffix(f".{known[0].leaf}") if known else ""
    groups = _key_value_heads(model, block)
    heads = [_units(m, names, block.head_units, m.in_dim.per_head, groups) for m in known if m.in_dim.per_head]
    channels = [_units(m, names, block.ffn_units, m.in_dim.per_ffn, 1) for m in known if m.in_dim.per_ffn]
    if block.ffn_units and not channels:
        notes.append(f"MLP channels of {block.component} blocks are not measured: their projections are no modules")
    keys, values = caches.get(key, ("", ""))
    if block.caches and not keys:
        keys, values = (_ending(known, names, end) for end in ("k_proj", "v_proj"))
        if not (keys and values):
            keys = values = ""
            notes.append(
                f"caches of {block.component} blocks are not measured: no k_proj and v_proj; "
                "name the modules in cache_modules(model)"
            )
    return BlockParts(name, tuple(heads), tuple(channels), keys, values)


def _ending(modules: Sequence[Module], names: Mapping[str, str], end: str) -> str:
    return next((names[m.path] for m in modules if m.leaf.endswith(end)), "")


def _key_value_heads(model: Model, block: Block) -> int:
    """Return the key-value heads among which every one keeps as many query heads, 1 where each has its own."""
    for phase in ("decode", "prefill", "encode"):
        for op in model.graph(phase).ops:
            if op.kind is OpKind.VALUE and (op.component, op.block) == (block.component, block.index):
                return max(op.kv_heads.fixed, 1)
    return 1


def _units(m: Module, names: Mapping[str, str], n: int, per_unit: int, groups: int) -> Units:
    columns = np.arange(n * per_unit).reshape(groups, n, per_unit // groups)
    return Units(names[m.path], columns)


# ---------------------------------------------------------------------------------------------- by names alone

_COMPONENTS: Final = (
    ("projector", re.compile(r"projector|connector|merger|bridge|adapter|mm_proj")),
    ("vision", re.compile(r"vision|visual|image|vit|pixel|patch")),
    ("audio", re.compile(r"audio|speech|mel")),
)
_HALVES: Final = (("attention", re.compile(r"attn|attention")), ("mlp", re.compile(r"mlp|ffn|feed_?forward|fc\d")))
_OUT: Final = re.compile(r"(^|\.)(o_proj|out_proj|proj|c_proj|wo|to_out(\.0)?|out|dense|o)$")
_TABLE: Final = re.compile(r"tok|word|wte|embed_tokens|vocab")


def named(net: torch.nn.Module, name: str, caches: Mapping[BlockKey, tuple[str, str]] | None) -> Anatomy:
    """Return the anatomy of a model by the names of its modules.

    Raises:
        ModelError: it has no linear module.
    """
    inside = {n: m for n, m in net.named_modules() if _is_linear(m) or (_is_table(m) and _TABLE.search(n))}
    if not any(_is_linear(m) for m in inside.values()):
        raise ModelError("the model has no linear module", "there is nothing whose bits could be chosen")
    lists = _block_lists(net, list(inside))
    words = {path: _component(path) for path in lists}
    shared = len(set(words.values())) < len(words)  # an encoder and a decoder, say: each under its own name
    modules: list[ProfiledModule] = []
    seen: dict[int, str] = {}
    for path, module in inside.items():
        owner = next((p for p in lists if path.startswith(f"{p}.")), None)
        found = matrix_of(module)
        assert found is not None
        tied, n_weights = seen.setdefault(id(found[0]), path), found[0].numel()
        if owner is not None:
            index, _, leaf = path.removeprefix(f"{owner}.").partition(".")
            component = owner if shared else words[owner]
            section, block = Section.BLOCK, int(index)
        else:
            component, leaf, block = _component(path), path, -1
            if shared and component not in {m.component for m in modules} and lists:
                component = min(lists, key=lambda p: -_common(p, path))
            ahead = any(m.component == component and m.section == Section.BLOCK for m in modules)
            section = Section.HEAD if ahead else Section.STEM
        kind = next((half for half, pattern in _HALVES if owner and pattern.search(leaf)), "")
        modules.append(
            ProfiledModule(path, component, str(section), block, leaf, kind, n_weights, "" if tied == path else tied)
        )
    notes: list[str] = []
    blocks = {
        (words[p] if not shared else p, i): _named_block(net, p, i, inside, notes) for p, n in lists.items() for i in n
    }
    for key, (keys, values) in (caches or {}).items():
        blocks[key] = BlockParts(**{**vars(blocks[key]), "keys": keys, "values": values})
    linear = frozenset(path for path, m in inside.items() if _is_linear(m))
    return Anatomy(name, tuple(modules), {p: p for p in inside}, linear, blocks, tuple(dict.fromkeys(notes)))


def _is_linear(module: torch.nn.Module) -> bool:
    is_conv = isinstance(module, torch.nn.Conv1d | torch.nn.Conv2d | torch.nn.Conv3d)
    return isinstance(module, torch.nn.Linear) or is_conv or type(module).__name__ == "Conv1D"


def _is_table(module: torch.nn.Module) -> bool:
    return isinstance(module, torch.nn.Embedding)


def _component(path: str) -> str:
    return next((word for word, pattern in _COMPONENTS if pattern.search(path.lower())), "decoder")


def _common(a: str, b: str) -> int:
    return next((i for i, (x, y) in enumerate(zip(a, b, strict=False)) if x != y), min(len(a), len(b)))


def _block_lists(net: torch.nn.Module, paths: Sequence[str]) -> dict[str, list[int]]:
    """Return the outermost lists whose children are blocks (two linear modules or more each), with their indices."""
    found: dict[str, list[int]] = {}
    for name, module in net.named_modules():
        if not isinstance(module, torch.nn.ModuleList | torch.nn.Sequential) or any(
            name.startswith(f"{p}.") for p in found
        ):
            continue
        n_inside = {int(i): sum(p.startswith(f"{name}.{i}.") for p in paths) for i, _ in module.named_children()
                    if i.isdigit()}  # fmt: skip
        if name and n_inside and min(n_inside.values()) >= 2:
            found[name] = list(n_inside)
    return found


def _named_block(
    net: torch.nn.Module, owner: str, index: int, inside: Mapping[str, torch.nn.Module], notes: list[str]
) -> BlockParts:
    name = f"{owner}.{index}"
    own = {p.removeprefix(f"{name}."): m for p, m in inside.items() if p.startswith(f"{name}.")}
    heads = []
    for leaf, module in own.items():
        n = _n_heads(net.get_submodule(f"{name}.{leaf}".rpartition(".")[0]))
        if n and _OUT.search(leaf) and _HALVES[0][1].search(leaf) and n_inputs(module) % n == 0:
            heads.append(Units(f"{name}.{leaf}", np.arange(n_inputs(module)).reshape(1, n, -1)))
    if not heads:
        notes.append(f"heads of {owner} are not measured: no attention module that tells its num_heads")
    channels = []
    mlp = {leaf: m for leaf, m in own.items() if not _HALVES[0][1].search(leaf) and isinstance(m, torch.nn.Linear)}
    for leaf, module in mlp.items():
        width = n_inputs(module)
        ups = [m for m in mlp.values() if m is not module and len(m.weight) == width]
        if ups and all(n_inputs(m) == len(module.weight) for m in ups) and width > len(module.weight):
            channels.append(Units(f"{name}.{leaf}", np.arange(width).reshape(1, width, 1)))
    if not channels:
        notes.append(f"MLP channels of {owner} are not measured: no pair of projections up and down")
    keys = next((f"{name}.{leaf}" for leaf in own if re.search(r"(^|\.)(k_proj|key|k|wk)$", leaf)), "")
    values = next((f"{name}.{leaf}" for leaf in own if re.search(r"(^|\.)(v_proj|value|v|wv)$", leaf)), "")
    return BlockParts(name, tuple(heads), tuple(channels), keys if values else "", values if keys else "")


def _n_heads(attention: torch.nn.Module) -> int:
    for holder in (attention, getattr(attention, "config", None)):
        for name in ("num_heads", "num_attention_heads", "n_heads", "n_head"):
            if isinstance(found := getattr(holder, name, None), int):
                return found
    return 0


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - _SHOWN} more" if len(names) > _SHOWN else ""
    return ", ".join(names[:_SHOWN]) + more
