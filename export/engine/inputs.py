"""Inputs for a bundle's graphs at any size that a profile allows: for comparing engines with ONNX Runtime.

Numbers are random, but every input is one that the runtime could have made: tables match the frames, groups ascend,
positions go on behind the past. Features are those of a few scenes, so that clustering has something to find.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import partial

import numpy as np
import numpy.typing as npt

from prunevid.bundle import Manifest, TensorSpec
from prunevid.export.engine.profiles import Profile
from prunevid.setting import GraphInput

Array = npt.NDArray[np.generic]

_CORNERS = ("minimum", "optimum", "maximum")


def sizes_at(profile: Profile, corner: str) -> dict[str, int]:
    """Sizes of a profile's dimensions at `minimum`, `optimum` or `maximum`."""
    place = _CORNERS.index(corner)
    return {name: size[place] for name, size in profile.sizes.items()}


def make_inputs(
    manifest: Manifest, graph: str, sizes: Mapping[str, int], values: Mapping[str, int], seed: int = 0
) -> dict[str, Array]:
    """Inputs of a graph of the chain, in its order, C-contiguous.

    sizes: of all its symbolic dimensions. values: of inputs with one number; those without get 0, but for
    past_length, which is then the size of the past.
    """
    source = _Source(manifest, sizes, values, np.random.default_rng(seed))
    return {spec.name: source.array(spec) for spec in manifest.graphs[graph].inputs}


class _Source:
    def __init__(
        self, manifest: Manifest, sizes: Mapping[str, int], values: Mapping[str, int], rng: np.random.Generator
    ) -> None:
        self._manifest, self._sizes, self._values, self._rng = manifest, sizes, values, rng
        self._makers: dict[str, Callable[[tuple[int, ...]], Array]] = {
            "pixel_values": lambda shape: rng.uniform(-1, 1, shape),
            "past_features": self._scenes,
            "features": self._scenes,
            **{each.name: partial(self._setting, each) for each in manifest.prune.graph_inputs},
            "position_ids": lambda shape: np.arange(shape[1])[None] + sizes.get("past", 0),
            "question_scores": lambda shape: rng.random(shape),
            "token_group": lambda shape: np.sort(self._groups(shape[0])),
            "quota": self._quota,
            "kept_count": lambda shape: np.full(shape, self._quota((self._sizes["groups"],)).sum()),
        }

    def array(self, spec: TensorSpec) -> Array:
        """A value for one input."""
        shape = tuple(dim if isinstance(dim, int) else self._sizes[dim] for dim in spec.shape)
        if spec.name in self._makers:
            made = self._makers[spec.name](shape)
        elif shape == (1,) and spec.dtype == "int64":
            default = self._sizes.get("past", 0) if spec.name == "past_length" else 0
            made = np.array([self._values.get(spec.name, default)])
        else:
            made = self._rng.standard_normal(shape)
        return np.asarray(made, np.dtype(spec.dtype), order="C")

    def _setting(self, graph_input: GraphInput, shape: tuple[int, ...]) -> Array:
        """An input that carries settings: a table up to its last entry, or a scalar."""
        return np.asarray(graph_input.value(self._manifest.prune, shape[0] - 1 if shape else 0))

    def _scenes(self, shape: tuple[int, ...]) -> Array:
        """Features [frames, tokens, channels]: a scene per four frames, in which some positions move."""
        frames, tokens, channels = shape
        scenes = self._rng.standard_normal((frames // 4 + 1, tokens, channels))
        features = scenes[np.arange(frames) // 4] + 0.05 * self._rng.standard_normal(shape)
        moving = self._rng.random(tokens) < 0.4
        features[:, moving] += 1.5 * self._rng.standard_normal((frames, int(moving.sum()), channels))
        return np.asarray(features)

    def _groups(self, tokens: int) -> Array:
        return np.random.default_rng(tokens).integers(0, self._sizes["groups"], tokens)

    def _quota(self, shape: tuple[int, ...]) -> Array:
        counts = np.bincount(self._groups(self._sizes["visual"]).astype(np.int64), minlength=shape[0])
        table = self._manifest.prune.keep_counts(int(counts.max(initial=0)))
        return np.asarray(table[counts])
