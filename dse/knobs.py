"""The canonical knobs: every choice that a design can make, with its legal values, unit and scope.

A search space exposes some of them and leaves the others at the reference value, so all designs of a problem have the
same fields whatever the space. A knob's scope says how many values a design has of it:

    WEIGHT      one per channel group of each module with a weight     (n, modules x channel groups)
    LINEAR      one per linear module                                  (n, modules)
    CACHE       one per block that keeps keys and values               (n, blocks)
    HEADS, FFN  one per block with attention heads, with MLP channels  (n, blocks)
    BLOCK       one per block                                          (n, blocks)
    ATTENTION, MLP, NORM  one per component whose blocks have any      (n, components)
    IMAGE, TEXT one per role whose model sees images, reads text       (n, roles)
    ANSWER      one per role that answers: target, stage1, ...         (n, roles)
    STAGE       one per role that is asked before the target           (n, roles)
    PROBLEM     one                                                    (n,)

To add a knob: one entry in :data:`KNOBS`, and the cost models that read it.
"""

from __future__ import annotations

import enum
from dataclasses import dataclass, field
from typing import Final

from dse import units
from dse.errors import SpaceError, UserError
from dse.params import Value

BIT_WIDTHS: Final = (2, 3, 4, 6, 8, 16)
MAC_ARRAYS: Final = ("fixed", "scalable")
DATAFLOWS: Final = ("ws", "os", "is")
LOOP_ORDERS: Final = ("mnk", "mkn", "nmk", "nkm", "kmn", "knm")


class Scope(enum.Enum):
    """What a knob has one value of."""

    WEIGHT = "weight"
    LINEAR = "linear"
    CACHE = "cache"
    HEADS = "heads"
    FFN = "ffn"
    BLOCK = "block"
    ATTENTION = "attention"
    MLP = "mlp"
    NORM = "norm"
    IMAGE = "image"
    TEXT = "text"
    ANSWER = "answer"
    STAGE = "stage"
    PROBLEM = "problem"

    @property
    def has_blocks(self) -> bool:
        """Whether its values are spread over blocks (and so can be grouped along the hierarchy)."""
        return self not in (Scope.IMAGE, Scope.TEXT, Scope.ANSWER, Scope.STAGE, Scope.PROBLEM)


@dataclass(frozen=True, slots=True)
class Knob:
    """One design choice.

    Attributes:
        name: canonical name; carries its unit where it has one.
        scope: what it has one value of.
        kind: Python type of a value.
        help: what it does, for people.
        allowed: the legal values, or () where ``low <= value <= high`` is the law.
        low, high: bounds of a number.
        default: value of the reference design; None where the hardware or the scenario gives it.
        structural: a change of its value needs another prepared evaluator.
        spread: a fraction given for a group is spread over its members as 0 or 1 (see :func:`dse.space.spread`).
    """

    name: str
    scope: Scope
    kind: type
    help: str
    allowed: tuple[Value, ...] = ()
    low: float = 0.0
    high: float = 0.0
    default: Value | None = None
    structural: bool = False
    spread: bool = False
    aliases: tuple[str, ...] = field(default=())

    @property
    def unit(self) -> str:
        """Unit of a value as people write it, "" for plain numbers and words."""
        return units.unit_of(self.name) if self.kind is not str else ""

    @property
    def legal(self) -> str:
        """Its legal values as people write them."""
        if self.allowed:
            return ", ".join(map(str, self.allowed))
        if self.kind is bool:
            return "false, true"
        if self.kind is str:
            return "a catalogue name" if self.structural else "a word, see its meaning"
        return f"{self.low:,.0f} to {self.high:,.0f}" if self.kind is int else f"{self.low:g} to {self.high:g}"

    def read(self, value: Value, where: str) -> Value:
        """Return ``value`` as this knob stores it.

        Args:
            value: a number, text with a unit, a word or a boolean.
            where: the place, for the message ("space: weight_bits").

        Raises:
            SpaceError: not of the knob's kind, or outside its legal values.
        """
        if self.kind is str:
            if not isinstance(value, str):
                raise SpaceError(f"{where}={value!r} is not a word", self._law())
            read: Value = value
        elif self.kind is bool:
            read = _read_bool(value, where)
        else:
            if isinstance(value, bool):
                raise SpaceError(f"{where}={value!r} is not a number", self._law())
            try:
                number = units.parse(value, self.name)
            except UserError as error:
                raise SpaceError(error.message.replace(self.name, where, 1), error.hint) from None
            if self.kind is int and number != int(number):
                raise SpaceError(f"{where}={value!r} is not a whole number", self._law())
            read = int(number) if self.kind is int else number
        self._check(read, where)
        return read

    def _check(self, value: Value, where: str) -> None:
        if self.allowed:
            if value not in self.allowed:
                raise SpaceError(f"{where}={value!r} is not in {_listing(self.allowed)}", self._law())
        elif self.kind in (int, float) and not self.low <= float(value) <= self.high:
            raise SpaceError(f"{where}={value} is not in the range {self.low:g} <= x <= {self.high:g}", self._law())

    def _law(self) -> str:
        return f"{self.name}: {self.help}"


