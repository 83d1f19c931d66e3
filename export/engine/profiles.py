"""How large the inputs of every engine may be: optimization profiles from a bundle's limits.

A profile gives each symbolic dimension of a graph a smallest, a usual and a largest size. All smallest sizes are
possible together, and so are all usual and all largest ones.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import NamedTuple

from prunevid.bundle import Manifest
from prunevid.bundle.sections.engine_sets import EngineProfile, InputRange
from prunevid.errors import PruneVidError
from prunevid.export.lint.tensorrt import TOPK_LIMIT

# Rows for text: prompt, question and answer together.
TEXT = 1024
# Text that usually stands before a video.
_TEXT_BEFORE = 16


class Range(NamedTuple):
    """Smallest, usual and largest of a number."""

    minimum: int
    optimum: int
    maximum: int


@dataclass(frozen=True)
class BuildLimits:
    """What engines are built for: `frames` of a video at most, `rows` of a KV cache.

    `visual`: rows from a video's first visual token to its last, with what stands among them.
    """

    frames: int
    visual: int
    rows: int


@dataclass(frozen=True)
class Profile:
    """One profile of a graph: sizes of its symbolic dimensions, and values of the inputs that shapes may depend on."""

    name: str
    sizes: dict[str, Range]
    values: dict[str, Range]


def limits_of(manifest: Manifest, frames: int | None = None, text: int = TEXT) -> BuildLimits:
    """The limits for videos of `frames` (by default the bundle's) and `text` rows of prompt, question and answer.

    Raises PruneVidError where a number is below what one question needs, or the video alone is longer than the model
    takes.
    """
    frames = manifest.frames if frames is None else frames
    if frames < 1:
        raise PruneVidError(f"frames must be 1 or more, not {frames}")
    if text < 2 * _TEXT_BEFORE:
        raise PruneVidError(
            f"text must be {2 * _TEXT_BEFORE} or more, not {text}: it counts prompt, question and answer"
        )
    tokens, positions = manifest.token_layout.visual(frames), manifest.prompt.max_positions
    if tokens + 2 * _TEXT_BEFORE > positions:
        raise PruneVidError(
            f"{frames} frames are {tokens} visual tokens, the model has {positions} positions: use fewer"
        )
    visual = min(manifest.token_layout.most_rows(frames), positions - 2 * _TEXT_BEFORE)
    return BuildLimits(frames, visual, min(visual + text, positions))


def profiles_of(manifest: Manifest, graph: str, limits: BuildLimits) -> tuple[Profile, ...]:
    """The profiles of a graph of the chain; raises KeyError for any other."""
    makers = {"vision_merge": _vision, "merge": _merge, "llm_pre": _decoder, "llm_post": _decoder, "select": _select}
    return makers[graph](manifest, limits)


def largest_sizes(profiles: Iterable[Profile]) -> dict[str, int]:
    """The largest size of each symbolic dimension over all profiles of a graph."""
    sizes: dict[str, int] = {}
    for profile in profiles:
        for name, size in profile.sizes.items():
            sizes[name] = max(sizes.get(name, 0), size.maximum)
    return sizes


def ranges_of(profile: Profile) -> dict[str, tuple[int, int]]:
    """Smallest and largest of each symbolic dimension under a profile, and of the inputs that shapes may depend on."""
    return {name: (size.minimum, size.maximum) for name, size in {**profile.sizes, **profile.values}.items()}


def shapes_of(manifest: Manifest, graph: str, profile: Profile) -> dict[str, InputRange]:
    """Smallest, usual and largest shape of every input of a graph under a profile."""
    return {spec.name: _shape_range(spec.shape, profile) for spec in manifest.graphs[graph].inputs}


def recorded(manifest: Manifest, graph: str, profile: Profile, shape_inputs: Iterable[str]) -> EngineProfile:
    """A profile as the manifest has it. shape_inputs: the inputs that TensorRT computes shapes from.

    Raises PruneVidError where the values of one of them have no range.
    """
    values = {}
    for name in shape_inputs:
        if name not in profile.values:
            raise PruneVidError(
                f"TensorRT computes shapes of {graph} from its input {name}, whose values have no known range"
            )
        values[name] = InputRange(*((number,) for number in profile.values[name]))
    return EngineProfile(profile.name, shapes_of(manifest, graph, profile), values)


def _shape_range(shape: tuple[int | str, ...], profile: Profile) -> InputRange:
    def at(place: int) -> tuple[int, ...]:
        return tuple(dim if isinstance(dim, int) else profile.sizes[dim][place] for dim in shape)

    return InputRange(at(0), at(1), at(2))


def _vision(manifest: Manifest, limits: BuildLimits) -> tuple[Profile, ...]:
    """`encode`: new frames behind those that are encoded already, of a file or still in view of a camera."""
    batch = min(manifest.blocks.frames, limits.frames)
    new, past = Range(1, batch, batch), Range(0, 0, limits.frames - 1)
    frames = Range(*(a + b for a, b in zip(new, past, strict=True)))
    return (Profile("encode", {"frames_new": new, "frames_past": past, "frame_counts": _counts(frames)}, {}),)


def _merge(manifest: Manifest, limits: BuildLimits) -> tuple[Profile, ...]:
    """`merge`: features of one frame up to a whole video's."""
    frames = Range(1, limits.frames, limits.frames)
    return (Profile("merge", {"frames": frames, "frame_counts": _counts(frames)}, {}),)


def _counts(frames: Range) -> Range:
    """Sizes of the table of segment counts, which has an entry for every number of frames, none included."""
    return Range(*(number + 1 for number in frames))


def _decoder(manifest: Manifest, limits: BuildLimits) -> tuple[Profile, ...]:
    """`rows`: blocks of rows of a prompt, and single rows of an answer, behind a growing past.

    One profile for both, since each profile of an engine stores the weights again. It is tuned for full blocks: for
    single rows, TensorRT-RTX sets half as much memory again aside for activations (docs/tensorrt.md).
    """
    block = min(manifest.blocks.rows, limits.rows)
    rows = Range(1, block, block)
    past = Range(0, limits.visual // 2, limits.rows - 1)
    # A block is scored from its first row on if it is the question's, else in its last row only.
    values = {"past_length": past, "question_start": Range(0, 0, rows.maximum - 1)}
    return (Profile("rows", {"rows": rows, "past": past}, values),)


def _select(manifest: Manifest, limits: BuildLimits) -> tuple[Profile, ...]:
    """All rows of a video and a question: `groups` where tokens compete in several groups, `global` in one.

    Without plugins, TensorRT sorts so many of a group's tokens as are kept, and fewer than 3840.
    """
    merged, kept = _merged(manifest, limits), _kept(manifest, limits)
    rows, axes = Range(1, merged + 2 * _TEXT_BEFORE, limits.rows), Range(*[manifest.token_layout.position_axes] * 3)
    sizes = {"total": rows, "past": rows, "visual": Range(1, merged, limits.visual), "axes": axes}
    start = Range(0, _TEXT_BEFORE, limits.rows - limits.visual)
    layout = manifest.token_layout
    # Of each frame and segment, and of what stands among frames, which is in groups of at most a frame's tokens.
    most_groups = 2 * limits.frames
    if beside := limits.visual - layout.visual(limits.frames):
        most_groups += limits.frames + beside // layout.tokens_per_frame
    return tuple(
        Profile(
            name,
            {**sizes, "groups": groups},
            {"video_start": start, "kept_count": Range(0, min(kept, most), most)},
        )
        for name, groups, most in (
            ("groups", Range(2, most_groups, most_groups), limits.visual),
            ("global", Range(1, 1, 1), min(limits.visual, TOPK_LIMIT - 1)),
        )
    )


def _merged(manifest: Manifest, limits: BuildLimits) -> int:
    """Visual tokens that are usually left after merging."""
    return max(1, int(limits.visual * manifest.prune.cluster_ratio))


def _kept(manifest: Manifest, limits: BuildLimits) -> int:
    """Visual tokens that are usually left after selecting."""
    return max(1, int(_merged(manifest, limits) * manifest.prune.keep_ratio))
