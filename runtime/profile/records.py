"""What a profile is made of: plain records, which JSON shows as they are.

Names end in their unit: `_s` seconds, `_bytes` bytes, `_w` watts, `_j` joules. Ratios are unpruned over pruned,
so that above 1 pruning gains.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal

SCHEMA_VERSION = 1

# In the order in which they run; merge and select only where pruning is on.
STAGES = ("video", "preprocess", "vision", "merge", "llm_pre", "select", "llm_post")
LLM_PREFILL = ("llm_pre", "select", "llm_post")


@dataclass(frozen=True)
class Summary:
    """Statistics of `n` times, in seconds.

    Percentiles interpolate linearly between the sorted times, so that with few of them p99 is close to the longest.
    """

    n: int
    median_s: float
    p90_s: float
    p99_s: float


@dataclass(frozen=True)
class Run:
    """One question, from the video file to its last token.

    variant: index into the result's variants. round: from 0, warm-up rounds included. begin_s: on the clock of the
    timeline. end_to_end_s and first_token_s: wall clock around the whole question and up to its first token; stages_s
    and decode_s: what its parts took. unattributed_s: end to end less all parts.
    """

    variant: int
    round: int
    is_warmup: bool
    begin_s: float
    end_to_end_s: float
    first_token_s: float
    stages_s: dict[str, float]
    decode_s: tuple[float, ...]
    unattributed_s: float


@dataclass(frozen=True)
class Tokens:
    """Tokens of one question at each step.

    patches: of all frames in the vision tower. visual: what projector and pooling make of them. merged, kept: what
    merging and selection leave. retained: kept over visual. text_before, text_after: up to the last visual token, and
    behind it; all that is not visual is text.
    """

    patches: int
    visual: int
    merged: int
    kept: int
    retained: float
    text_before: int
    text_after: int


@dataclass(frozen=True)
class Stage:
    """A stage before the first token.

    tokens_in, tokens_out: None for stages of whole frames. flops: as prunevid/cost.py counts them, None where it
    counts nothing; gflops_per_s: those over the median time.
    """

    name: str
    time: Summary
    tokens_in: int | None
    tokens_out: int | None
    flops: int | None
    gflops_per_s: float | None


@dataclass(frozen=True)
class Decoding:
    """All tokens after the first: the time of any step, of each step, and FLOPs of all steps together."""

    time: Summary
    steps: tuple[Summary, ...]
    tokens_per_s: float
    flops: int
    gflops_per_s: float


@dataclass(frozen=True)
class DeviceUse:
    """A device's sensors while one variant ran; what it has no sensor for is None.

    gpu_load: mean share of the time that the GPU was busy, 0 to 1. energy_j: of one question, mean power times
    median time. rails_w: mean power of each rail.
    """

    samples: int
    gpu_load: float | None
    power_mean_w: float | None
    power_max_w: float | None
    energy_j: float | None
    rails_w: dict[str, float]


@dataclass(frozen=True)
class Variant:
    """One way to run the question: how many frames, and pruned by which settings, if at all.

    prune: the settings, None for unpruned. llm_prefill: llm_pre, select and llm_post together. decode: None where one
    token was asked for. unattributed: wall clock that is in no stage; unattributed_share: its median share of end to
    end. flops: of the whole question. kv_bytes: what the first decode step reads. peak_rss_bytes: the process's
    highest resident memory during this variant's first run; what runs before it left allocated is in it.
    """

    name: Literal["pruned", "unpruned"]
    frames: int
    prune: dict[str, Any] | None
    tokens: Tokens
    stages: tuple[Stage, ...]
    llm_prefill: Summary
    first_token: Summary
    decode: Decoding | None
    end_to_end: Summary
    unattributed: Summary
    unattributed_share: float
    flops: int
    kv_bytes: int
    peak_rss_bytes: int
    device: DeviceUse | None


@dataclass(frozen=True)
class Comparison:
    """A pruned variant and the unpruned one of as many frames: indices, and unpruned over pruned by name.

    Times are compared by their medians.
    """

    pruned: int
    unpruned: int
    ratios: dict[str, float]


@dataclass(frozen=True)
class DeviceSample:
    """A device's sensors at one moment, as `prunevid.runtime.profile.sensors.reading.Reading` has them."""

    time_s: float
    memory_bytes: int | None
    gpu_load: float | None
    power_w: float | None
    rails_w: dict[str, float]


@dataclass(frozen=True)
class Timeline:
    """What was sampled while measuring; times are seconds since it began.

    rss: this process's resident memory. sampling_s: processor time that the sampling itself took.
    """

    rss_time_s: tuple[float, ...]
    rss_bytes: tuple[int, ...]
    device: tuple[DeviceSample, ...]
    sampling_s: float


@dataclass(frozen=True)
class MemoryUse:
    """Bytes of memory.

    loaded_bytes: this process's peak until the bundle was loaded; peak_bytes: its highest of all. device_peak_bytes:
    of a device's memory, what was in use at the peak, by whomever; device_total_bytes: what there is.
    """

    loaded_bytes: int
    peak_bytes: int
    device_peak_bytes: int | None
    device_total_bytes: int | None


@dataclass(frozen=True)
class Load:
    """How a bundle was loaded.

    Attributes:
        threads: How many CPU threads; None: one per core.
        verify_s: Seconds of checking its files.
        graphs_s: Seconds of making its graphs ready.
    """

    threads: int | None
    verify_s: float
    graphs_s: float


@dataclass(frozen=True)
class Operator:
    """One node of a graph: its name and type, how often it ran, its time in all, its share of the graph's."""

    name: str
    type: str
    calls: int
    total_s: float
    share: float


@dataclass(frozen=True)
class OperatorType:
    """All nodes of one type in a graph: how often they ran, their time in all, their share of the graph's."""

    type: str
    calls: int
    total_s: float
    share: float


@dataclass(frozen=True)
class GraphOperators:
    """The slowest operators of a graph during one question, and the types that took longest.

    total_s: of all its operators.
    """

    graph: str
    variant: Literal["pruned", "unpruned"]
    total_s: float
    slowest: tuple[Operator, ...]
    types: tuple[OperatorType, ...]


@dataclass(frozen=True)
class Model:
    """What was measured: the bundle's model and how it was exported."""

    name: str
    family: str
    dialect: str
    precision: str
    random_weights: bool
    bundle_bytes: int


@dataclass(frozen=True)
class ProfileResult:
    """A whole profile.

    variants: pruned ones before the unpruned one, for every number of frames. load, operators: None and empty where
    they were not measured. notes: what a reader must know, in sentences.
    """

    schema_version: int
    created_by: str
    created_at: str
    bundle: str
    model: Model
    backend: str
    video: str
    question: str
    rounds: int
    warmup_rounds: int
    max_new_tokens: int
    machine: dict[str, str]
    load: Load | None
    memory: MemoryUse
    variants: tuple[Variant, ...]
    comparisons: tuple[Comparison, ...]
    operators: tuple[GraphOperators, ...]
    runs: tuple[Run, ...]
    timeline: Timeline
    notes: tuple[str, ...]

    @property
    def is_sweep(self) -> bool:
        """Whether there are more variants than one pruned and one unpruned."""
        return len(self.comparisons) > 1

    @property
    def swept(self) -> tuple[str, ...]:
        """What differs between the pruned variants: `frames` and names of settings."""
        pruned = [{"frames": v.frames, **v.prune} for v in self.variants if v.prune is not None]
        return tuple(name for name in pruned[0] if len({settings[name] for settings in pruned}) > 1)

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON; docs/profile.md describes them."""
        return asdict(self)