def _read_bool(value: Value, where: str) -> bool:
    if isinstance(value, bool):
        return value
    if value in ("true", "false", "on", "off", "yes", "no"):
        return value in ("true", "on", "yes")
    raise SpaceError(f"{where}={value!r} is not true or false")


def _listing(values: tuple[Value, ...]) -> str:
    return "(" + ", ".join(str(v) for v in values) + ")"


def _all(*knobs: Knob) -> dict[str, Knob]:
    return {knob.name: knob for knob in knobs}


KNOBS: Final[dict[str, Knob]] = _all(
    # How the model is compressed.
    Knob("weight_bits", Scope.WEIGHT, int, "bits of a stored weight, group scales and zero points not included",
         allowed=BIT_WIDTHS, default=16),
    Knob("act_bits", Scope.LINEAR, int, "bits of the activations that enter a linear module",
         allowed=(4, 6, 8, 16), default=16),
    Knob("k_bits", Scope.CACHE, int, "bits of a cached key element", allowed=(2, 3, 4, 6, 8, 16), default=16,
         aliases=("kv_bits",)),
    Knob("v_bits", Scope.CACHE, int, "bits of a cached value element", allowed=(2, 3, 4, 6, 8, 16), default=16,
         aliases=("kv_bits",)),
    Knob("head_keep", Scope.HEADS, float, "fraction of the attention heads kept, rounded up to whole units",
         low=0.01, high=1.0, default=1.0),
    Knob("ffn_keep", Scope.FFN, float, "fraction of the MLP channels kept, rounded up to whole channels",
         low=0.01, high=1.0, default=1.0),
    Knob("block_keep", Scope.BLOCK, float, "fraction of the blocks kept, spread evenly over the group",
         low=0.0, high=1.0, default=1.0, spread=True),
    # How it looks and how far.
    Knob("image_px", Scope.IMAGE, int, "longer side of the image given to the model, in pixels; 0 for the original",
         low=0, high=16_384, default=0),
    Knob("token_stride", Scope.IMAGE, int, "visual tokens are pooled over stride x stride neighbours",
         low=1, high=16, default=1),
    Knob("visual_token_keep", Scope.IMAGE, float, "fraction of the visual tokens kept, rounded up",
         low=0.01, high=1.0, default=1.0),
    Knob("max_context", Scope.TEXT, int, "positions that the cache is sized for; 0 for what the request needs",
         low=0, high=16_777_216, default=0),
    # How operators are fused.
    Knob("fuse_attention", Scope.ATTENTION, bool, "scores stay on chip: attention in tiles, with an online softmax",
         default=False),
    Knob("fuse_mlp", Scope.MLP, bool, "hidden features stay on chip: both projections of an MLP per tile of rows",
         default=False),
    Knob("fuse_norm", Scope.NORM, bool, "residual sum, norm and the projections that read it run per tile of rows",
         default=False),
    Knob("fuse_groups", Scope.PROBLEM, bool, "the study's own fusion groups are fused", default=True),
    # How requests are decoded and routed.
    Knob("draft", Scope.ANSWER, str, "who guesses tokens ahead: none, ngram (looks them up in the text), or a role",
         default="none"),
    Knob("draft_tokens", Scope.ANSWER, int, "tokens guessed per step; 0: as many as the model finds best",
         low=0, high=64, default=0),
    Knob("cascade", Scope.PROBLEM, str, "roles that are asked in turn, joined by +", default="target"),
    Knob("threshold", Scope.STAGE, float, "score from which a stage's answer is kept",
         low=0.0, high=1.0, default=0.5),
    Knob("self_tests", Scope.ANSWER, int, "checks that a stage writes for its answers; 0: its confidence is the score",
         low=0, high=64, default=0),
    Knob("solutions", Scope.ANSWER, int, "answers that a stage writes; the one with the best score counts",
         low=1, high=16, default=1),
    Knob("prefill_chunk", Scope.PROBLEM, int, "positions of a prompt that one pass takes; 0 for all",
         low=0, high=16_777_216, default=0),
    # What it runs on.
    Knob("device", Scope.PROBLEM, str, "catalogue device that runs the model", structural=True),
    Knob("batch", Scope.PROBLEM, int, "requests that run together", low=1, high=65_536),
    Knob("n_devices", Scope.PROBLEM, int, "devices that serve the batch; what the other knobs leave is data-parallel",
         low=1, high=65_536, default=1),
    Knob("tensor_parallel", Scope.PROBLEM, int, "devices that share each layer: its heads and channels",
         low=1, high=1024, default=1),
    Knob("pipeline_parallel", Scope.PROBLEM, int, "stages that the decoder's blocks are dealt to",
         low=1, high=1024, default=1),
    Knob("expert_parallel", Scope.PROBLEM, int, "parts that the experts of each layer are dealt to",
         low=1, high=4096, default=1),
    Knob("pe_rows", Scope.PROBLEM, int, "rows of processing elements of one array", low=1, high=4096),
    Knob("pe_cols", Scope.PROBLEM, int, "columns of processing elements of one array", low=1, high=4096),
    Knob("n_cores", Scope.PROBLEM, int, "arrays that share the on-chip memory and the DRAM port", low=1, high=1024),
    Knob("dataflow", Scope.PROBLEM, str, "operand that stays in the array: weights, outputs or inputs",
         allowed=DATAFLOWS),
    Knob("sram_bytes", Scope.PROBLEM, int, "on-chip memory that holds the tiles", low=1024, high=2**40),
    Knob("dram_bytes_per_s", Scope.PROBLEM, float, "DRAM bandwidth", low=1e6, high=1e15),
    Knob("freq_hz", Scope.PROBLEM, float, "clock of the array and the vector unit", low=1e6, high=1e11),
    Knob("vector_lanes", Scope.PROBLEM, int, "elements the vector unit works on per cycle", low=1, high=1_048_576),
    Knob("mac_array", Scope.PROBLEM, str, "whether narrow operands share a processing element", allowed=MAC_ARRAYS,
         default="fixed"),
    Knob("tile_m", Scope.PROBLEM, int, "rows of activations of one on-chip tile; 0: as the mapper finds best",
         low=0, high=1_048_576),
    Knob("tile_n", Scope.PROBLEM, int, "output features of one on-chip tile; 0: as the mapper finds best",
         low=0, high=1_048_576),
    Knob("tile_k", Scope.PROBLEM, int, "inner features of one on-chip tile; 0: as the mapper finds best",
         low=0, high=1_048_576),
    Knob("loop_order", Scope.PROBLEM, str, "order of the tile loops, outermost first; auto: as the mapper finds best",
         allowed=("auto", *LOOP_ORDERS)),
    Knob("attn_tile_q", Scope.PROBLEM, int, "query positions of a tile of fused attention; 0: as the model finds best",
         low=0, high=1_048_576, default=0),
    Knob("attn_tile_kv", Scope.PROBLEM, int, "key positions of a tile of fused attention; 0: as the model finds best",
         low=0, high=1_048_576, default=0),
)  # fmt: skip

ALIASES: Final[dict[str, tuple[str, ...]]] = {
    alias: tuple(k.name for k in KNOBS.values() if alias in k.aliases)
    for alias in sorted({a for k in KNOBS.values() for a in k.aliases})
}
