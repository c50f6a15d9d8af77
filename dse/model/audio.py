"""Audio rules: how many frames and tokens a clip of a given length becomes.

The front end makes 100 mel frames a second and a strided convolution halves them, so an encoder with 1,500 positions
hears 30 s at a time. Shorter clips are padded to that window, and the padding is computed like sound. A longer clip is
cut into windows, each encoded on its own. Whisper keeps its windows as states for cross-attention; Qwen2-Audio pools
pairs of positions and hands those that cover sound to the decoder.

Left out: timestamps and the overlap that long-form transcription may use. Qwen2-Audio's processor cuts off what
exceeds one window; here the rest becomes further windows, as if given as further clips.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Final, Protocol

from dse.errors import UserError
from dse.model.parts import AudioLayout

SAMPLES_PER_S: Final = 16_000
SAMPLES_PER_FRAME: Final = 160
MAX_SECONDS: Final = 1e6


class AudioRule(Protocol):
    """How one clip becomes frames and tokens."""

    @property
    def has_tokens(self) -> bool:
        """Whether the clip becomes tokens of the decoder (not only states for cross-attention)."""
        ...

    def layout(self, seconds: float) -> AudioLayout:
        """Return what a clip of this length becomes."""
        ...


def _mel_frames(seconds: float) -> int:
    """Return the mel frames that cover a clip."""
    if isinstance(seconds, bool) or not isinstance(seconds, int | float) or not 0 < seconds <= MAX_SECONDS:
        raise UserError(f"audio of {seconds!r} seconds is not a length above 0 and at most {MAX_SECONDS:g}")
    return max(1, math.ceil(int(seconds * SAMPLES_PER_S) / SAMPLES_PER_FRAME))


@dataclass(frozen=True, slots=True)
class StateWindows:
    """Windows of encoder states for cross-attention: Whisper.

    Attributes:
        positions: encoder positions of one window.
    """

    positions: int

    @property
    def has_tokens(self) -> bool:
        """No: states only."""
        return False

    def layout(self, seconds: float) -> AudioLayout:
        """Return the layout; ``n_states`` counts all windows, of which a decoder pass sees one."""
        windows = math.ceil(_mel_frames(seconds) / (2 * self.positions))
        return AudioLayout(
            n_windows=windows,
            mel=2 * self.positions,
            frames=self.positions,
            pooled=self.positions,
            n_tokens=0,
            n_states=windows * self.positions,
        )


@dataclass(frozen=True, slots=True)
class PooledWindows:
    """Windows pooled over pairs of positions into tokens: Qwen2-Audio.

    Attributes:
        positions: encoder positions of one window.
        extra_tokens: delimiters per window (audio start and end).
    """

    positions: int
    extra_tokens: int = 2

    @property
    def has_tokens(self) -> bool:
        """Yes."""
        return True

    def layout(self, seconds: float) -> AudioLayout:
        """Return the layout; tokens cover the sound, ``pooled`` the whole padded windows."""
        frames, window = _mel_frames(seconds), 2 * self.positions
        windows = math.ceil(frames / window)
        rest = frames - (windows - 1) * window
        return AudioLayout(
            n_windows=windows,
            mel=window,
            frames=self.positions,
            pooled=self.positions // 2,
            n_tokens=(windows - 1) * _pooled(window) + _pooled(rest),
            extra_tokens=windows * self.extra_tokens,
        )


def _pooled(mel: int) -> int:
    """Return the positions left of ``mel`` frames after a convolution and a pooling of stride 2 each."""
    convolved = (mel - 1) // 2 + 1
    return (convolved - 2) // 2 + 1
