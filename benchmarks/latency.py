"""Speed and memory of the exported chain, pruned and unpruned, beside transformers on the same random weights.

    python -m benchmarks.latency --output benchmarks/results/latency-cpu.json

LLaVA-OneVision-0.5B's real shape, fp32, two threads. Each system runs in a process of its own, so that its peak
memory is its own; the processes take turns within every round, so that a drifting machine slows all of them alike.
Vision is timed once per system: it is the same work in all three.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import statistics
import sys
import tempfile
from collections.abc import Callable
from multiprocessing.connection import Connection
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np

from benchmarks.machine import describe, peak_rss

QUESTION = "What happens in this video, and in which order?"
SYSTEMS = ("transformers", "chain unpruned", "chain pruned")
RETAINED = 0.17


def video(frames: int, size: int = 384) -> np.ndarray:
    """A scene with a cut, a resting background and a moving, changing strip; uint8 [frames, size, size, 3]."""
    rng = np.random.default_rng(7)
    shot = [rng.integers(0, 256, (size // 8, size // 8, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1) for _ in range(2)]
    clip = np.stack([shot[2 * t // frames] for t in range(frames)])
    width = size // 3
    for t in range(frames):
        left = (size - width) * t // max(1, frames - 1)
        clip[t, :, left : left + width] = rng.integers(0, 256, (size, width, 3), dtype=np.uint8)
    return clip


class Chain:
    """The exported chain, pruned or not, measured stage by stage."""

    def __init__(self, bundle: str, frames: int, threads: int, pruned: bool) -> None:
        from prunevid.runtime import load

        self.pipeline = load(bundle, threads=threads, verify=False)
        self.frames, self.pruned = frames, pruned
        self.features: Any = None

    def vision(self) -> dict[str, Any]:
        from prunevid.runtime.preprocess import preprocess

        pixels = preprocess(video(self.frames), self.pipeline.preprocessing)
        begin = perf_counter()
        self.features = self.pipeline.chain.encode(pixels)
        elapsed = perf_counter() - begin
        # encode() takes four frames at a time, and the graph merges each four although nothing asks for it.
        begin = perf_counter()
        self.pipeline.chain.merge(self.features[:4], self.pipeline.bundle.manifest.prune)
        return {"vision": elapsed, "merge in vain": (perf_counter() - begin) * self.frames / 4}

    def round(self, steps: int) -> dict[str, Any]:
        from prunevid.runtime import SamplingConfig, Timings, VideoSession

        chain, prune = self.pipeline.chain, None
        timings = Timings()
        if self.pruned:
            prune = self._settings()
            with timings.stage("merge"):
                tokens = chain.merge(self.features, prune)
        else:
            tokens = chain.unmerged(self.features)
        session = VideoSession(chain, self.pipeline.prompt, tokens, prune, opening=timings)
        answer = session.ask(QUESTION, SamplingConfig(max_new_tokens=steps + 1))
        stages = answer.timings.stages
        merge = stages.pop("merge", 0.0)
        counts = answer.token_counts
        return {
            "merge": merge,
            "select": stages.get("select", 0.0),
            "llm prefill": sum(stages.values()),
            "decode": statistics.median(answer.timings.decode),
            "first token id": answer.token_ids[0],
            "visual tokens": [counts.visual, counts.merged, counts.kept],
            "kv bytes": answer.kv_bytes,
        }

    def _settings(self) -> Any:
        """The default settings, with the static threshold at which this video keeps the share the paper reports."""
        from dataclasses import replace

        prune = self.pipeline.bundle.manifest.prune
        low, high = -1.0, 2.0
        for _ in range(24):
            middle = (low + high) / 2
            group = self.pipeline.chain.merge(self.features, replace(prune, static_threshold=middle)).group
            kept = prune.keep_counts(len(group))[np.bincount(group)].sum()
            if kept / (self.features.shape[0] * self.features.shape[1]) < RETAINED:
                low = middle
            else:
                high = middle
        return replace(prune, static_threshold=high)


class Transformers:
    """The transformers model with sdpa attention on the bundle's weights, driven without generate()'s overhead."""

    def __init__(self, bundle: str, frames: int, threads: int) -> None:
        import onnx_ir as ir
        import torch
        from transformers import LlavaOnevisionForConditionalGeneration

        from prunevid.bundle import open_bundle
        from prunevid.export import llava_onevision
        from prunevid.export.catalog import known_model, shipped_config
        from prunevid.export.checkpoint import RandomWeights
        from prunevid.runtime.prompt import ChatPrompt

        torch.set_num_threads(threads)
        self.torch, self.frames = torch, frames
        opened = open_bundle(bundle, verify=False)
        self.preprocessing = opened.manifest.preprocessing
        text = opened.manifest.prompt
        template = opened.file(text.chat_template).read_text()
        self.ids = ChatPrompt(opened.file(text.tokenizer), template, text.video_token, text.eos_ids).encode(QUESTION)
        config = llava_onevision.parse_config(shipped_config(known_model(opened.manifest.model.name)), "shipped")
        config._attn_implementation = "sdpa"
        shapes = llava_onevision.tensor_shapes(llava_onevision.empty_model(config))
        weights = RandomWeights(ir.DataType.FLOAT, shapes)
        with torch.device("meta"):
            model = LlavaOnevisionForConditionalGeneration(config)
        model.to_empty(device="cpu")
        model.tie_weights()
        for name, parameter in model.named_parameters():
            if name in shapes:
                parameter.data.copy_(torch.from_numpy(weights.rows(name, 0, shapes[name][0])))
        # Non-persistent buffers have no values after to_empty(); rebuilding their modules computes them.
        tower = model.model.vision_tower
        for module in tower.modules():
            if hasattr(module, "position_ids"):
                module.position_ids = torch.arange(module.position_ids.shape[-1])[None]
        language = model.model.language_model
        language.rotary_emb = type(language.rotary_emb)(config=config.text_config)
        self.model = model.eval()

    def vision(self) -> dict[str, Any]:
        from prunevid.runtime.preprocess import preprocess

        torch = self.torch
        pixels = preprocess(video(self.frames), self.preprocessing)
        begin = perf_counter()
        with torch.inference_mode():
            features = self.model.model.get_video_features(
                torch.from_numpy(pixels)[None],
                vision_feature_layer=self.model.config.vision_feature_layer,
                vision_feature_select_strategy=self.model.config.vision_feature_select_strategy,
            ).pooler_output
        elapsed = perf_counter() - begin
        self.features = features[0]
        return {"vision": elapsed}

    def round(self, steps: int) -> dict[str, Any]:
        torch, language = self.torch, self.model.model.language_model
        embed = language.embed_tokens
        with torch.inference_mode():
            begin = perf_counter()
            text = [embed(torch.from_numpy(part)) for part in (self.ids.prefix, self.ids.suffix)]
            inputs = torch.cat([text[0], self.features, text[1]])[None]
            output = language(inputs_embeds=inputs, use_cache=True)
            token = int(self.model.lm_head(output.last_hidden_state[:, -1]).argmax())
            prefill, first, decode = perf_counter() - begin, token, []
            for _ in range(steps):
                begin = perf_counter()
                output = language(input_ids=torch.tensor([[token]]), past_key_values=output.past_key_values)
                token = int(self.model.lm_head(output.last_hidden_state[:, -1]).argmax())
                decode.append(perf_counter() - begin)
        visual = len(self.features) - 1
        return {
            "merge": 0.0,
            "select": 0.0,
            "llm prefill": prefill,
            "decode": statistics.median(decode),
            "first token id": first,
            "visual tokens": [visual, visual, visual],
        }


def _work(make: Callable[[], Any], pipe: Connection) -> None:
    """A worker process: load, then do what the parent says."""
    before = peak_rss()
    begin = perf_counter()
    system = make()
    pipe.send({"load": perf_counter() - begin, "rss before": before})
    while (order := pipe.recv()) is not None:
        name, *arguments = order
        result = getattr(system, name)(*arguments)
        pipe.send({**result, "peak rss": peak_rss()})


def _make(system: str, bundle: str, frames: int, threads: int) -> Any:
    if system == "transformers":
        return Transformers(bundle, frames, threads)
    return Chain(bundle, frames, threads, pruned=system == "chain pruned")


def measure(bundle: str, frames: int, rounds: int, steps: int, threads: int) -> dict[str, dict[str, Any]]:
    """Run all systems in turns; per system the medians over rounds, in seconds and bytes."""
    context = multiprocessing.get_context("spawn")
    workers = {}
    for system in SYSTEMS:
        ours, theirs = context.Pipe()
        process = context.Process(target=_spawned, args=(system, bundle, frames, threads, theirs), daemon=True)
        process.start()
        loaded = ours.recv()
        print(f"{system}: loaded in {loaded['load']:.1f} s", file=sys.stderr, flush=True)
        workers[system] = (process, ours)

    def order(system: str, *command: Any) -> dict[str, Any]:
        workers[system][1].send(command)
        answer: dict[str, Any] = workers[system][1].recv()
        print(f"{system}: {command[0]} {answer}", file=sys.stderr, flush=True)
        return answer

    vision = {system: order(system, "vision") for system in SYSTEMS}
    results: dict[str, list[dict[str, Any]]] = {system: [] for system in SYSTEMS}
    for _ in range(rounds):
        for system in SYSTEMS:
            results[system].append(order(system, "round", steps))
    for process, pipe in workers.values():
        pipe.send(None)
        process.join()
    return {system: _summary(vision[system], results[system]) for system in SYSTEMS}


def _spawned(system: str, bundle: str, frames: int, threads: int, pipe: Connection) -> None:
    _work(lambda: _make(system, bundle, frames, threads), pipe)


def _summary(vision: dict[str, Any], rounds: list[dict[str, Any]]) -> dict[str, Any]:
    timed = ("merge", "select", "llm prefill", "decode")
    summary: dict[str, Any] = {name: statistics.median(r[name] for r in rounds) for name in timed}
    summary["vision"] = vision["vision"]
    summary["merge in vain"] = vision.get("merge in vain", 0.0)
    summary["first token"] = summary["vision"] + summary["merge"] + summary["llm prefill"]
    summary["peak rss"] = max(r["peak rss"] for r in rounds)
    summary["visual tokens"] = rounds[-1]["visual tokens"]
    summary["first token id"] = rounds[-1]["first token id"]
    return summary


def table(results: dict[str, dict[str, Any]]) -> str:
    """The results as a Markdown table, and the ratios that matter."""
    lines = [
        "| | vision s | merge ms | LLM prefill s | of it select ms | first token s | decode ms/token | peak RSS MB |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for system, row in results.items():
        lines.append(
            f"| {system} | {row['vision']:.1f} | {1000 * row['merge']:.0f} | {row['llm prefill']:.2f} "
            f"| {1000 * row['select']:.0f} | {row['first token']:.1f} | {1000 * row['decode']:.0f} "
            f"| {row['peak rss'] / 1e6:.0f} |"
        )
    peer, unpruned, pruned = (results[system] for system in SYSTEMS)
    visual, merged, kept = pruned["visual tokens"]
    lines += [
        "",
        f"Merging every four frames in vain costs {1000 * unpruned['merge in vain']:.0f} ms of the chain's vision "
        f"({unpruned['merge in vain'] / unpruned['vision']:.2%}).",
        "",
        f"Visual tokens {visual}, merged {merged} ({merged / visual:.1%}), kept {kept} ({kept / visual:.1%}). "
        f"LLM prefill, chain unpruned / pruned: {unpruned['llm prefill'] / pruned['llm prefill']:.2f}x; "
        f"transformers / chain unpruned: {peer['llm prefill'] / unpruned['llm prefill']:.2f}x; "
        f"transformers / chain pruned: {peer['llm prefill'] / pruned['llm prefill']:.2f}x. "
        f"Decode, transformers / chain unpruned: {peer['decode'] / unpruned['decode']:.2f}x, "
        f"/ chain pruned: {peer['decode'] / pruned['decode']:.2f}x. "
        f"First token, transformers / chain pruned: {peer['first token'] / pruned['first token']:.2f}x.",
    ]
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--model", default="llava-ov-0.5b")
    parser.add_argument("--bundle", help="reuse a random-weights fp32 bundle instead of exporting one")
    parser.add_argument("--frames", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--steps", type=int, default=16, help="decode steps per round")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        bundle = args.bundle
        if bundle is None:
            from prunevid.export import export

            bundle = str(export(args.model, Path(folder) / "bundle", random_weights=True).path)
        results = measure(bundle, args.frames, args.rounds, args.steps, args.threads)
    report = {
        "model": args.model,
        "frames": args.frames,
        "rounds": args.rounds,
        "threads": args.threads,
        "machine": describe(),
        "results": results,
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        args.output.write_text(json.dumps(report, indent=1) + "\n")
    print(table(results))


if __name__ == "__main__":
    main()
