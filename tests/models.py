"""Tiny checkpoints of every family with random weights that behave like trained ones where it matters.

Attention is peaked rather than uniform, norms and biases are not trivial, and greedy text does not repeat
itself: a mistake in any of them changes the answer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnxruntime as ort
import torch
from tokenizers import AddedToken, Tokenizer, decoders, pre_tokenizers
from tokenizers import models as tokenizer_models
from transformers import (
    CONFIG_MAPPING,
    AutoModelForImageTextToText,
    GenerationConfig,
    PreTrainedModel,
    PreTrainedTokenizerFast,
)

from prunevid import MergedTokens, PruneConfig, merge_tokens

Array = npt.NDArray[Any]

# The models are so small that threads only wait for each other.
torch.set_num_threads(1)

SPECIAL = ("<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
# A token for each byte, then the special ones; the model's table has a few rows more, as real ones do.
IDS = {token: 256 + index for index, token in enumerate(SPECIAL)}
VOCABULARY = 272
LAYERS = 6
PATCH = 8

CHAT_TEMPLATE = """\
{% for message in messages %}{{ '<|im_start|>' + message['role'] + ' ' }}\
{% for content in message['content'] if content['type'] == 'video' %}{{ '<video>' }}{% endfor %}\
{% for content in message['content'] if content['type'] == 'image' %}{{ '<image>\\n' }}{% endfor %}\
{% for content in message['content'] if content['type'] == 'text' %}{{ '\\n' + content['text'] }}{% endfor %}\
{{ '<|im_end|>' }}{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"""


@dataclass(frozen=True)
class Tiny:
    """One tiny model: its family, what its language model is, and how many patches a frame's side has in the tower."""

    decoder: str = "qwen2"
    tied: bool = False
    side: int = 9
    family: str = "llava_onevision"

    @property
    def image_size(self) -> int:
        """Pixels of a frame's side."""
        return self.side * PATCH

    @property
    def tokens_per_frame(self) -> int:
        """Visual tokens of a frame: all patches, or those of half the side, rounded up or down, squared."""
        halved = {"llava": self.side, "llava_next_video": self.side // 2}.get(self.family, (self.side + 1) // 2)
        return halved**2

    @property
    def model(self) -> str:
        """A known model of the family."""
        return {"llava_onevision": "llava-ov", "llava_next_video": "llava-next-video", "llava": "llava-1.5"}[
            self.family
        ]


# Odd and even sides, since pooling rounds up.
TINY = {
    "qwen2": Tiny(),
    "tied": Tiny(tied=True, side=10),
    "llama": Tiny("llama"),
    "qwen3": Tiny("qwen3"),
    "mistral": Tiny("mistral"),
    "next-video": Tiny("llama", family="llava_next_video"),
    "llava": Tiny("llama", side=6, family="llava"),
}


def build_model(tiny: Tiny, seed: int = 0, **text_settings: Any) -> PreTrainedModel:
    """The model in float32, with eager attention, so that its probabilities can be looked at.

    text_settings: further fields of the language model's config.
    """
    text: dict[str, Any] = {
        "model_type": tiny.decoder,
        "hidden_size": 64,
        "intermediate_size": 128,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": VOCABULARY,
        "max_position_embeddings": 4096,
        "rope_theta": 5000.0,
        "rms_norm_eps": 1e-5,
        "tie_word_embeddings": tiny.tied,
        "bos_token_id": None,
        "eos_token_id": IDS["<|im_end|>"],
        "pad_token_id": IDS["<|endoftext|>"],
    }
    if tiny.decoder == "mistral":
        text["sliding_window"] = None
    if tiny.decoder == "qwen3":
        # Wider than hidden_size / heads, as in the real family.
        text["head_dim"] = 24
    text |= text_settings
    tower = {"vision_use_head": False} if tiny.family == "llava_onevision" else {"num_hidden_layers": 3}
    config = CONFIG_MAPPING[tiny.family](
        vision_config={
            "model_type": "siglip_vision_model" if tiny.family == "llava_onevision" else "clip_vision_model",
            "hidden_size": 48,
            "intermediate_size": 96,
            "num_hidden_layers": 2,
            "num_attention_heads": 3,
            "image_size": tiny.image_size,
            "patch_size": PATCH,
            **tower,
        },
        text_config=text,
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
        tie_word_embeddings=tiny.tied,
        attn_implementation="eager",
    )
    torch.manual_seed(seed)
    model: PreTrainedModel = AutoModelForImageTextToText.from_config(config).eval()
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(_weight(name, parameter.shape))
    model.generation_config = GenerationConfig(
        eos_token_id=IDS["<|im_end|>"], pad_token_id=IDS["<|endoftext|>"], do_sample=False
    )
    return model


def _weight(name: str, shape: torch.Size) -> torch.Tensor:
    """Random values, scaled by a matrix's inputs so that activations keep their size."""
    values = torch.randn(shape)
    if name.endswith("image_newline"):
        return values
    if name.endswith("embed_tokens.weight"):
        # Small beside what the layers add: a tied head would otherwise repeat the token that it was given.
        return 0.2 * values
    if "position_embedding" in name:
        return 0.3 * values
    if "norm" in name and name.endswith("weight"):
        # Qwen3 norms queries and keys: sharp attention is up to these weights alone.
        return (2.0 if "q_norm" in name else 1.0) * (1 + 0.2 * values)
    if name.endswith("bias"):
        return 0.1 * values
    peaked = "language_model" in name and ("q_proj" in name or "k_proj" in name)
    return (1.6 if peaked else 1.0) * values / np.sqrt(np.prod(shape[1:]))


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Every byte is a token, so that any text can be asked and any answer be read."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    core = Tokenizer(tokenizer_models.BPE(vocab={symbol: i for i, symbol in enumerate(alphabet)} | IDS, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(token, special=True, normalized=False) for token in SPECIAL])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
    )


def save_checkpoint(model: PreTrainedModel, folder: Path, max_shard_size: str = "5GB") -> Path:
    """Write the model as a checkpoint folder with all that an export reads; returns the folder."""
    model.save_pretrained(folder, max_shard_size=max_shard_size)
    build_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    vision = model.config.vision_config
    save_preprocessing(folder, vision.image_size, crop=vision.model_type == "clip_vision_model")
    return folder


def save_preprocessing(folder: Path, size: int, *, crop: bool = False) -> None:
    """Write what a checkpoint says of how frames become pixel values, for a tower of that size."""
    import json

    square = {"height": size, "width": size}
    preprocessing = {
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "rescale_factor": 1 / 255,
        "resample": 3,
        "size": {"shortest_edge": size} if crop else square,
        **({"crop_size": square, "do_center_crop": True} if crop else {}),
    }
    (folder / "preprocessor_config.json").write_text(json.dumps(preprocessing), encoding="utf-8")


def render_frames(count: int, size: int, seed: int = 0, cuts: tuple[int, ...] = ()) -> npt.NDArray[np.uint8]:
    """A rendered video [T, H, W, 3]: a textured scene per cut, a flickering square that moves, and noise."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(0, 256, size=(len(cuts) + 1, size // PATCH + 1, size // PATCH + 1, 3))
    scenes = coarse.repeat(PATCH, axis=1).repeat(PATCH, axis=2)[:, :size, :size]
    frames = scenes[np.searchsorted(cuts, np.arange(count), side="right")].astype(np.int64)
    side = size // 2
    for frame in range(count):
        x, y = (7 * frame + 3 * seed) % (size - side), (3 * frame) % (size - side)
        frames[frame, y : y + side, x : x + side] = rng.integers(0, 256, size=(side, side, 3))
    return np.asarray(np.clip(frames + rng.integers(-2, 3, size=frames.shape), 0, 255), np.uint8)


def pixel_values(frames: npt.NDArray[np.uint8]) -> npt.NDArray[np.float32]:
    """Frames of the tower's own size as the tower wants them: float32 [T, 3, H, W] from -1 to 1."""
    scaled = frames.astype(np.float64) / 255
    return np.ascontiguousarray(((scaled - 0.5) / 0.5).transpose(0, 3, 1, 2), dtype=np.float32)


def video_features(model: Any, pixels: Array) -> npt.NDArray[np.float32]:
    """What the model's own tower, projector and pooling make of pixel values: [T, N, C], without newline."""
    config = model.config
    if config.model_type == "llava":
        with torch.no_grad():
            images = model.model.get_image_features(torch.from_numpy(pixels)).pooler_output
        return np.asarray(torch.stack(images).numpy())
    with torch.no_grad():
        found = model.model.get_video_features(
            torch.from_numpy(pixels)[None],
            vision_feature_layer=config.vision_feature_layer,
            vision_feature_select_strategy=config.vision_feature_select_strategy,
        ).pooler_output[0]
    found = found[: len(found) - len(behind_video(model))]
    return np.asarray(found.reshape(len(pixels), -1, found.shape[-1]).numpy())


def behind_video(model: Any) -> torch.Tensor:
    """The learned vectors [n, C] that stand behind a video's tokens."""
    if model.config.model_type == "llava_onevision":
        return model.model.image_newline.detach()[None]
    return torch.empty(0, model.config.text_config.hidden_size)


def structured_features(
    frames: int, tokens: int, channels: int, seed: int, cuts: tuple[int, ...] = (), moving: float = 0.4
) -> npt.NDArray[np.float32]:
    """Features [T, N, C] of scenes between cuts; a share of the positions moves, the rest is noisy."""
    rng = np.random.default_rng(seed)
    scene = rng.normal(size=(len(cuts) + 1, tokens, channels))
    features = scene[np.searchsorted(cuts, np.arange(frames), side="right")]
    is_moving = rng.random(tokens) < moving
    features[:, is_moving] += 1.5 * rng.normal(size=(frames, int(is_moving.sum()), channels))
    features += 0.05 * rng.normal(size=features.shape)
    return features.astype(np.float32)


def assert_same_merge(found: MergedTokens, expected: MergedTokens, tolerance: float) -> None:
    """Same segments, groups and assignment, and the same tokens to a tolerance."""
    np.testing.assert_array_equal(found.segments, expected.segments)
    np.testing.assert_array_equal(found.group, expected.group)
    np.testing.assert_array_equal(found.patch_to_token, expected.patch_to_token)
    np.testing.assert_allclose(found.tokens, expected.tokens, atol=tolerance, rtol=0)


def cpu_session(model: str | bytes) -> ort.InferenceSession:
    """A graph's file or content in ONNX Runtime, on one thread."""
    options = ort.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    return ort.InferenceSession(model, options, providers=["CPUExecutionProvider"])


def merge_is_clear(features: Array, config: PruneConfig, noise: float = 1e-5) -> bool:
    """Whether a little noise leaves every decision of the merge as it is.

    Where it does not, float32 may decide otherwise than float64, and neither is wrong.
    """
    expected = merge_tokens(features, config)
    for seed in range(3):
        found = merge_tokens(features + noise * np.random.default_rng(seed).normal(size=features.shape), config)
        if not np.array_equal(found.segments, expected.segments):
            return False
        if not np.array_equal(found.patch_to_token, expected.patch_to_token):
            return False
    return True
