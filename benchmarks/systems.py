"""The systems that are compared: the exported chain and its peers, all driven the same way.

Each is loaded with a bundle's weights, encodes a video once (`vision`), then answers in rounds (`round`): prefill of
the whole prompt and a number of decode steps. Times are seconds, sizes bytes.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable
from dataclasses import replace
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from prunevid.config import PruneConfig

QUESTION = "What happens in this video, and in which order?"
RETAINED = 0.17
# The language model's stages up to the first token.
_PREFILL = ("prefix", "question", "select", "llm_post")


class System(Protocol):
    """What is measured."""

    def vision(self) -> dict[str, Any]:
        """Encode the video: its time, in seconds. Empty where the system is a language model alone."""
        ...

    def round(self, steps: int, pruned: bool) -> dict[str, Any]:
        """Prefill and decode `steps` tokens: the times of both, and how many tokens there were."""
        ...


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


def kept_tokens(prune: PruneConfig, group: np.ndarray) -> int:
    """How many visual tokens of groups [V] are kept."""
    return int(prune.keep_counts(len(group))[np.bincount(group)].sum())


def settings_at(retained: float, prune: PruneConfig, kept: Callable[[PruneConfig], float]) -> PruneConfig:
    """`prune` with the static threshold at which the share `kept(settings)` is what the paper reports."""
    low, high = -1.0, 2.0
    for _ in range(24):
        middle = (low + high) / 2
        if kept(replace(prune, static_threshold=middle)) < retained:
            low = middle
        else:
            high = middle
    return replace(prune, static_threshold=high)


class Chain:
    """The exported chain, measured stage by stage."""

    def __init__(self, bundle: str, frames: int, threads: int) -> None:
        from prunevid.runtime import load

        self.pipeline = load(bundle, threads=threads, verify=False)
        self.frames = frames
        self.features: Any = None

    def vision(self) -> dict[str, Any]:
        """Encode the frames; seconds of it, and of the merging within it that nothing asked for."""
        self.features = self.pipeline.features(video(self.frames), self.frames)
        # It takes four frames at a time, and the graph merges each four although nothing asks for it.
        begin = perf_counter()
        self.pipeline.chain.merge(self.features.features[:4], self.pipeline.bundle.manifest.prune)
        return {
            "vision": self.features.timings.stages["vision"],
            "merge in vain": (perf_counter() - begin) * self.frames / 4,
        }

    def round(self, steps: int, pruned: bool) -> dict[str, Any]:
        """From the encoded frames to the first token, then `steps` decode steps: seconds by stage, and tokens."""
        from prunevid.runtime import SamplingConfig

        prune = settings_at(RETAINED, self.pipeline.bundle.manifest.prune, self._kept) if pruned else False
        session = self.pipeline.session(self.features, prune)
        answer = session.ask(QUESTION, SamplingConfig(max_new_tokens=steps + 1, ignore_eos=True))
        stages = answer.timings.stages
        counts = answer.token_counts
        return {
            "merge": stages.get("merge", 0.0),
            "select": stages.get("select", 0.0),
            "llm prefill": sum(stages.get(name, 0.0) for name in _PREFILL),
            "decode": statistics.median(answer.timings.decode),
            "first token id": answer.token_ids[0],
            "visual tokens": [counts.visual, counts.merged, counts.kept],
            "kv bytes": answer.kv_bytes,
        }

    def _kept(self, prune: PruneConfig) -> float:
        """The share of visual tokens that `prune` keeps of this video."""
        merged = self.pipeline.chain.merge(self.features.features, prune)
        return kept_tokens(prune, merged.group) / merged.patch_to_token.size


class Transformers:
    """The transformers model with sdpa attention on the bundle's weights, driven without generate()'s overhead.

    Pruned, it runs the method in eager PyTorch.
    """

    def __init__(self, bundle: str, frames: int, threads: int) -> None:
        import onnx_ir as ir
        import torch

        from prunevid.bundle import open_bundle
        from prunevid.export.catalog import shipped_config
        from prunevid.export.checkpoint.weights import RandomWeights
        from prunevid.export.families import family_of
        from prunevid.models import known_model
        from prunevid.text.chat import ChatPrompt

        torch.set_num_threads(threads)
        self.torch, self.frames = torch, frames
        opened = open_bundle(bundle, verify=False)
        self.preprocessing, self.prune = opened.manifest.preprocessing, opened.manifest.prune
        self.ids = ChatPrompt.of(opened).encode(QUESTION)
        shipped = shipped_config(known_model(opened.manifest.model.name))
        family = family_of(shipped, "shipped")
        config = family.parse_config(shipped, "shipped")
        config._attn_implementation = "sdpa"
        model = family.empty_model(config)
        shapes = family.NAMES.shapes(model)
        weights = RandomWeights(ir.DataType.FLOAT, shapes)
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
        """Encode the frames; seconds of it."""
        from prunevid.runtime.video.pixel_values import preprocess

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

    def round(self, steps: int, pruned: bool) -> dict[str, Any]:
        """From the encoded frames to the first token, then `steps` decode steps: seconds by stage, and tokens."""
        with self.torch.inference_mode():
            return self._pruned_round(steps) if pruned else self._unpruned_round(steps)

    def _pruned_round(self, steps: int) -> dict[str, Any]:
        from benchmarks.torch_pruning import PrunedDecoder, merge

        torch, language = self.torch, self.model.model.language_model
        # The last token is image_newline, which belongs to no frame.
        video = self.features[:-1].reshape(self.frames, -1, self.features.shape[-1])
        visual = len(self.features) - 1
        prune = settings_at(RETAINED, self.prune, lambda p: kept_tokens(p, merge(video, p)[1].numpy()) / visual)
        begin = perf_counter()
        tokens, group = merge(video, prune)
        merged = perf_counter() - begin
        decoder = PrunedDecoder(language, self.model.lm_head, prune)
        begin = perf_counter()
        before, after = (language.embed_tokens(torch.from_numpy(part)) for part in (self.ids.prefix, self.ids.suffix))
        token, kept = decoder.prefill(before, tokens, torch.cat((self.features[-1:], after)), group)
        prefill, first, decode = perf_counter() - begin, token, []
        for _ in range(steps):
            begin = perf_counter()
            token = decoder.decode(token)
            decode.append(perf_counter() - begin)
        return {
            "merge": merged,
            "select": 0.0,
            "llm prefill": prefill,
            "decode": statistics.median(decode),
            "first token id": first,
            "visual tokens": [visual, len(tokens), kept],
        }

    def _unpruned_round(self, steps: int) -> dict[str, Any]:
        torch, language = self.torch, self.model.model.language_model
        embed = language.embed_tokens
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
