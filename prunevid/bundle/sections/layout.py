"""What the manifest says about the tokens of a video: how many, in which order, and what stands among them."""

from __future__ import annotations

import re
import string
from dataclasses import dataclass

from prunevid.errors import InvalidValueError
from prunevid.validation import require, require_integer, require_text, shown

__all__ = ["ENCODINGS", "MOST_BETWEEN", "PLACEHOLDERS", "POSITION_AXES", "Piece", "TokenLayout"]

PLACEHOLDERS = ("video", "frame")
ENCODINGS = ("frame", "clip")
POSITION_AXES = (1, 3)
MOST_BETWEEN = 16
"""Tokens that a chat template may write between the placeholders of two frames; usually it is one, of a line break."""

_MOST_TOKENS = 1 << 16
_MOST_CHANNELS = 1 << 20
_MOST_PIECES = 16
_LONGEST_TEXT = 200
_FORMAT = re.compile(r"\.[0-6]f")


@dataclass(frozen=True)
class Piece:
    """What stands before or behind visual tokens: either a learned vector or a text.

    Attributes:
        row: The vector's row in the embedding table.
        text: The text; `{seconds:.1f}` in it stands for the time of the frame, with 0 to 6 digits behind the point.

    Raises:
        InvalidValueError: It is both or neither, or the text has another field.
    """

    row: int | None = None
    text: str | None = None

    def __post_init__(self) -> None:
        require("piece", (self.row, self.text), (self.row is None) != (self.text is None), "a row or a text")
        if self.row is not None:
            require_integer("row", self.row, 0)
        else:
            require_text("text", self.text, _LONGEST_TEXT)
            wanted = "a text whose only field is {seconds:.1f}, with 0 to 6 digits behind the point"
            require("text", self.text, all(map(_is_time, _fields(self.text))), wanted)

    @property
    def is_timed(self) -> bool:
        """Whether it says the time of its frame."""
        return self.text is not None and bool(_fields(self.text))


_Field = tuple[str, str | None, str | None]


def _fields(text: str | None) -> list[_Field]:
    """Name, format and conversion of a text's fields; one without a name for what is no format string."""
    try:
        parts = list(string.Formatter().parse(text or ""))
    except ValueError:
        return [("", None, None)]
    return [(name, form, conversion) for _, name, form, conversion in parts if name is not None]


def _is_time(field: _Field) -> bool:
    name, form, conversion = field
    return name == "seconds" and conversion is None and _FORMAT.fullmatch(form or "") is not None


@dataclass(frozen=True)
class TokenLayout:
    """A video's tokens as the language model wants them, before anything is merged.

    Attributes:
        tokens_per_frame: Visual tokens of one frame.
        grid: Rows and columns in which a frame's tokens lie, row by row; None where they have no places in the frame.
        placeholder: What the placeholder of the prompt (`prompt.video_token`) stands for: `video`, which it does
            once, or `frame`, one for each; what the template writes between two of them then stands between frames.
        before_frame: What stands before the tokens of each frame.
        after_frame: What stands behind them.
        after_video: What stands behind all of it.
        position_axes: Positions of a row: 1, or 3 (time, height, width).
        encoding: Whether the tower encodes each `frame` alone, or a `clip` as a whole.
        question_dependent: Whether visual tokens depend on the question.
        features: Tokens and channels of a frame before merging, where they are not those of the visual tokens.

    Raises:
        InvalidValueError: A value is out of its range, or the grid has not as many places as a frame has tokens.
    """

    tokens_per_frame: int
    grid: tuple[int, int] | None
    placeholder: str = "video"
    before_frame: tuple[Piece, ...] = ()
    after_frame: tuple[Piece, ...] = ()
    after_video: tuple[Piece, ...] = ()
    position_axes: int = 1
    encoding: str = "frame"
    question_dependent: bool = False
    features: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        require_integer("tokens_per_frame", self.tokens_per_frame, 1, _MOST_TOKENS)
        if self.grid is not None:
            for side in self.grid:
                require_integer("grid", side, 1, _MOST_TOKENS)
            if self.grid[0] * self.grid[1] != self.tokens_per_frame:
                raise InvalidValueError(f"grid {shown(self.grid)} has not {self.tokens_per_frame} places.")
        require("placeholder", self.placeholder, self.placeholder in PLACEHOLDERS, " or ".join(PLACEHOLDERS))
        for name in ("before_frame", "after_frame", "after_video"):
            pieces = getattr(self, name)
            require(name, len(pieces), len(pieces) <= _MOST_PIECES, f"{_MOST_PIECES} pieces or fewer")
        if any(piece.is_timed for piece in self.after_video):
            raise InvalidValueError("after_video must not have {seconds}, which is the time of a frame.")
        require("position_axes", self.position_axes, self.position_axes in POSITION_AXES, "1 or 3")
        require("encoding", self.encoding, self.encoding in ENCODINGS, " or ".join(ENCODINGS))
        if self.features is not None:
            for size, most in zip(self.features, (_MOST_TOKENS, _MOST_CHANNELS), strict=True):
                require_integer("features", size, 1, most)

    @property
    def pieces(self) -> tuple[Piece, ...]:
        """All that stands among visual tokens and behind them."""
        return (*self.before_frame, *self.after_frame, *self.after_video)

    @property
    def rows(self) -> tuple[int, ...]:
        """The rows of the embedding table that it names, each once, ascending."""
        return tuple(sorted({piece.row for piece in self.pieces if piece.row is not None}))

    def most_rows(self, frames: int) -> int:
        """Rows that so many frames take at most, with all that stands beside each of them."""
        # A text has no more tokens than bytes, and a time in it is no longer than its field.
        texts = [piece.text for piece in (*self.before_frame, *self.after_frame)]
        beside = sum(1 if text is None else len(text.encode()) for text in texts)
        between = MOST_BETWEEN if self.placeholder == "frame" else 0
        return frames * (self.tokens_per_frame + beside + between)

    def visual(self, frames: int) -> int:
        """Visual tokens of so many frames."""
        return frames * self.tokens_per_frame
