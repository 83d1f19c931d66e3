"""What the exporter must know of a model family. A family is a module that has all of this."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Protocol

import onnx_ir as ir

from prunevid.bundle.sections.layout import TokenLayout
from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.cost import VisionShape
from prunevid.export.graphs.decoder import DecoderSpec
from prunevid.export.graphs.vision import VisionSpec


@dataclass(frozen=True)
class TensorNames:
    """What tensors are called in today's transformers model, and in checkpoints.

    Attributes:
        embeddings: The token embedding table.
        head: The output matrix.
        decoder: What stands before the names of the language model's tensors.
        learned_rows: Learned vectors that stand among visual tokens; in a bundle, they are the rows of the embedding
            table behind the vocabulary.
        renames: Patterns of names in checkpoints, and today's.
        unused: Patterns of tensors that checkpoints hold and no output that the model reads depends on.
    """

    embeddings: str
    head: str
    decoder: str
    learned_rows: tuple[str, ...]
    renames: tuple[tuple[str, str], ...]
    unused: tuple[str, ...]

    def shapes(self, model: Any) -> dict[str, tuple[int, ...]]:
        """Shape of every tensor that a checkpoint of `model` holds, tied ones once, those that nothing uses not."""
        shapes = {name: tuple(parameter.shape) for name, parameter in model.named_parameters()}
        return {n: shape for n, shape in shapes.items() if not any(re.fullmatch(unused, n) for unused in self.unused)}


@dataclass(frozen=True)
class ChatFormat:
    """A chat template and the special tokens in it with their numbers, for bundles without a checkpoint.

    Attributes:
        template: The template, in Jinja.
        special_tokens: Numbers of the special tokens.
        video_token: The one that stands for the video, or for each of its frames.
        end: The one that ends an answer.
    """

    template: str
    special_tokens: dict[str, int]
    video_token: str
    end: str


@dataclass(frozen=True)
class ProcessorFormat:
    """How a checkpoint of the family says what frames become, and what the class that reads it in transformers assumes.

    Attributes:
        called: The family, as messages call it.
        section: The key of `processor_config.json` whose object wins.
        files: The files that are read where it has none; the first one wins.
        classes: How the names of the classes that read them begin; others take further steps.
        size: What the class assumes for `size`.
        crop: What it assumes for the side of `crop_size`, in pixels; None where it does not crop.
        mean: What published checkpoints say, for bundles without one; the classes all assume CLIP's.
        std: Likewise.
        refused: Keys that others ignore and these classes obey, which must be off.
    """

    called: str
    section: str
    files: tuple[str, ...]
    classes: tuple[str, ...]
    size: Mapping[str, int]
    crop: int | None
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    refused: tuple[str, ...] = ()

    def usual(self, side: int) -> Preprocessing:
        """What published checkpoints make of frames, for a tower that takes squares of `side` pixels."""
        return Preprocessing(side, self.mean, self.std, center_crop=self.crop is not None)


class Family(Protocol):
    """A model family."""

    @property
    def FAMILY(self) -> str:
        """Its name, as manifests have it."""
        ...

    @property
    def NAMES(self) -> TensorNames:
        """Its tensors."""
        ...

    @property
    def CHAT(self) -> ChatFormat:
        """Its chat format."""
        ...

    @property
    def PROCESSOR(self) -> ProcessorFormat:
        """Its preprocessing."""
        ...

    def recognizes(self, data: Mapping[str, Any]) -> bool:
        """Whether a `config.json` is of this family."""
        ...

    def parse_config(self, data: dict[str, Any], where: str) -> Any:
        """The transformers config of a `config.json`'s content.

        Args:
            data: The content.
            where: The file, as messages call it.

        Raises:
            PruneVidError: A value is out of bounds, or asks for what the exporter would get wrong.
        """
        ...

    def empty_model(self, config: Any) -> Any:
        """The transformers model on the meta device: all names and shapes, no memory."""
        ...

    def placeholder(self, config: Any) -> int:
        """The number of the token that stands for the video in a prompt, or for each of its frames."""
        ...

    def vision_spec(self, config: Any, model: Any, dtype: ir.DataType, attention: str) -> VisionSpec:
        """What is traced: tower, projector and pooling.

        Args:
            config: As `parse_config` gives it.
            model: As `empty_model` gives it.
            dtype: Type of the parameters, FLOAT or FLOAT16.
            attention: transformers' name for how the tower attends.
        """
        ...

    def token_layout(self, config: Any) -> TokenLayout:
        """How the language model wants a video's tokens; rows from vocab_size on are those of NAMES.learned_rows."""
        ...

    def vision_shape(self, config: Any) -> VisionShape:
        """Shape of the vision tower, as far as it runs."""
        ...

    def decoder_spec(self, config: Any, tied: bool | None = None) -> DecoderSpec:
        """The language model.

        Args:
            config: As `parse_config` gives it.
            tied: Whether the output matrix is the embedding table; None: as the config has it.
        """
        ...
