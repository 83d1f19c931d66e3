"""What the manifest says about the blocks in which frames and rows go through the graphs."""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.validation import require_integer

__all__ = ["DEFAULT_BLOCKS", "Blocks"]

_MOST_FRAMES = 1 << 10
_MOST_ROWS = 1 << 16


@dataclass(frozen=True)
class Blocks:
    """How much of a video and of a prompt one run of a graph takes; engines are built for it.

    Attributes:
        frames: Frames that the vision tower encodes at once: enough rows for full speed, few enough that the
            activations of a long video never exist together.
        rows: Rows that a decoder segment takes at once. ONNX Runtime's attention computes every score of its rows
            against all rows so far and masks the later ones: in blocks, what lies behind a block is never computed,
            nor held in memory.

    Raises:
        InvalidValueError: A number is out of its range.
    """

    frames: int
    rows: int

    def __post_init__(self) -> None:
        require_integer("frames", self.frames, 1, _MOST_FRAMES)
        require_integer("rows", self.rows, 1, _MOST_ROWS)


DEFAULT_BLOCKS = Blocks(frames=4, rows=512)
"""What an export writes."""
