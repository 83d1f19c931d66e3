"""What pruning does to every patch of a video, as arrays: what the pictures of this package are drawn from."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from prunevid.config import PruneConfig
from prunevid.errors import PruneVidError
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.runtime.video.sources import read_frames

if TYPE_CHECKING:
    from prunevid.runtime.pipeline import Pipeline, Video

# An answer longer than this does not fit into a picture's header.
_ANSWER_TOKENS = 64
# The longer side of a frame as it is drawn, in pixels.
_DISPLAY_SIDE = 480
# Width over height of a frame as it is drawn; the model itself squeezes every frame into a square.
_WIDEST, _TALLEST = 2.4, 0.5


@dataclass(frozen=True, eq=False)
class TokenMaps:
    """A video's frames and what became of their patches for one question.

    A frame has `side * side` patches, row by row: the model's visual tokens before merging. frames: uint8
    [T, H, W, 3], RGB, as they are drawn. token: int64 [T, N], the merged token that a patch went into. static: bool
    [T, N], whether that token stands for the whole segment. kept: bool [T, N], whether the question kept it.
    attention: float32 [T, N] from 0 to 1, the token's score over the highest of the video. segment: int64 [T],
    ascending. sizes: int64 [V], patches per token. layer: M, whose attention it is. title: the video's and the model's
    names.
    """

    frames: np.ndarray
    token: np.ndarray
    static: np.ndarray
    kept: np.ndarray
    attention: np.ndarray
    segment: np.ndarray
    sizes: np.ndarray
    question: str
    answer: str
    layer: int
    title: str

    @property
    def side(self) -> int:
        """Patches along each side of a frame."""
        return math.isqrt(self.token.shape[1])

    def of_tokens(self, patches: np.ndarray) -> np.ndarray:
        """Per token [V] what is given per patch [T, N], where all patches of a token agree."""
        tokens = np.zeros(len(self.sizes), patches.dtype)
        tokens[self.token] = patches
        return tokens

    @property
    def counts(self) -> tuple[tuple[int, int], ...]:
        """Tokens (static, dynamic) of the whole video, after merging, and kept."""
        merged = self.of_tokens(self.static)
        kept = merged[self.of_tokens(self.kept)]
        return tuple((int(part.sum()), int((~part).sum())) for part in (self.static, merged, kept))

    @property
    def retained(self) -> float:
        """The share of the video's tokens that is kept."""
        return sum(self.counts[-1]) / self.token.size


def static_patches(token: np.ndarray, segment: np.ndarray) -> np.ndarray:
    """Which patches are static, bool [T, N], from each patch's token int64 [T, N] and each frame's segment int64 [T].

    A static position is averaged over its segment's frames before anything else (arXiv 2412.16117, section 3), so one
    token holds it in all of them; dynamic tokens never leave their frame. A segment of one frame is all dynamic.
    """
    static = np.zeros(token.shape, np.bool_)
    for number in np.unique(segment):
        frames = segment == number
        if np.count_nonzero(frames) > 1:
            static[frames] = (token[frames] == token[frames][0]).all(axis=0)
    return static


def map_tokens(
    frames: np.ndarray,
    token: np.ndarray,
    segment: np.ndarray,
    scores: np.ndarray,
    kept: np.ndarray,
    *,
    question: str,
    answer: str,
    layer: int,
    title: str,
) -> TokenMaps:
    """Lay what is known of tokens, scores [V] and kept int64 [R], over the patches that went into them.

    frames: uint8 [T, H, W, 3]; token: int64 [T, N]; segment: int64 [T]. Raises PruneVidError where N is no square.
    """
    if math.isqrt(token.shape[1]) ** 2 != token.shape[1]:
        raise PruneVidError(f"a frame of this model has {token.shape[1]} tokens, which are no square to draw")
    is_kept = np.zeros(len(scores), np.bool_)
    is_kept[kept] = True
    return TokenMaps(
        frames=frames,
        token=token,
        static=static_patches(token, segment),
        kept=is_kept[token],
        attention=(scores / max(float(scores.max()), np.finfo(np.float32).tiny)).astype(np.float32)[token],
        segment=segment,
        sizes=np.bincount(token.ravel(), minlength=len(scores)),
        question=question,
        answer=answer,
        layer=layer,
        title=title,
    )


def observe(
    pipeline: Pipeline, video: Video, question: str, *, frames: int | None = None, prune: bool | PruneConfig = True
) -> TokenMaps:
    """Ask a question about a video and look at what happened to its patches.

    frames and prune as in `Pipeline.open`; the answer is greedy, of 64 tokens at most. Raises PruneVidError where the
    video cannot be read, the question not be asked, or tokens have no places in a square.
    """
    # Before the video is read: a question that cannot be asked should not cost its encoding.
    ids = pipeline.prompt.encode(question)
    manifest = pipeline.bundle.manifest
    grid = manifest.token_layout.grid
    if grid is None or grid[0] != grid[1]:
        raise PruneVidError(f"visual tokens of {manifest.model.name} lie in no square of their frame to draw")
    count = manifest.frames if frames is None else frames
    # The model and the eye want frames of different sizes; to keep whole ones for both could take gigabytes.
    session = pipeline.open(video, frames=count, prune=prune)
    of_frame = centre if manifest.preprocessing.center_crop else np.asarray
    sampled = read_frames(video, count, lambda frame: display_frames(of_frame(frame)[None])[0])
    scores, kept = session.attend(ids)
    answer = session.ask(ids, SamplingConfig(max_new_tokens=_ANSWER_TOKENS))
    names = [manifest.model.name + (" with random weights" if manifest.model.random_weights else "")]
    if not isinstance(video, np.ndarray):
        names.insert(0, Path(video).name)
    return map_tokens(
        sampled.frames,
        session.video.patch_to_token,
        session.video.frame_segment,
        scores,
        kept,
        question=question,
        answer=answer.text.strip() + (" ..." if answer.finish_reason == "length" else ""),
        layer=manifest.prune.prune_layer,
        title=", ".join(names),
    )


def centre(frame: np.ndarray) -> np.ndarray:
    """The square in the middle of a frame [H, W, 3], which is all that some models are shown."""
    height, width = frame.shape[:2]
    side = min(height, width)
    top, left = (height - side) // 2, (width - side) // 2
    return frame[top : top + side, left : left + side]


def display_frames(frames: np.ndarray) -> np.ndarray:
    """Frames uint8 [T, H, W, 3] in the size in which they are drawn: 480 pixels at the longer side.

    They keep their shape, unless they are wider than 2.4 to 1 or taller than 1 to 2.
    """
    aspect = min(max(frames.shape[2] / frames.shape[1], _TALLEST), _WIDEST)
    size = (round(_DISPLAY_SIDE * min(1, aspect)), round(_DISPLAY_SIDE / max(1, aspect)))
    pictures = (Image.fromarray(np.ascontiguousarray(frame)) for frame in frames)
    return np.stack([np.asarray(picture.resize(size, Image.Resampling.LANCZOS)) for picture in pictures])
