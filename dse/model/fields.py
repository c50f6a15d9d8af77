"""Reads a model description field by field: each value is checked, and each complaint names the field and the file.

What a missing field means depends on where it is missing. transformers saves the fields of the top level in full but
those of nested tables (``text_config``, ``vision_config``) only where they differ from the defaults of their model
type. So nested tables fall back on these defaults (:mod:`dse.model.defaults`), and at the top level only fields that
older versions did not have do: without a size in :data:`REQUIRED` there is no model.

Every value that was asked for is noted (:attr:`Fields.facts`): together they are the canonical config, free of
spelling, of fields that do not matter here and of the question whether a default was written out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any, Final, TypeGuard, TypeVar

from dse.errors import ModelError, did_you_mean, join_hints
from dse.model.defaults import class_defaults

# Fields that the top level of a config states itself, or that are unknown.
REQUIRED: Final = frozenset(
    {
        "vocab_size", "hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads",
        "max_position_embeddings",
        "d_model", "encoder_layers", "decoder_layers", "encoder_attention_heads", "decoder_attention_heads",
        "encoder_ffn_dim", "decoder_ffn_dim", "num_mel_bins",
        "num_local_experts", "num_experts", "n_routed_experts", "moe_intermediate_size", "num_experts_per_tok",
        "kv_lora_rank", "qk_nope_head_dim", "qk_rope_head_dim", "v_head_dim",
    }
)  # fmt: skip

# No published model comes near these; they keep a slip of the pen from filling the memory.
MAX_COUNT: Final = 2**31
MAX_BLOCKS: Final = 4096

_T = TypeVar("_T")


@dataclass(frozen=True, slots=True)
class Fields:
    """One table of a model description.

    Attributes:
        table: its keys and values.
        model_type: whose defaults hold for it.
        file: name of the file, for messages.
        path: dotted path of the table in the file, "" for the top level.
        facts: values asked for so far, by dotted path; shared by all tables of a file.
    """

    table: Mapping[str, Any]
    model_type: str
    file: str
    path: str = ""
    facts: dict[str, Any] = field(default_factory=dict)

    def count(self, name: str, *older: str, most: int = MAX_COUNT, absent: int | None = None) -> int:
        """Return a whole number from 1 to ``most``; ``older`` spellings of the field count as well."""
        return self.note(name, self._count(self._given(name, older, absent), name, most))

    def count_or_none(self, name: str, *older: str) -> int | None:
        """Return a whole number from 1, or None where it is null or absent."""
        value = self._nullable(name, older)
        return self.note(name, None if value is None else self._count(value, name, MAX_COUNT))

    def index(self, name: str) -> int:
        """Return a whole number from 0."""
        value = self._given(name)
        if not _is_int(value) or value < 0:
            raise self.error(name, value, "a whole number from 0")
        return self.note(name, value)

    def blocks(self, name: str, *older: str) -> int:
        """Return a number of blocks."""
        return self.count(name, *older, most=MAX_BLOCKS)

    def flag(self, name: str, *, absent: bool | None = None) -> bool:
        """Return a boolean."""
        value = self._given(name, (), absent)
        if not isinstance(value, bool):
            raise self.error(name, value, "true or false")
        return self.note(name, value)

    def text(self, name: str) -> str:
        """Return a string."""
        value = self._given(name)
        if not isinstance(value, str):
            raise self.error(name, value, "a string")
        return self.note(name, value)

    def ratio(self, name: str) -> float:
        """Return a number above 0 and at most 1."""
        value = self._given(name)
        if isinstance(value, bool) or not isinstance(value, int | float) or not 0 < value <= 1:
            raise self.error(name, value, "a number above 0 and at most 1")
        return self.note(name, float(value))

    def square(self, name: str, *older: str) -> int:
        """Return the side of a square given as one number or as two equal ones."""
        value = self._given(name, older)
        if isinstance(value, list | tuple) and len(value) == 2 and value[0] == value[1]:
            value = value[0]
        return self.note(name, self._count(value, name, MAX_COUNT))

    def indices(self, name: str, limit: int) -> tuple[int, ...]:
        """Return a list of indices below ``limit``."""
        value = self._given(name)
        if not isinstance(value, list | tuple) or not all(_is_int(i) and 0 <= i < limit for i in value):
            raise self.error(name, value, f"a list of whole numbers from 0 to {limit - 1}")
        return self.note(name, tuple(value))

    def indices_or_none(self, name: str, limit: int) -> tuple[int, ...] | None:
        """Return a list of indices below ``limit``, or None where it is null, empty or absent."""
        return self.indices(name, limit) if self._nullable(name) else self.note(name, None)

    def names_or_none(self, name: str, length: int) -> tuple[str, ...] | None:
        """Return a list of ``length`` strings, or None where it is null or absent."""
        value = self._nullable(name)
        if value is None:
            return self.note(name, None)
        if not isinstance(value, list | tuple) or not all(isinstance(one, str) for one in value):
            raise self.error(name, value, "a list of strings")
        self.require(len(value) == length, f"{name} lists {len(value)} blocks, not {length}")
        return self.note(name, tuple(value))

    def sizes(self, name: str) -> tuple[tuple[int, int], ...]:
        """Return a list of (height, width) pairs in pixels."""
        value = self._given(name)
        pairs = value if isinstance(value, list | tuple) else ()
        if not pairs or not all(isinstance(p, list | tuple) and len(p) == 2 and all(map(_is_size, p)) for p in pairs):
            raise self.error(name, value, "a list of [height, width] in pixels")
        return self.note(name, tuple((p[0], p[1]) for p in pairs))

    def layers(self, name: str, n_blocks: int) -> tuple[int, ...]:
        """Return, for each layer whose features are taken, how many of ``n_blocks`` blocks run to give them.

        The field is one number or a list. Layers are numbered as hidden states: 0 is the input of the first block,
        -1 the output of the last.
        """
        value = self._given(name)
        layers = [i for i in (value if isinstance(value, list | tuple) else [value]) if _is_int(i)]
        n_listed = len(value) if isinstance(value, list | tuple) else 1
        if not layers or len(layers) < n_listed or not all(-n_blocks - 1 <= i <= n_blocks for i in layers):
            raise self.error(name, value, f"an index, or a list of indices, from {-n_blocks - 1} to {n_blocks}")
        return self.note(name, tuple(i if i >= 0 else n_blocks + 1 + i for i in layers))

    def has(self, name: str) -> bool:
        """Return whether the table itself has a value, not null, for the field."""
        return self.table.get(name) is not None

    def child(self, name: str, model_type: str, *, fixed: bool = False) -> Fields:
        """Return a nested table.

        Args:
            name: its key.
            model_type: its model type where it does not state one.
            fixed: whether it has that type whatever it states.
        """
        value = self.table.get(name)
        if value is None:
            raise ModelError(f"{self._where(name)} is missing", "this architecture keeps its sizes there")
        return self._child(name, value, model_type, fixed)

    def child_or_empty(self, name: str, model_type: str) -> Fields:
        """Return a nested table, an empty one where it is absent."""
        return self._child(name, self.table.get(name) or {}, model_type, fixed=True)

    def _child(self, name: str, value: object, model_type: str, fixed: bool) -> Fields:
        if not isinstance(value, Mapping):
            raise self.error(name, value, "a table")
        stated = value.get("model_type", model_type)
        if not isinstance(stated, str):
            raise self.error(f"{name}.model_type", stated, "a string")
        return Fields(value, model_type if fixed else stated, self.file, self._dotted(name), self.facts)

    def require(self, holds: bool, law: str, hint: str = "") -> None:
        """Raise a ModelError with the law and the place unless it holds."""
        if not holds:
            raise ModelError(f"{law} in {self.place}", hint)

    def error(self, name: str, value: object, wanted: str) -> ModelError:
        """Return the error for a value that is not what is wanted."""
        return ModelError(f"{self._where(name)}={_short(repr(value))} is not {wanted}", "correct the file")

    def unsupported(self, known: Iterable[str]) -> ModelError:
        """Return the error for a model type that no reader is for, with the nearest of those ``known``."""
        known = sorted(known)
        near = did_you_mean(self.model_type, known)
        return ModelError(
            f"{self._where('model_type')}={_short(repr(self.model_type))} is not supported",
            join_hints((near, f"supported: {', '.join(known)}")),
        )

    @property
    def place(self) -> str:
        """The table, for messages."""
        return f"{self.path} of {self.file}" if self.path else self.file

    def _where(self, name: str) -> str:
        return f"{self.file}: {self._dotted(name)}"

    def _dotted(self, name: str) -> str:
        return f"{self.path}.{name}" if self.path else name

    def note(self, name: str, value: _T) -> _T:
        """Record the value of a field and return it; what was resolved replaces what was read."""
        self.facts[self._dotted(name)] = value
        return value

    def _given(self, name: str, older: tuple[str, ...] = (), absent: object = None) -> object:
        """Return the value of a field that has to be there, by itself or by default; null counts as not there."""
        for spelling in (name, *older):
            if self.has(spelling):
                return self.table[spelling]
        default = self._default(name)
        value = absent if default is None else default
        if value is None:
            raise ModelError(f"{self._where(name)} is missing", f"a config of {self.model_type!r} needs it")
        return value

    def _nullable(self, name: str, older: tuple[str, ...] = ()) -> object:
        """Return the value of a field whose null has a meaning of its own."""
        for spelling in (name, *older):
            if spelling in self.table:
                return self.table[spelling]
        return self._default(name)

    def _default(self, name: str) -> object:
        return class_defaults(self.model_type).get(name) if self.path or name not in REQUIRED else None

    def _count(self, value: object, name: str, most: int) -> int:
        if not _is_int(value) or not 1 <= value <= most:
            raise self.error(name, value, f"a whole number from 1 to {most}")
        return value


def _is_int(value: object) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_size(value: object) -> TypeGuard[int]:
    return _is_int(value) and 1 <= value <= MAX_COUNT


def _short(text: str, most: int = 60) -> str:
    return text if len(text) <= most else text[:most] + "..."
