"""Cluster labels of frames to contiguous segments, in one program: the operator `RefineSegments`.

Source: PruneVid (arXiv 2412.16117), section 3.2. The oracle is `prunevid.methods.segments.refine_segments`.
"""

from __future__ import annotations

import triton
import triton.language as tl

# Frames follow one another, so more warps would only wait for each other.
WARPS = 1


@triton.jit
def refine_segments_kernel(
    labels_ptr: tl.tensor, frames: tl.tensor, segment_ptr: tl.tensor, BLOCK: tl.constexpr
) -> None:
    """Write segment [frames] integer, non-decreasing from 0, of labels [frames] integer (of at most 32 bits)."""
    frame = tl.arange(0, BLOCK)
    inside = frame < frames
    label = tl.load(labels_ptr + frame, mask=inside, other=0).to(tl.int32)
    length = _run_lengths(labels_ptr, label, frames, BLOCK)
    longest = _longest_of_label(label, length, frames, BLOCK)
    kept = inside & (length == longest) & (length > 1)
    segment = _join_left_to_right(label, length, kept, frames, BLOCK)
    tl.store(segment_ptr + frame, segment, mask=inside)


@triton.jit
def _run_lengths(labels_ptr: tl.tensor, label: tl.tensor, frames: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Length in frames of the run that each frame belongs to, int32 [BLOCK]."""
    frame = tl.arange(0, BLOCK)
    before = tl.load(labels_ptr + frame - 1, mask=(frame > 0) & (frame < frames), other=0).to(tl.int32)
    after = tl.load(labels_ptr + frame + 1, mask=frame + 1 < frames, other=0).to(tl.int32)
    begins = (frame == 0) | (label != before)
    ends = (frame + 1 >= frames) | (label != after)
    first = tl.associative_scan(tl.where(begins, frame, 0), 0, _larger)
    last = tl.associative_scan(tl.where(ends, frame, BLOCK), 0, _smaller, reverse=True)
    return last - first + 1


@triton.jit
def _longest_of_label(label: tl.tensor, length: tl.tensor, frames: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Length of the longest run of each frame's label, int32 [BLOCK]."""
    longest = tl.zeros([BLOCK], tl.int32)
    for other in range(frames):
        same = label == _at(label, other, BLOCK)
        longest = tl.where(same, tl.maximum(longest, _at(length, other, BLOCK)), longest)
    return longest


@triton.jit
def _join_left_to_right(
    label: tl.tensor, length: tl.tensor, kept: tl.tensor, frames: tl.tensor, BLOCK: tl.constexpr
) -> tl.tensor:
    """Number of the segment of every frame, int32 [BLOCK]; a dissolved frame joins the longer run beside it."""
    frame = tl.arange(0, BLOCK)
    following = tl.associative_scan(tl.where(kept, frame, BLOCK), 0, _smaller, reverse=True)
    exists = following < BLOCK
    following = tl.where(exists, following, 0)
    right_label = tl.gather(label, following, 0)
    right_length = tl.where(exists, tl.gather(length, following, 0), 0)

    segment = tl.zeros([BLOCK], tl.int32)
    number = -1
    left_label = 0
    left_length = 0
    for now in range(frames):
        own = _at(label, now, BLOCK)
        right_size = _at(right_length, now, BLOCK)
        goes_left = (left_length > 0) & (left_length >= right_size)
        # With nothing kept anywhere, the first frame keeps its own label and all others join it.
        beside = tl.where(right_size > 0, _at(right_label, now, BLOCK), own)
        chosen = tl.where(_at(kept.to(tl.int32), now, BLOCK) != 0, own, tl.where(goes_left, left_label, beside))
        joins = (left_length > 0) & (chosen == left_label)
        number += tl.where(joins, 0, 1)
        left_length = tl.where(joins, left_length, 0) + 1
        left_label = chosen
        segment = tl.where(frame == now, number, segment)
    return segment


@triton.jit
def _at(vector: tl.tensor, index: tl.tensor, BLOCK: tl.constexpr) -> tl.tensor:
    """Element of an int32 [BLOCK], as a scalar."""
    return tl.sum(tl.where(tl.arange(0, BLOCK) == index, vector, 0), 0)


@triton.jit
def _larger(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    return tl.maximum(first, second)


@triton.jit
def _smaller(first: tl.tensor, second: tl.tensor) -> tl.tensor:
    return tl.minimum(first, second)
