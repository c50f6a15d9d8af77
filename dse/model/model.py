"""A model: its modules, blocks and operator graphs, the rules for its inputs, and the counts that follow."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Final

from dse.canonical import content_hash
from dse.errors import ModelError, UserError, unknown
from dse.model import counting
from dse.model.audio import AudioRule
from dse.model.build import build
from dse.model.families import read_config
from dse.model.fields import Fields
from dse.model.images import ImageRule
from dse.model.parts import PHASES, AudioLayout, Block, Graph, Module, VisualLayout

FORMAT: Final = "dse-model/1"


@dataclass(frozen=True, eq=False, repr=False)
class Model:
    """A multimodal foundation model, or a plain language model, as its config describes it.

    Attributes:
        name: what it is called in messages and results; a label only, not part of its content.
        model_type: architecture, as the config states it.
        modules: all parameterised modules, in checkpoint order.
        blocks: all repeated blocks of encoders and decoder.
        graphs: operator graph of each phase.
        vocab_size: rows of the output head.
        max_context: longest context that the config states, None if it does not.
        image_rule: how images become tokens, None without images.
        audio_rule: how audio becomes tokens, None without audio.
        config: the config it was read from.
        processor: what was known of the processor beside it.
        sources: where the facts come from.
        facts: every field that was read, with its value, defaults filled in: the canonical config.
    """

    name: str
    model_type: str
    modules: tuple[Module, ...]
    blocks: tuple[Block, ...]
    graphs: Mapping[str, Graph]
    vocab_size: int
    max_context: int | None
    image_rule: ImageRule | None
    audio_rule: AudioRule | None
    config: Mapping[str, Any]
    processor: Mapping[str, Any]
    sources: Mapping[str, str]
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        return f"<Model {self.name}: {self.model_type}, {self.n_params / 1e9:.3g} B parameters>"

    def __reduce__(self) -> tuple[Any, ...]:
        # A config is far smaller than the tables made from it, and workers get models by the thousand.
        return Model.from_json, (self.to_json(),)

    @property
    def modalities(self) -> tuple[str, ...]:
        """What it takes: "text", "image", "audio"."""
        taken = {"text": True, "image": self.image_rule is not None, "audio": self.audio_rule is not None}
        return tuple(name for name, is_taken in taken.items() if is_taken)

    def graph(self, phase: str) -> Graph:
        """Return the operator graph of "encode", "prefill" or "decode"; a verification step is "decode"."""
        if phase not in self.graphs:
            raise unknown("phase", phase, PHASES)
        return self.graphs[phase]

    def module(self, path: str) -> Module:
        """Return the module of that path."""
        if path not in self._by_path:
            raise unknown(f"module of {self.name}", path, self._by_path)
        return self._by_path[path]

    @cached_property
    def _by_path(self) -> dict[str, Module]:
        return {m.path: m for m in self.modules}

    @cached_property
    def units(self) -> dict[tuple[str, int], tuple[int, int]]:
        """Prunable (heads, channels) of each block, by (component, index)."""
        return counting.units(self.blocks)

    @cached_property
    def n_params(self) -> int:
        """Parameters, encoders and projectors included, shared weights once."""
        return counting.n_params(self.modules, self.units)

    @cached_property
    def n_active_params(self) -> int:
        """Parameters of the decoder that one token touches: all of them, of routed experts those it passes through.

        The token table counts in full, as usual in published figures, although a token reads one row of it.
        """
        return counting.n_active_params((m for m in self.modules if m.component == "decoder"), self.units)

    @property
    def decode_matmul_flops_per_token(self) -> int:
        """Twice the active parameters without the token table (which a tied head uses, and then counts).

        This is the published rule of thumb: norms and biases count as if they were matrix products, attention scores
        do not count, and projections that run once per image do. :meth:`flops` is exact.
        """
        table, head = self._token_table, self._head
        return 2 * (self.n_active_params - (0 if head.tied_to else table.n_weights()))

    @property
    def _head(self) -> Module:
        return self._by_path[self.graphs["decode"].ops[-1].module]

    @property
    def _token_table(self) -> Module:
        return self._by_path[self.graphs["decode"].ops[0].module]

    def weight_bytes(self, bits: int = 16) -> int:
        """Return the bytes of all parameters at ``bits`` each, without scales or zero points."""
        return counting.whole_bytes(self.n_params * bits)

    def kv_bytes_per_token(self, k_bits: int = 16, v_bits: int = 16) -> int:
        """Return the bytes that one token adds to the cache, over all layers, before windows are full."""
        return counting.whole_bytes(counting.cache_bits(self.blocks, "context", k_bits, v_bits))

    def kv_bytes_per_state(self, k_bits: int = 16, v_bits: int = 16) -> int:
        """Return the bytes that cross-attention keeps per encoder state, 0 without cross-attention."""
        return counting.whole_bytes(counting.cache_bits(self.blocks, "state", k_bits, v_bits))

    def kv_bytes(self, context: int, n_states: int = 0, k_bits: int = 16, v_bits: int = 16) -> int:
        """Return the cache of one sequence of ``context`` tokens; blocks with a window keep no more than that."""
        positions = {"context": context, "state": n_states}
        return counting.whole_bytes(counting.kept_bits(self.blocks, positions, k_bits, v_bits))

    def flops(self, phase: str, rows: Mapping[str, int], spans: Mapping[str, int], sequences: int = 1) -> int:
        """Return the operations of the matrix products of a phase, see :func:`dse.model.counting.flops`."""
        return counting.flops(self.graph(phase), self.units, rows, spans, sequences)

    def visual_layout(self, height_px: int, width_px: int) -> VisualLayout:
        """Return what one image of this size becomes."""
        if self.image_rule is None:
            raise UserError(f"{self.name} takes no images", f"it takes {' and '.join(self.modalities)}")
        return self.image_rule.layout(height_px, width_px)

    def audio_layout(self, seconds: float) -> AudioLayout:
        """Return what one clip of this length becomes."""
        if self.audio_rule is None:
            raise UserError(f"{self.name} takes no audio", f"it takes {' and '.join(self.modalities)}")
        return self.audio_rule.layout(seconds)

    @cached_property
    def content_hash(self) -> str:
        """Hash of the canonical config: equal for configs that differ only in spelling or in what is left out."""
        return content_hash({"model_type": self.model_type, "facts": dict(self.facts)})

    def to_json(self) -> dict[str, Any]:
        """Return the model as JSON types: name, config and sources; the tables are built again from them."""
        return {
            "format": FORMAT,
            "name": self.name,
            "config": dict(self.config),
            "processor": dict(self.processor),
            "sources": dict(self.sources),
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Model:
        """Return the model that :meth:`to_json` described.

        Raises:
            ModelError: another format, or a config that cannot be read.
        """
        if document.get("format") != FORMAT:
            raise ModelError(f"model document: format={document.get('format')!r} is not {FORMAT!r}")
        name, config = document.get("name"), document.get("config")
        if not isinstance(name, str) or not isinstance(config, Mapping):
            raise ModelError("model document: it needs a name and a config", "write it with Model.to_json")
        return cls.from_config(
            config, name, processor=document.get("processor", {}), sources=document.get("sources", {})
        )

    @classmethod
    def from_config(
        cls,
        config: Mapping[str, Any],
        name: str,
        *,
        file: str = "",
        processor: Mapping[str, Any] | None = None,
        sources: Mapping[str, str] | None = None,
    ) -> Model:
        """Return the model of a parsed config.

        Args:
            config: fields as config.json has them.
            name: what to call the model.
            file: where the config comes from, for messages; the name if empty.
            processor: fields as preprocessor_config.json has them.
            sources: where the facts come from.

        Raises:
            ModelError: a field that is missing or cannot be, named with the file; an unknown architecture.
        """
        model_type, file = config.get("model_type"), file or name
        facts: dict[str, Any] = {}
        if not isinstance(model_type, str):
            raise ModelError(f"{file}: model_type={model_type!r} is not a string", "it names the architecture")
        top = Fields(config, model_type, file, facts=facts)
        beside = Fields(processor or {}, f"processor/{model_type}", file, "preprocessor", facts)
        reading = read_config(top, beside)
        modules, blocks, graphs = build(reading.shape)
        return cls(
            name=name,
            model_type=model_type,
            modules=modules,
            blocks=blocks,
            graphs=graphs,
            vocab_size=reading.shape.decoder.vocab,
            max_context=reading.max_context,
            image_rule=reading.image_rule,
            audio_rule=reading.audio_rule,
            config=config,
            processor=processor or {},
            sources=sources or {},
            facts=facts,
        )
