"""From measured runs to the figures of a profile: percentiles, rates, ratios."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from prunevid.config import PruneConfig
from prunevid.cost import Cost, DecoderShape, decode_flops
from prunevid.runtime.profile.records import (
    LLM_PREFILL,
    STAGES,
    Comparison,
    Decoding,
    DeviceSample,
    DeviceUse,
    Run,
    Stage,
    Summary,
    Tokens,
    Variant,
)

__all__ = ["Measured", "compare", "summarise", "summarise_variant"]


@dataclass(frozen=True)
class Measured:
    """What is the same in all runs of a variant: its settings, tokens, FLOPs and bytes."""

    prune: PruneConfig | None
    frames: int
    tokens: Tokens
    cost: Cost
    kv_bytes: int
    peak_rss_bytes: int


def summarise(times: Iterable[float]) -> Summary:
    """Median, p90 and p99 of one or more times in seconds."""
    values = np.fromiter(times, np.float64)
    median, p90, p99 = (float(value) for value in np.percentile(values, (50, 90, 99)))
    return Summary(len(values), median, p90, p99)


def summarise_variant(
    facts: Measured, runs: Sequence[Run], shape: DecoderShape, samples: Sequence[DeviceSample]
) -> Variant:
    """A variant's figures from its runs (at least one, warm-up left out) and what its device showed meanwhile."""
    stages = tuple(_stage(name, facts, runs) for name in STAGES if name in runs[0].stages_s)
    decode = _decoding(facts.tokens, runs, shape)
    end_to_end = summarise(run.end_to_end_s for run in runs)
    name: Literal["pruned", "unpruned"] = "unpruned" if facts.prune is None else "pruned"
    return Variant(
        name=name,
        frames=facts.frames,
        prune=None if facts.prune is None else facts.prune.to_dict(),
        tokens=facts.tokens,
        stages=stages,
        llm_prefill=summarise(sum(run.stages_s.get(part, 0.0) for part in LLM_PREFILL) for run in runs),
        first_token=summarise(run.first_token_s for run in runs),
        decode=decode,
        end_to_end=end_to_end,
        unattributed=summarise(run.unattributed_s for run in runs),
        unattributed_share=float(np.median([run.unattributed_s / run.end_to_end_s for run in runs])),
        flops=facts.cost.total + (decode.flops if decode else 0),
        kv_bytes=facts.kv_bytes,
        peak_rss_bytes=facts.peak_rss_bytes,
        device=_device_use([sample for sample in samples if _is_within(sample, runs)], end_to_end.median_s),
    )


def compare(variants: Sequence[Variant]) -> tuple[Comparison, ...]:
    """Every pruned variant beside the unpruned one that follows it: that of as many frames."""
    comparisons, pruned = [], []
    for index, variant in enumerate(variants):
        if variant.prune is not None:
            pruned.append(index)
            continue
        comparisons += [Comparison(other, index, _ratios(variants[other], variant)) for other in pruned]
        pruned = []
    return tuple(comparisons)


def _stage(name: str, facts: Measured, runs: Sequence[Run]) -> Stage:
    time = summarise(run.stages_s[name] for run in runs)
    tokens_in, tokens_out = _stage_tokens(facts.tokens).get(name, (None, None))
    flops = _stage_flops(facts.cost).get(name)
    rate = flops / time.median_s / 1e9 if flops else None
    return Stage(name, time, tokens_in, tokens_out, flops, rate)


def _stage_tokens(tokens: Tokens) -> Mapping[str, tuple[int, int]]:
    """Rows that go into and come out of each stage; the last row alone leaves llm_post, as logits."""
    text = tokens.text_before + tokens.text_after
    merged, kept = tokens.merged + text, tokens.kept + text
    return {
        "vision": (tokens.patches, tokens.visual),
        "merge": (tokens.visual, tokens.merged),
        "llm_pre": (merged, merged),
        "select": (merged, kept),
        "llm_post": (kept, 1),
    }


def _stage_flops(cost: Cost) -> Mapping[str, int]:
    """FLOPs where they are spent: the question's scores are computed within llm_pre, select itself only copies."""
    return {
        "vision": cost.vision + cost.projector,
        "merge": cost.merge,
        "llm_pre": cost.llm_pre + cost.select,
        "llm_post": cost.llm_post + cost.lm_head,
    }


def _decoding(tokens: Tokens, runs: Sequence[Run], shape: DecoderShape) -> Decoding | None:
    steps = len(runs[0].decode_s)
    if not steps:
        return None
    time = summarise(seconds for run in runs for seconds in run.decode_s)
    past = tokens.kept + tokens.text_before + tokens.text_after
    flops = sum(decode_flops(shape, past + step) for step in range(steps))
    return Decoding(
        time=time,
        steps=tuple(summarise(run.decode_s[step] for run in runs) for step in range(steps)),
        tokens_per_s=1 / time.median_s,
        flops=flops,
        gflops_per_s=flops / steps / time.median_s / 1e9,
    )


def _is_within(sample: DeviceSample, runs: Sequence[Run]) -> bool:
    return any(run.begin_s <= sample.time_s <= run.begin_s + run.end_to_end_s for run in runs)


def _device_use(samples: Sequence[DeviceSample], median_s: float) -> DeviceUse | None:
    if not samples:
        return None
    loads = [sample.gpu_load for sample in samples if sample.gpu_load is not None]
    powers = [sample.power_w for sample in samples if sample.power_w is not None]
    mean_power = _mean(powers)
    rails = {name: [s.rails_w[name] for s in samples if name in s.rails_w] for name in samples[0].rails_w}
    return DeviceUse(
        samples=len(samples),
        gpu_load=_mean(loads),
        power_mean_w=mean_power,
        power_max_w=max(powers, default=None),
        energy_j=None if mean_power is None else mean_power * median_s,
        rails_w={name: float(np.mean(values)) for name, values in rails.items()},
    )


def _mean(values: Sequence[float]) -> float | None:
    return float(np.mean(values)) if values else None


def _ratios(pruned: Variant, unpruned: Variant) -> dict[str, float]:
    return {name: unpruned_value / value for name, unpruned_value, value in _pairs(pruned, unpruned) if value}


def _pairs(pruned: Variant, unpruned: Variant) -> list[tuple[str, float, float]]:
    """What both variants have, as (name, unpruned, pruned)."""
    others: dict[str, Any] = {stage.name: stage for stage in unpruned.stages}
    pairs = [
        (stage.name, others[stage.name].time.median_s, stage.time.median_s)
        for stage in pruned.stages
        if stage.name in others
    ]
    for name in ("llm_prefill", "first_token", "end_to_end"):
        pairs.append((name, getattr(unpruned, name).median_s, getattr(pruned, name).median_s))
    if pruned.decode and unpruned.decode:
        pairs.append(("decode", unpruned.decode.time.median_s, pruned.decode.time.median_s))
    pairs.append(("flops", unpruned.flops, pruned.flops))
    pairs.append(("kv_bytes", unpruned.kv_bytes, pruned.kv_bytes))
    pairs.append(("visual_tokens", unpruned.tokens.kept, pruned.tokens.kept))
    if unpruned.device and pruned.device and unpruned.device.energy_j and pruned.device.energy_j:
        pairs.append(("energy_j", unpruned.device.energy_j, pruned.device.energy_j))
    return pairs
