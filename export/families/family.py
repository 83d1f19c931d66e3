"""What the exporter must know of a model family. A family is a module that has all of this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from prunevid.cost import VisionShape
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.export.graphs.vision import VisionSpec


@dataclass(frozen=True)
class TensorNames:
    """What tensors are called in today's transformers model, and in checkpoints.

    embeddings, head: the token embedding table and the output matrix. decoder: what stands before the names of the
    language model's tensors. behind_video: the learnt vector behind the video's tokens. renames: patterns of names in
    checkpoints, and today's. unused: patterns of tensors that checkpoints hold and no output that the model reads
    depends on.
    """

    embeddings: str
    head: str
    decoder: str
    behind_video: str
    renames: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    def shapes(self, model: Any) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a checkpoint of ``model`` holds, tied ones once, those that nothing uses not."""
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        return {n: shape for n, shape in shapes.items() if not any(re.fullmatch(unused, n) for unused in self.unused)}


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the special tokens in it with their numbers, for bundles without a checkpoint.

    video_token: stands for the video. end: ends an answer.
    """

    template: str
    special_tokens: dict[str, int]
    video_token: str
    end: str


class Family(Protocol):
    """A model family."""

    @property
    def FAMILY(self) -> str:
        """Its name in manifests; a release runs those in ``prunevid.bundle.manifest.FAMILIES``."""
        ...

    @property
    def NAMES(self) -> TensorNames:
        """Its tensors."""
        ...

    @property
    def CHAT(self) -> ChatFormat:
        """Its chat format."""
        ...

    def recognizes(self, data: Mapping[str, Any]) -> bool:
        """Whether a ``config.json`` is of this family."""
        ...

    def parse_config(self, data: dict[str, Any], where: str) -> Any:
        """The transformers config of a ``config.json``'s content.

        Raises PruneVidError for values out of bounds, and for variants that the exporter would get wrong.
        """
        ...

    def empty_model(self, config: Any) -> Any:
        """The transformers model on the meta device: all names and shapes, no memory."""
        ...

    def vision_spec(self, config: Any, model: Any, dtype: ir.DataType, attention: str) -> VisionSpec:
        """What is traced: tower, projector and pooling. attention: transformers' name for how the tower attends."""
        ...

    def vision_shape(self, config: Any) -> VisionShape:
        """Shape of the vision tower, as far as it runs."""
        ...

    def decoder_spec(self, config: Any, tied: bool | None = None) -> DecoderSpec:
        """The language model. tied: whether the output matrix is the embedding table; None: as the config has it."""
        ...
