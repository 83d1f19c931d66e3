"""What `manifest.json` says, section by section."""

from __future__ import annotations

import re
from dataclasses import dataclass

from prunevid.bundle.sections.blocks import Blocks
from prunevid.bundle.sections.cache import KvCacheSpec
from prunevid.bundle.sections.engine_sets import EngineSet, EngineSpec
from prunevid.bundle.sections.layout import TokenLayout
from prunevid.bundle.sections.preprocessing import Preprocessing
from prunevid.bundle.sections.quantization import Quantization
from prunevid.bundle.sections.tuning import Tuning
from prunevid.config import PruneConfig
from prunevid.cost import DecoderShape, VisionShape
from prunevid.dialects import DIALECTS
from prunevid.errors import InvalidValueError
from prunevid.validation import require, require_integer, require_text

SCHEMA_VERSION = 2
MANIFEST = "manifest.json"
MOST_FRAMES = 10_000
"""Frames of a video that a bundle can be for."""
PRECISIONS = ("fp32", "fp16", "int8", "int4", "fp8")
"""What weights can be in, by export or calibration."""

_ITEM_SIZES = {"float32": 4, "float16": 2}
_LONGEST_TOKEN = 1000
_LONGEST_NAME = 200
_MOST_EOS_IDS = 100
_LARGEST_FILE = 1 << 50


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: ONNX element type in NumPy's words; a dimension is a size or a symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph of the chain.

    Attributes:
        file: Its file in the bundle.
        files: The bundle's files that hold its weights, by name, ascending; the embedding table's is among them where
            that is a weight of the graph, too.
        inputs: In the file's order.
        outputs: In the file's order.

    Raises:
        InvalidValueError: The files are not in order, or one is named twice.
    """

    file: str
    files: tuple[str, ...]
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def __post_init__(self) -> None:
        require("files", self.files, list(self.files) == sorted(set(self.files)), "names, each once, ascending")


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding table: a raw row-major [rows, columns] file.

    Rows behind the model's vocabulary are learned vectors that are no tokens of the text; the token layout names them.
    """

    file: str
    dtype: str
    rows: int
    columns: int

    def __post_init__(self) -> None:
        require("dtype", self.dtype, self.dtype in _ITEM_SIZES, " or ".join(_ITEM_SIZES))
        require_integer("rows", self.rows, 1)
        require_integer("columns", self.columns, 1)

    @property
    def nbytes(self) -> int:
        """Bytes of the file."""
        return self.rows * self.columns * _ITEM_SIZES[self.dtype]


@dataclass(frozen=True)
class PromptSpec:
    """How text becomes ids and back: files of the bundle and special tokens.

    Attributes:
        tokenizer: Of the language model.
        chat_template: Its template.
        video_token: What the template writes where the video belongs, or each frame (`TokenLayout.placeholder`).
        eos_ids: What ends an answer.
        max_positions: The longest sequence that the language model takes.
        special_tokens: The tokenizer's named tokens, by the names that chat templates know them by (`bos_token`,
            ...); None in bundles of older releases, which do not have them.
        question_tokenizer: The tokenizer of what else reads the question, where visual tokens depend on it.

    Raises:
        InvalidValueError: A value is out of its range.
    """

    tokenizer: str
    chat_template: str
    video_token: str
    eos_ids: tuple[int, ...]
    max_positions: int
    special_tokens: dict[str, str] | None = None
    question_tokenizer: str | None = None

    def __post_init__(self) -> None:
        require_text("video_token", self.video_token, _LONGEST_TOKEN)
        require("eos_ids", self.eos_ids, 1 <= len(self.eos_ids) <= _MOST_EOS_IDS, f"1 to {_MOST_EOS_IDS} tokens")
        for token_id in self.eos_ids:
            require_integer("eos_ids", token_id, 0)
        require_integer("max_positions", self.max_positions, 1)
        for name, token in (self.special_tokens or {}).items():
            if not (name.isidentifier() and name.endswith("_token") and 0 < len(token) <= _LONGEST_TOKEN):
                raise InvalidValueError(f"prompt.special_tokens: {name[:80]!r} is not the name and text of a token")


@dataclass(frozen=True)
class ModelSpec:
    """What was exported.

    Attributes:
        name: What the command line calls the model.
        family: The family that it was exported as, for whoever reads this: what its graphs need, the rest says.
        random_weights: Whether its weights are made up: such bundles are for measuring latency.
        decoder: Shape of the language model.
        tied: Whether its output matrix is the embedding table, in the embedding table's file.
        projection_bias: Whether the projections to queries, keys and values have a bias, as Qwen2's do.
        query_key_norm: Whether queries and keys are normed, as Qwen3's are.
        vision: Shape of the vision tower.

    Raises:
        InvalidValueError: A value is out of its range.
    """

    name: str
    family: str
    random_weights: bool
    decoder: DecoderShape
    tied: bool
    projection_bias: bool
    query_key_norm: bool
    vision: VisionShape

    def __post_init__(self) -> None:
        require_text("name", self.name, _LONGEST_NAME)
        require_text("family", self.family, _LONGEST_NAME)


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: int
    sha256: str

    def __post_init__(self) -> None:
        require_integer("size", self.size, 0, _LARGEST_FILE)
        require("sha256", self.sha256, re.fullmatch("[0-9a-f]{64}", self.sha256) is not None, "64 hexadecimal digits")


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime must know about a bundle, as `manifest.json` has it.

    least_onnxruntime: the first release of ONNX Runtime that runs the graphs, such as `1.27`; None for any that the
    runtime itself accepts. engine_sets: engines of all graphs, a set for
    every place that some were built for.
    """

    schema_version: int
    created_by: str
    model: ModelSpec
    dialect: str
    precision: str
    frames: int
    prune: PruneConfig
    token_layout: TokenLayout
    cache: KvCacheSpec
    blocks: Blocks
    graphs: dict[str, GraphSpec]
    embeddings: EmbeddingSpec
    prompt: PromptSpec
    preprocessing: Preprocessing
    files: dict[str, FileRecord]
    quantization: Quantization | None = None
    tuning: Tuning | None = None
    least_onnxruntime: str | None = None
    engine_sets: tuple[EngineSet, ...] = ()

    def __post_init__(self) -> None:
        require("dialect", self.dialect, self.dialect in DIALECTS, " or ".join(DIALECTS))
        require("precision", self.precision, self.precision in PRECISIONS, f"one of {', '.join(PRECISIONS)}")
        require_integer("frames", self.frames, 1, MOST_FRAMES)
        if self.least_onnxruntime is not None:
            version = re.fullmatch(r"[0-9]{1,4}(\.[0-9]{1,4}){1,3}", self.least_onnxruntime)
            require("least_onnxruntime", self.least_onnxruntime, version is not None, "a version, such as 1.27")

    @property
    def all_engines(self) -> tuple[EngineSpec, ...]:
        """Every engine that the bundle has, whatever built it."""
        return tuple(engine for engines in self.engine_sets for engine in engines.graphs.values())

    def engines_of(self, product: str) -> tuple[EngineSet, ...]:
        """The sets that a product built."""
        return tuple(engines for engines in self.engine_sets if engines.product == product)

    @property
    def float_type(self) -> str:
        """`fp32` or `fp16`: the type of all that is not quantized, whatever `precision` says of the weights."""
        return "fp16" if self.embeddings.dtype == "float16" else "fp32"
