"""The kernels and the whole method on one NVIDIA GPU: correct, how fast, and against the unpruned model.

    python -m benchmarks.gpu.method --output benchmarks/results/gpu-method.json

Needs torch, Triton, transformers and this repository, nothing else; weights are random, drawn on the GPU. Checks the
kernels against the NumPy reference, times them by CUDA events beside the card's own copy bandwidth, and answers a
question about a video with LLaVA-OneVision-7B in bfloat16, unpruned (sdpa) and pruned, in turns.
"""

from __future__ import annotations

import argparse
import statistics
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import kernels
from benchmarks.gpu.kernels import Shape
from benchmarks.gpu.merging import Merger
from benchmarks.gpu.model import Outcome, Question, answer, encode, random_model
from benchmarks.gpu.timing import copy_bandwidth
from benchmarks.machine import describe
from benchmarks.report import save
from prunevid import PruneConfig

SHAPES = (Shape("LLaVA-OneVision-7B", 32, 196, 3584), Shape("PLLaVA", 16, 144, 4096))
# Share of the visual tokens that the paper keeps of LLaVA-OneVision-7B.
RETAINED = 0.17
QUESTION_TOKENS = 47
_STAGES = ("vision", "merge", "prefill", "first token", "decode")


def random_pixels(frames: int, side: int, device: torch.device, dtype: torch.dtype) -> torch.Tensor:
    """Pixel values [T, 3, side, side] of two shots, in front of which a noisy stripe moves."""
    generator = torch.Generator().manual_seed(0)
    shots = torch.rand((2, 3, side // 8, side // 8), generator=generator)
    shots = torch.nn.functional.interpolate(shots, size=(side, side))
    clip = shots[torch.arange(frames) * 2 // frames]
    width = side // 3
    for frame in range(frames):
        left = (side - width) * frame // max(1, frames - 1)
        clip[frame, :, :, left : left + width] = torch.rand((3, side, width), generator=generator)
    return (2 * clip - 1).to(device, dtype)


def compare(model: Any, frames: int, steps: int, rounds: int) -> dict[str, dict[str, Any]]:
    """Unpruned and pruned answers in turns: medians of the stages in ms, tokens, and bytes beyond the weights."""
    weight = model.lm_head.weight
    device, text = weight.device, model.config.text_config
    pixels = random_pixels(frames, model.config.vision_config.image_size, device, weight.dtype)
    generator = torch.Generator().manual_seed(1)
    ids = torch.randint(0, text.vocab_size, (16 + QUESTION_TOKENS,), generator=generator).to(device)
    question = Question(ids[:16], ids[16:])
    with torch.inference_mode():
        features = encode(model, pixels)
        config = PruneConfig.for_depth(text.num_hidden_layers)
        merger = Merger(config, frames, features.shape[1], device)
        merger = kernels.with_threshold_for(RETAINED, features.float(), merger, device)
    systems = {"unpruned": None, "pruned": merger}
    for system in systems.values():
        answer(model, pixels, question, system, 2)
    found: dict[str, list[tuple[Outcome, int]]] = {name: [] for name in systems}
    for _ in range(rounds):
        for name, system in systems.items():
            before = _reset_peak(device)
            outcome = answer(model, pixels, question, system, steps)
            found[name].append((outcome, _peak(device) - before))
    return {name: _summary(outcomes) for name, outcomes in found.items()}


def _summary(outcomes: list[tuple[Outcome, int]]) -> dict[str, Any]:
    last = outcomes[-1][0]
    return {
        **{stage: statistics.median(o.stages.get(stage, 0.0) for o, _ in outcomes) for stage in _STAGES},
        "peak bytes beyond weights": max(peak for _, peak in outcomes),
        "kv bytes": last.cache_bytes,
        "visual tokens": list(last.visual),
    }


def _reset_peak(device: torch.device) -> int:
    """Bytes that are taken now; the peak is counted from here."""
    if device.type != "cuda":
        return 0
    torch.cuda.reset_peak_memory_stats()
    return int(torch.cuda.memory_allocated())


def _peak(device: torch.device) -> int:
    return int(torch.cuda.max_memory_allocated()) if device.type == "cuda" else 0


def table(report: dict[str, Any]) -> str:
    """The report in Markdown."""
    lines = [f"{report['card']}, copy bandwidth {report['copy bytes per second'] / 1e9:.0f} GB/s", ""]
    for name, counts in report["checks"].items():
        lines.append(f"{name}: {', '.join(f'{count} {what}' for what, count in counts.items())}")
    lines += ["", "| shape | what | ms | MB | of copy bandwidth |", "|---|---|---|---|---|"]
    for row in report["kernels"]:
        lines.append(
            f"| {row['frames']} x {row['tokens']} x {row['channels']} | {row['what']} | {row['ms']:.3f} "
            f"| {row['bytes'] / 1e6:.2f} | {row['of copy bandwidth']:.1%} |"
        )
    lines += [
        "",
        "| | vision ms | merge ms | prefill ms | first token ms | decode ms/token | peak MB beyond weights | KV MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for name, row in report["method"].items():
        stages = " | ".join(f"{row[stage]:.1f}" for stage in _STAGES)
        lines.append(
            f"| {name} | {stages} | {row['peak bytes beyond weights'] / 1e6:.0f} | {row['kv bytes'] / 1e6:.0f} |"
        )
    unpruned, pruned = report["method"]["unpruned"], report["method"]["pruned"]
    ratios = ", ".join(f"{s} {unpruned[s] / pruned[s]:.2f}x" for s in ("prefill", "first token", "decode"))
    visual, merged, kept = pruned["visual tokens"]
    lines += ["", f"Visual tokens {visual}, merged {merged}, kept {kept} ({kept / visual:.1%}). Faster: {ratios}."]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to. Exits with 1 if a kernel differs from the reference."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llava-ov", help="a config in export/models")
    parser.add_argument("--frames", type=int, default=32)
    parser.add_argument("--steps", type=int, default=32, help="tokens to generate")
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    if not torch.cuda.is_available():
        parser.error("torch finds no NVIDIA GPU here")
    device = torch.device("cuda")
    checks = {shape.name: kernels.check(shape, seed, device) for seed, shape in enumerate(SHAPES)}
    print(checks, flush=True)
    bandwidth = copy_bandwidth(device, 1 << 30, 20)
    measured = [row for shape in SHAPES for row in kernels.measure(shape, bandwidth, device, 50)]
    model = random_model(args.model, device, torch.bfloat16)
    report = {
        "card": torch.cuda.get_device_name(),
        "machine": describe(("torch", "triton", "transformers", "numpy")),
        "cuda": torch.version.cuda,
        "copy bytes per second": bandwidth,
        "checks": checks,
        "kernels": measured,
        "model": args.model,
        "rounds": args.rounds,
        "method": compare(model, args.frames, args.steps, args.rounds),
    }
    save(report, args.output)
    print(table(report))
    if any("wrong" in counts for counts in checks.values()):
        raise SystemExit(1)


if __name__ == "__main__":
    main()
