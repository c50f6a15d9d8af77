"""How a design deals a model to devices: tensor, pipeline, expert and data parallelism, and what one device then does.

n devices, t tensor-parallel, p pipeline stages, e expert-parallel, d = n / (t p) data-parallel replicas.

- *Tensor parallel*, as Megatron-LM splits layers: query heads, MLP channels, token table and head by t; keys and
  values by min(t, key-value heads), beyond that they are copied (a latent cache has one head: always copied); norms,
  residuals, routers, low-rank projections, patch embedding and projector are copied on all t.
- *Expert parallel*: e <= t divides the experts among e parts of a replica, each expert among t / e devices; tokens
  are there already, and the all-reduce that tensor parallelism needs anyway sums the parts. e > t joins e / t
  replicas, whose tokens travel to their experts and back by two all-to-alls; whole experts then.
- *Pipeline parallel*: blocks of the decoder in p contiguous stages of at most ceil(blocks / p); encoders and token
  table on the first, head on the last (a tied table on both).
- *Data parallel*: a replica runs ceil(batch / d) requests, in m = min(p, requests) micro-batches of equal size. With
  T the time of one micro-batch through all stages and u = ceil(blocks / p) / blocks the longest stage's share,

      encode m T,   prefill T (1 + (m - 1) u),   decode pass max(T, m u T).

  Equal stages make prefill T (m + p - 1) / p: a bubble of (p - 1) / (m + p - 1). One request has m = 1: nothing
  overlaps, and stages only add their transfers.

Where sums are reduced: :mod:`costmodels.splits`.

Groups are numbered tensor-parallel first, then expert-parallel replicas, then stages; a group larger than a node runs
at the bandwidth between nodes with the launches measured within one (not measured: the band is doubled).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from costmodels.products import B_BYTES, COUNT, K, M, N
from costmodels.splits import Split, kv_heads_of, reductions, split_of
from costmodels.sums import sum_stored_bytes_by_stage
from costmodels.tables import Gemms, Kept, block_columns, unique_rows
from costmodels.workload import Sizes, Workload
from dse.designs import DesignBatch
from dse.devices import Device
from dse.metrics import Limit
from dse.model import Graph, Model, Module, ModuleKind, OpKind, Section
from dse.problem import PARALLEL
from dse.schema import Schema


@dataclass(frozen=True)
class Layout:
    """The parallelism of a batch of designs, arrays (n,), float64.

    Attributes:
        devices, tensor, pipeline, expert: as the design says.
        data: replicas, at least 1 also where the numbers do not divide.
        requests: of a replica.
        micro_batches: of a replica.
        expert_tensor: devices that share an expert.
        joined: replicas that share their experts.
    """

    devices: np.ndarray
    tensor: np.ndarray
    pipeline: np.ndarray
    expert: np.ndarray
    data: np.ndarray
    requests: np.ndarray
    micro_batches: np.ndarray
    expert_tensor: np.ndarray
    joined: np.ndarray

    @classmethod
    def of(cls, batch: DesignBatch) -> Layout | None:
        """Return the layout of designs; None where every design runs on one device."""
        columns = [unique_rows(batch[name]).astype(np.float64) for name in PARALLEL]
        if all((c == 1).all() for c in columns):
            return None
        devices, tensor, pipeline, expert = (np.broadcast_to(c, len(batch)) for c in columns)
        data = np.maximum(np.floor(devices / (tensor * pipeline)), 1.0)
        requests = np.ceil(np.broadcast_to(batch["batch"], len(batch)) / data)
        return cls(
            devices, tensor, pipeline, expert, data, requests,
            micro_batches=np.minimum(pipeline, requests),
            expert_tensor=np.maximum(tensor / expert, 1.0),
            joined=np.maximum(expert / tensor, 1.0),
        )  # fmt: skip

    @property
    def micro_requests(self) -> np.ndarray:
        """Requests of a micro-batch."""
        return np.ceil(self.requests / self.micro_batches)

    @property
    def busy_devices(self) -> np.ndarray:
        """Devices of all replicas."""
        return self.data * self.tensor * self.pipeline


class ShardedPhase:
    """The split of each product of a phase, and its reductions."""

    def __init__(self, graph: Graph, model: Model, kv_heads: Mapping[int, float]) -> None:
        splits = split_of(graph, model)
        ops = [op for op in graph.ops if op.kind.is_matmul]
        self.blocks = block_columns(ops, model)
        self.split = np.array([splits.get(op.name, Split.COPIED) for op in ops], dtype=np.int64)
        self.attends = np.array([op.kind is not OpKind.LINEAR for op in ops], dtype=bool)
        self.fixed = np.array([float(op.n.fixed) for op in ops])
        self.kv_heads = np.array([kv_heads.get(int(b), 0.0) for b in self.blocks])
        self.has_fixed_heads = np.array([op.kv_heads.fixed > 0 for op in ops], dtype=bool)
        modules = [model.module(op.module) if op.module else None for op in ops]
        self.copies = np.array([m.n_copies if m else 1 for m in modules], dtype=np.float64)
        self.active = np.array([op.n_active for op in ops], dtype=np.float64)
        self.points = reductions(graph, model, splits)

    def shard(self, gemms: Gemms, layout: Layout) -> Gemms:
        """Return the products of one device."""
        planes = gemms.planes.copy()
        t, e = layout.tensor[:, None], layout.expert[:, None]
        shared = np.minimum(t, np.where(self.kv_heads > 0, self.kv_heads, np.inf))

        def times(plane: int, mask: np.ndarray, factor: np.ndarray) -> None:
            planes[plane] = np.where(mask, planes[plane] * factor, planes[plane])

        def narrower(mask: np.ndarray, plane: int, factor: np.ndarray) -> None:
            times(plane, mask, factor)
            times(B_BYTES, mask, factor)

        outputs = planes[N]
        column = ((outputs - self.fixed) / t + self.fixed / shared) / outputs
        narrower(self.split == Split.COLUMN, N, column)
        narrower(self.split == Split.VOCABULARY, N, np.ceil(outputs / t) / outputs)
        narrower(self.split == Split.ROW, K, 1 / t)
        times(COUNT, self.split == Split.HEADS, 1 / t)
        grouped = self.attends & self.has_fixed_heads
        times(COUNT, self.attends, np.where(grouped, 1 / shared, 1 / t))
        times(M, grouped, shared / t)
        experts = (self.split == Split.EXPERT_COLUMN) | (self.split == Split.EXPERT_ROW)
        if experts.any():
            joined = np.minimum(layout.joined, np.maximum(layout.data, 1.0))[:, None]
            routed = planes[COUNT] * planes[M] * joined
            rate = 1.0 - self.active / np.maximum(self.copies, 1.0)
            touched = self.copies * (1.0 - rate ** (routed / self.active))
            runs = (planes[COUNT] > 0) & experts
            touched = np.where(runs, touched, 1.0)
            planes[M] = np.where(runs, routed / touched, planes[M])
            planes[COUNT] = np.where(runs, touched / e, planes[COUNT])
            narrower(self.split == Split.EXPERT_COLUMN, N, 1 / layout.expert_tensor[:, None])
            narrower(self.split == Split.EXPERT_ROW, K, 1 / layout.expert_tensor[:, None])
        return gemms.with_planes(planes)


class Sharding:
    """A model prepared for being dealt to devices, under one schema.

    Args:
        workload: the request.
        schema: its fields.
    """

    def __init__(self, workload: Workload, schema: Schema) -> None:
        model = self._model = workload.model
        self._tables = workload.tables(schema)
        self._kv_heads = kv_heads_of(model)
        graphs = {phase: model.graph(phase) for phase in self._tables.gemms}
        self.phases = {name: ShardedPhase(graph, model, self._kv_heads) for name, graph in graphs.items()}
        named = [(graph, split_of(graph, model)) for graph in graphs.values()]
        splits = {op.module: found[op.name] for graph, found in named for op in graph.ops if op.name in found}
        self._store = [self._kind(m, splits) for m in self._tables.weight_bytes.modules]
        self._ends = np.array([self._end(m, model) for m in self._tables.weight_bytes.modules], dtype=np.int64)
        columns = block_columns(self._tables.weight_bytes.modules, model)
        self._store_kv = np.array([self._kv_heads.get(int(c), 0.0) for c in columns])
        decoder = [i for i, b in enumerate(model.blocks) if b.component == "decoder"]
        self._decoder = np.array(decoder, dtype=np.intp)
        self._n_experts = float(max(m.n_copies for m in model.modules))
        self.hidden = float(graphs["decode"].ops[0].n.fixed)
        self.vocabulary = float(graphs["decode"].ops[-1].n.fixed)

    @staticmethod
    def _kind(module: Module, splits: Mapping[str, Split]) -> Split:
        if module.kind is ModuleKind.EMBEDDING:
            return splits.get(module.path, Split.COPIED)
        if module.kind is not ModuleKind.LINEAR:
            return Split.COPIED
        return splits.get(module.path, Split.COPIED)

    @staticmethod
    def _end(module: Module, model: Model) -> int:
        """Return 0 for a module of a decoder block, 1 for the first stage, 2 for the last, 3 for both."""
        if module.component != "decoder":
            return 1
        if module.section is Section.BLOCK:
            return 0
        tied = any(m.tied_to == module.path for m in model.modules)
        return 3 if tied else 2 if module.section is Section.HEAD else 1

    def share(self, layout: Layout, kept: Kept) -> np.ndarray:
        """Return the longest stage's share of the decoder's blocks, shape (n,)."""
        blocks = np.maximum(kept.block[:, self._decoder].sum(axis=1), 1.0)
        return np.minimum(np.ceil(blocks / layout.pipeline) / blocks, 1.0)

    def fullest(self, layout: Layout, sizes: Sizes) -> tuple[np.ndarray, np.ndarray]:
        """Return the bytes of weights and caches on the fullest device, shapes (n,)."""
        kept, n = sizes.kept, len(layout.tensor)
        stages = np.minimum(layout.pipeline, max(len(self._decoder), 1))
        n_stages = int(stages.max())
        stage = self._stages(kept, stages)
        weights = sum_stored_bytes_by_stage(
            self._tables.weight_bytes.matrices, sizes.widths, kept.heads, kept.channels, kept.block,
            np.array(self._store, dtype=np.int64), self._store_kv, self._ends,
            np.ascontiguousarray(layout.tensor), layout.expert * layout.expert_tensor, stage,
            np.ascontiguousarray(stages), n_stages,
        )  # fmt: skip
        caches = np.zeros((n, n_stages))
        held = np.broadcast_to(sizes.cache_bytes, (n, sizes.cache_bytes.shape[1])) * layout.micro_batches[:, None]
        of_block = stage[:, self._tables.positions.block] if held.shape[1] else np.zeros((n, 0))
        own = held / self.cache_parts(layout)
        for s in range(n_stages):
            caches[:, s] = np.where(of_block == s, own, 0.0).sum(axis=1)
        at = np.argmax(weights + caches, axis=1)
        rows = np.arange(n)
        return weights[rows, at], caches[rows, at]

    def cache_parts(self, layout: Layout) -> np.ndarray:
        """Return among how many devices each cache is divided, shape (n, caches); the rest hold copies."""
        positions = self._tables.positions
        kv = np.array([self._kv_heads.get(int(b), 0.0) for b in positions.block])
        return np.minimum(layout.tensor[:, None], np.where((kv > 0) & positions.has_fixed, np.maximum(kv, 1.0), np.inf))

    def _stages(self, kept: Kept, stages: np.ndarray) -> np.ndarray:
        """Return the stage of each block column, shape (n, blocks + 1); blocks of encoders on the first."""
        n = len(stages)
        found = np.zeros((n, kept.block.shape[1]), dtype=np.int64)
        runs = np.broadcast_to(kept.block[:, self._decoder], (n, len(self._decoder)))
        order = np.cumsum(runs, axis=1) - 1
        each = np.ceil(np.maximum(runs.sum(axis=1), 1.0) / stages)
        found[:, self._decoder] = np.minimum(np.maximum(order, 0) // each[:, None], stages[:, None] - 1)
        return found

    def limits(self, layout: Layout, kept: Kept, device: Device) -> list[Limit]:
        """Return the laws of division and of links."""
        t, p, e = layout.tensor, layout.pipeline, layout.expert
        zero, n = np.zeros(len(t)), layout.devices
        whole = n >= t * p
        found = [
            _limit("n_devices", t * p, n, "tensor x pipeline parallel is {needed} devices, the design has {available}"),
            _rest("n_devices", np.where(whole, n % (t * p), 0.0), "devices", "replicas of tensor x pipeline parallel"),
            _limit("n_blocks", p, np.maximum(kept.block[:, self._decoder].sum(axis=1), 1.0) + zero,
                   "{needed} pipeline stages for {available} decoder blocks"),
            _limit("n_experts", e, zero + self._n_experts, "expert_parallel={needed} for {available} experts"),
            _rest("n_experts", self._n_experts % e * (e <= self._n_experts), "experts", "expert_parallel"),
            _rest("n_devices", np.maximum(t, e) % np.minimum(t, e), "devices", "tensor or expert parallel"),
            _rest("n_devices", np.where(whole, layout.data % np.maximum(np.floor(layout.joined), 1.0), 0.0),
                  "replicas", "expert groups"),
            self._links(layout, device),
        ]  # fmt: skip
        for name, phase in self.phases.items():
            found += self._divisions(layout, kept, phase, name)
        return found

    def _links(self, layout: Layout, device: Device) -> Limit:
        if device.link_bytes_per_s is None:
            most, why = 1.0, f"no link of {device.name} is known"
        elif device.n_per_node is None:
            most, why = 1.0, f"how many {device.name} a node has is not known (n_per_node in its description)"
        elif device.node_link_bytes_per_s is None:
            most, why = float(device.n_per_node), f"no link between nodes of {device.name} is known"
        else:
            most, why = np.inf, ""
        text = f"{why}: {{available}} device(s) can work together, the design has {{needed}}"
        # Replicas that share nothing need no link.
        together = np.where(
            layout.joined * layout.tensor * layout.pipeline > 1, layout.joined * layout.tensor * layout.pipeline, 1.0
        )
        return _limit("n_devices", together, np.full(len(together), most), text)

    def _divisions(self, layout: Layout, kept: Kept, phase: ShardedPhase, name: str) -> list[Limit]:
        products = self._tables.gemms[name].products
        block, t = products.block, layout.tensor[:, None]
        runs = kept.block[:, block] > 0

        def size(dims: np.ndarray) -> np.ndarray:
            return np.asarray(dims[:, 0] + dims[:, 1] * kept.heads[:, block] + dims[:, 2] * kept.channels[:, block])

        def worst(mask: np.ndarray, count: np.ndarray, parts: np.ndarray) -> np.ndarray:
            rest = np.where(mask & runs, count % parts, 0.0)
            return rest.max(axis=1) if rest.shape[1] else np.zeros(len(t))

        heads, kv = size(products.heads), size(products.kv_heads)
        many = np.where(t <= kv, kv % t, t % np.maximum(kv, 1.0))
        channels = size(products.k)
        parts = np.where(phase.split == Split.EXPERT_ROW, np.floor(layout.expert_tensor)[:, None], t)
        rows = ((phase.split == Split.ROW) | (phase.split == Split.EXPERT_ROW)) & (products.k[:, 2] > 0)
        return [
            _rest("n_heads", worst(phase.attends, heads, t), f"{name} attention heads", "tensor_parallel"),
            _rest("n_heads", worst(phase.attends, many, np.full_like(t, np.inf)),
                  f"{name} key-value heads", "tensor_parallel, nor copied evenly"),
            _rest("n_channels", worst(rows, channels, parts), f"{name} MLP channels", "tensor_parallel"),
        ]  # fmt: skip


def _limit(name: str, needed: np.ndarray, available: np.ndarray, text: str) -> Limit:
    return Limit(name, np.asarray(needed, dtype=np.float64), np.asarray(available, dtype=np.float64), text)


def _rest(name: str, rest: np.ndarray, what: str, parts: str) -> Limit:
    text = f"{{needed}} {what} are left over: they do not divide by {parts}"
    return _limit(name, rest, np.zeros(len(rest)), text)
