"""Which layers quantization hurts: one layer at a time, by what it does to the next token's distribution."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from prunevid.bundle import Bundle
from prunevid.calibration.judge import divergence
from prunevid.calibration.quantize.linears import load_graph
from prunevid.calibration.quantize.recipes import Recipe
from prunevid.calibration.quantize.rewrite import TREATMENTS, layers_of, put_quantized
from prunevid.calibration.quantize.store import WeightStore
from prunevid.calibration.quantize.variants import VariantBackend
from prunevid.calibration.questions import AskedVideo
from prunevid.calibration.workspace import Workspace
from prunevid.console.progress import Progress
from prunevid.errors import PruneVidError
from prunevid.runtime.pipeline import Pipeline
from prunevid.runtime.sequence import VideoTokens
from prunevid.runtime.session import VideoSession
from prunevid.runtime.text.sampling import SamplingConfig
from prunevid.runtime.video.pixel_values import resizer
from prunevid.runtime.video.sources import read_frames

# Videos and questions that every layer is measured on: its frames stay in memory, as large as the tower sees them.
_VIDEOS = 8
_QUESTIONS = 4
_FIRST_TOKEN = SamplingConfig(max_new_tokens=1)


@dataclass(frozen=True)
class FloatChoice:
    """Which layers stay in float: the `count` most sensitive, or as few as leave `max_kl` nats to the others.

    The sensitivities of the layers that are quantized add up to `max_kl` at most; what they come to together is
    measured when the bundle is judged.
    """

    count: int | None = None
    max_kl: float | None = None

    def __post_init__(self) -> None:
        if self.count is not None and self.count < 0:
            raise PruneVidError(f"the number of float layers must be 0 or more, not {self.count}")
        if self.max_kl is not None and not self.max_kl >= 0:
            raise PruneVidError(f"the largest KL must be 0 or more, not {self.max_kl}")

    @property
    def needs_ranking(self) -> bool:
        """Whether any layer may have to stay in float."""
        return bool(self.count) or self.max_kl is not None

    def choose(self, sensitivity: Mapping[str, float]) -> frozenset[str]:
        """The layers to leave in float, of sensitivities in nats by layer; ties go to the earlier layer."""
        order = sorted(sensitivity, key=lambda layer: -sensitivity[layer])
        count = self.count or 0
        if self.max_kl is not None:
            rest = np.array([sum(sensitivity[layer] for layer in order[n:]) for n in range(len(order) + 1)])
            count = int(np.argmax(rest <= self.max_kl))
        return frozenset(order[:count])


def measure_sensitivity(
    bundle: Bundle,
    recipe: Recipe,
    videos: Sequence[AskedVideo],
    workspace: Workspace,
    threads: int | None,
    progress: Progress,
) -> dict[str, float]:
    """KL(original || one layer quantized) of the next token's distribution in nats, by `GRAPH/LAYER`.

    A mean over the questions about the first calibration videos, through the whole chain, pruned. Layers whose
    quantized weights are in the workspace are measured, and each result is kept there.
    """
    treatments = recipe.dialects[bundle.manifest.dialect]
    layers = {
        name: layers_of(load_graph(bundle.file(bundle.manifest.graphs[name].file)), TREATMENTS[treatment])[0]
        for name, treatment in treatments.items()
    }
    progress.step("measuring how sensitive each layer is", sum(map(len, layers.values())))
    panel: _Panel | None = None
    found: dict[str, float] = {}
    for name, of_graph in layers.items():
        for layer in of_graph:
            step = f"sensitivity {name}/{layer}"
            if step not in workspace:
                panel = panel or _Panel(bundle, videos, threads)
                workspace.record(
                    step, panel.divergence_of(name, _one_quantized(bundle, recipe, workspace, name, layer))
                )
            found[f"{name}/{layer}"] = workspace[step]
            progress.advance()
    return found


def _one_quantized(bundle: Bundle, recipe: Recipe, workspace: Workspace, name: str, layer: str) -> ir.Model:
    """A graph with one layer quantized; that layer's weights are in memory, the others in the bundle's files."""
    model = load_graph(bundle.file(bundle.manifest.graphs[name].file))
    arrays = WeightStore(workspace, name).tensors(layer)
    loaded = {part: ir.Tensor(np.array(tensor.numpy()), name=tensor.name) for part, tensor in arrays.items()}
    put_quantized(model, TREATMENTS[recipe.dialects[bundle.manifest.dialect][name]], {layer: loaded})
    return model


class _Panel:
    """Videos and questions with the original's first tokens, that variants of the bundle are compared on."""

    def __init__(self, bundle: Bundle, videos: Sequence[AskedVideo], threads: int | None) -> None:
        self._backend = VariantBackend(bundle, threads)
        self._videos = videos[:_VIDEOS]
        shrink = resizer(bundle.manifest.preprocessing)
        self._frames = [read_frames(video.path, bundle.manifest.frames, shrink).frames for video in self._videos]
        self._tokens: list[VideoTokens] = []
        self._logits = self._first_tokens(self._opened(self._backend.pipeline()))

    def divergence_of(self, name: str, model: ir.Model) -> float:
        """Mean KL of the bundle with `model` for its graph `name`."""
        pipeline = self._backend.variant(name, model)
        if name == "vision_merge":
            sessions = (pipeline.open(frames) for frames in self._frames)
        else:
            # What stands before the language model does not change with it.
            sessions = (pipeline.session(tokens) for tokens in self._tokens)
        return float(divergence(self._logits, self._first_tokens(sessions)).mean())

    def _opened(self, pipeline: Pipeline) -> Iterator[VideoSession]:
        """A session of each video, one after the other; their tokens are noted down."""
        for frames in self._frames:
            session = pipeline.open(frames)
            self._tokens.append(session.video)
            yield session

    def _first_tokens(self, sessions: Iterable[VideoSession]) -> np.ndarray:
        logits = []
        for video, session in zip(self._videos, sessions, strict=True):
            for question in video.questions[:_QUESTIONS]:
                stream = session.stream(question.text, _FIRST_TOKEN)
                "".join(stream)
                logits.append(stream.first_logits)
        return np.array(logits, np.float32)
