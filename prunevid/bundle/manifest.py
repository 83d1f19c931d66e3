"""What ``manifest.json`` says, section by section."""

from __future__ import annotations

from dataclasses import dataclass

from prunevid.config import PruneConfig
from prunevid.cost import DecoderShape, VisionShape
from prunevid.engines import EngineSet
from prunevid.errors import PruneVidError
from prunevid.preprocessing import Preprocessing
from prunevid.quantization import Quantization
from prunevid.tuning import Tuning

SCHEMA_VERSION = 1
MANIFEST = "manifest.json"
# The chain's graphs, which every bundle has.
GRAPHS = frozenset({"vision_merge", "merge", "llm_pre", "select", "llm_post"})
_LONGEST_TOKEN = 1000


@dataclass(frozen=True)
class TensorSpec:
    """One input or output of a graph: ONNX element type in NumPy's words; a dimension is a size or a symbol."""

    name: str
    dtype: str
    shape: tuple[int | str, ...]


@dataclass(frozen=True)
class GraphSpec:
    """One ONNX graph of the chain: its file in the bundle, and its inputs and outputs in order."""

    file: str
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


@dataclass(frozen=True)
class EmbeddingSpec:
    """The token embedding table: a raw row-major [rows, columns] file. Row image_newline is no token of the text."""

    file: str
    dtype: str
    rows: int
    columns: int
    image_newline: int


@dataclass(frozen=True)
class PromptSpec:
    """How text becomes ids and back: files of the bundle and special tokens.

    special_tokens: the tokenizer's named tokens, by the names that chat templates know them by (``bos_token``, ...);
    None in bundles of older releases, which do not have them.
    """

    tokenizer: str
    chat_template: str
    video_token: str
    eos_ids: tuple[int, ...]
    max_positions: int
    special_tokens: dict[str, str] | None = None

    def __post_init__(self) -> None:
        for name, token in (self.special_tokens or {}).items():
            if not (name.isidentifier() and name.endswith("_token") and 0 < len(token) <= _LONGEST_TOKEN):
                raise PruneVidError(f"prompt.special_tokens: {name[:80]!r} is not the name and text of a token")


@dataclass(frozen=True)
class ModelSpec:
    """What was exported: the model's name and family, and its shapes. random_weights bundles are for latency only."""

    name: str
    family: str
    random_weights: bool
    tokens_per_frame: int
    decoder: DecoderShape
    vision: VisionShape


@dataclass(frozen=True)
class FileRecord:
    """Size in bytes and SHA-256 of one file of the bundle."""

    size: int
    sha256: str


@dataclass(frozen=True)
class Manifest:
    """Everything the runtime must know about a bundle, as ``manifest.json`` has it.

    least_onnxruntime: the first release of ONNX Runtime that runs the graphs, such as ``1.27``; None for any that the
    runtime itself accepts.
    """

    schema_version: int
    created_by: str
    model: ModelSpec
    dialect: str
    precision: str
    frames: int
    prune: PruneConfig
    graphs: dict[str, GraphSpec]
    embeddings: EmbeddingSpec
    prompt: PromptSpec
    preprocessing: Preprocessing
    files: dict[str, FileRecord]
    engines: EngineSet | None = None
    quantization: Quantization | None = None
    tuning: Tuning | None = None
    least_onnxruntime: str | None = None

    @property
    def cache_dtype(self) -> str:
        """Element type of the KV cache, as the graphs declare it, in NumPy's words."""
        return next(tensor.dtype for tensor in self.graphs["llm_pre"].inputs if tensor.name.startswith("past_key."))

    @property
    def float_type(self) -> str:
        """``fp32`` or ``fp16``: the type of all that is not quantized, whatever ``precision`` says of the weights."""
        return "fp16" if self.embeddings.dtype == "float16" else "fp32"
