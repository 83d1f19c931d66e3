"""Which optimization profile of an engine takes given inputs: plain logic over the manifest's records."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from math import prod

from prunevid.bundle.sections.engine_sets import EngineProfile, EngineSpec, InputRange
from prunevid.errors import PruneVidError

Shape = tuple[int, ...]


def choose_profile(
    graph: str,
    engine: EngineSpec,
    shapes: Mapping[str, Shape],
    values: Mapping[str, int],
    build: str = "prunevid build",
) -> int:
    """The number of the profile that takes these inputs; of several, the one made for the smallest.

    shapes: of every input. values: of the inputs from which TensorRT computes shapes. build: the command that builds
    such engines. Raises PruneVidError where no profile takes them.
    """
    fitting = [number for number, profile in enumerate(engine.profiles) if not any(_misfits(profile, shapes, values))]
    if fitting:
        return min(fitting, key=lambda number: _largest(engine.profiles[number]))
    # Of the profile that comes nearest, whatever does not fit it says enough.
    nearest = min(engine.profiles, key=lambda profile: len(list(_misfits(profile, shapes, values))))
    raise PruneVidError(
        f"the engine of {graph} was built for less: {next(_misfits(nearest, shapes, values))}; use fewer frames and "
        f"words, or build the engines for more with `{build} --frames N --text N`"
    )


def largest_past(engine: EngineSpec) -> int:
    """The most rows of KV that any profile of a decoder segment takes as past; 0 where it has no past."""
    return max(
        (
            at.maximum[1]
            for profile in engine.profiles
            for name, at in profile.shapes.items()
            if name.startswith("past_key.")
        ),
        default=0,
    )


def _misfits(profile: EngineProfile, shapes: Mapping[str, Shape], values: Mapping[str, int]) -> Iterator[str]:
    for name, shape in shapes.items():
        at = profile.shapes[name]
        if not _within(shape, at):
            yield f"{name} is {_text(shape)}, it takes {_text(at.minimum)} to {_text(at.maximum)}"
    for name, at in profile.values.items():
        if not _within((values[name],), at):
            yield f"{name} is {values[name]}, it takes {at.minimum[0]} to {at.maximum[0]}"


def _within(numbers: Shape, at: InputRange) -> bool:
    return len(numbers) == len(at.minimum) and all(
        least <= number <= most for least, number, most in zip(at.minimum, numbers, at.maximum, strict=True)
    )


def _largest(profile: EngineProfile) -> int:
    return sum(prod(at.maximum) for at in profile.shapes.values())


def _text(shape: Shape) -> str:
    return "x".join(map(str, shape)) or "a number"
