"""How far the blocks of a decoder look back: sliding windows and chunks, in the patterns of the families.

A newer config lists ``layer_types``; older ones state a window and leave the pattern to the family.
"""

from __future__ import annotations

from collections.abc import Callable

from dse.model.fields import Fields

# Fields and number of blocks -> window of each block, 0 for the whole context.
Windows = Callable[[Fields, int], tuple[int, ...]]


def no_windows(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Every block looks at the whole context."""
    del f
    return (0,) * n_blocks


def same_window(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Every block has the sliding window of the config, if there is one."""
    return (f.count_or_none("sliding_window") or 0,) * n_blocks


def switched_window(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Every block has the window if ``use_sliding_window`` is set."""
    return same_window(f, n_blocks) if f.flag("use_sliding_window") else no_windows(f, n_blocks)


def later_windows(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Blocks from ``max_window_layers`` on have the window if ``use_sliding_window`` is set (Qwen2, Qwen3)."""
    if not f.flag("use_sliding_window"):
        return no_windows(f, n_blocks)
    window, first = f.count_or_none("sliding_window") or 0, f.index("max_window_layers")
    return listed_windows(f, n_blocks, window, [i >= first for i in range(n_blocks)])


def early_windows(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Every other block before ``max_window_layers`` has the window if ``use_sliding_window`` is set (Qwen2-MoE)."""
    if not f.flag("use_sliding_window"):
        return no_windows(f, n_blocks)
    window, first = f.count_or_none("sliding_window") or 0, f.index("max_window_layers")
    return listed_windows(f, n_blocks, window, [i % 2 == 0 and i < first for i in range(n_blocks)])


def listed_or_same_window(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Every block has the window, unless ``layer_types`` lists them (Ministral)."""
    return listed_windows(f, n_blocks, f.count_or_none("sliding_window") or 0, [True] * n_blocks)


def alternating_windows(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """Even blocks have the window (Gemma-2)."""
    window = f.count_or_none("sliding_window") or 0
    return listed_windows(f, n_blocks, window, [i % 2 == 0 for i in range(n_blocks)])


def mostly_windows(f: Fields, n_blocks: int) -> tuple[int, ...]:
    """All blocks but every ``sliding_window_pattern``-th have the window (Gemma-3: five of six)."""
    window, period = f.count_or_none("sliding_window") or 0, f.count("sliding_window_pattern", absent=6)
    return listed_windows(f, n_blocks, window, [(i + 1) % period != 0 for i in range(n_blocks)])


def listed_windows(f: Fields, n_blocks: int, window: int, otherwise: list[bool]) -> tuple[int, ...]:
    """Return the window of each block as ``layer_types`` lists it, else as ``otherwise`` has it."""
    types = f.names_or_none("layer_types", n_blocks)
    if types is None:
        return f.note("layer_types", tuple(window if local else 0 for local in otherwise))
    local = {"full_attention": 0, "sliding_attention": window, "chunked_attention": window}
    for name in types:
        f.require(name in local, f"layer_types has {name!r}, which is none of {', '.join(local)}")
    return f.note("layer_types", tuple(local[name] for name in types))
