"""The demo model: a tiny LLaVA-OneVision, its word-level tokenizer, and how both are written to disk."""

from __future__ import annotations

import json
from pathlib import Path

import torch
from tokenizers import Regex, Tokenizer, normalizers, pre_tokenizers
from tokenizers.models import WordLevel
from transformers import (
    GenerationConfig,
    LlavaOnevisionConfig,
    LlavaOnevisionForConditionalGeneration,
    PreTrainedTokenizerFast,
    Qwen2Config,
    SiglipVisionConfig,
)

from demo import world

PATCH = 8
WIDTH = 128  # channels of the language model and of the visual tokens
TOKENS = world.GRID**2  # visual tokens of a frame, after pooling

SPECIAL = ("<unk>", "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<image>", "<video>")
VOCABULARY = (*SPECIAL, "\n", "user", "assistant", "system", *world.words())
IDS = {word: index for index, word in enumerate(VOCABULARY)}

CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + ' ' }}"
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'image') %}{{ '<image>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'video') %}{{ '<video>' }}{% endfor %}"
    "{% for content in message['content'] | selectattr('type', 'equalto', 'text') %}"
    "{{ '\n' + content['text'] }}{% endfor %}"
    "{% endif %}{{ '<|im_end|>' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """A tokenizer of whole words; a line break and a question mark are words of their own."""
    core = Tokenizer(WordLevel(IDS, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [normalizers.Lowercase(), normalizers.Replace(Regex(r"\bcolor\b"), "colour")]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\n|[^\w\s]"), "isolated"),
            pre_tokenizers.Split(Regex(r"[^\S\n]+"), "removed"),
        ]
    )
    core.add_special_tokens(list(SPECIAL))
    # Without a decoder, `tokenizers` joins words with spaces: "top left" comes out as it should.
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        unk_token="<unk>",
        pad_token="<|endoftext|>",
        eos_token="<|im_end|>",
        extra_special_tokens={"image_token": "<image>", "video_token": "<video>"},
        clean_up_tokenization_spaces=False,
        chat_template=CHAT_TEMPLATE,
        model_max_length=4096,
        padding_side="left",
    )


def encode(text: str) -> list[int]:
    """Ids of a question or an answer of the world: every word must be known."""
    return [IDS[word] for word in text.replace("?", " ?").split()]


def question_ids(text: str) -> list[int]:
    """What follows the video in the prompt: the question and the turn of the assistant."""
    marks = ["<|im_end|>", "<|im_start|>", "assistant", "\n"]
    return [IDS["\n"], *encode(text), *(IDS[mark] for mark in marks)]


def answer_ids(text: str) -> list[int]:
    """The words of an answer and the end token."""
    return [*encode(text), IDS["<|im_end|>"]]


PREFIX_IDS = (IDS["<|im_start|>"], IDS["user"])  # what comes before the video


def build_model() -> LlavaOnevisionForConditionalGeneration:
    """The model with random weights (float32), from torch's global seed."""
    vision = SiglipVisionConfig(
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=2,
        num_attention_heads=3,
        image_size=world.SIZE,
        patch_size=PATCH,
        vision_use_head=False,
    )
    text = Qwen2Config(
        vocab_size=len(VOCABULARY),
        hidden_size=WIDTH,
        intermediate_size=256,
        num_hidden_layers=7,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=4096,
        rope_parameters={"rope_type": "default", "rope_theta": 1000000.0},
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=IDS["<|im_end|>"],
        pad_token_id=IDS["<|endoftext|>"],
    )
    config = LlavaOnevisionConfig(
        vision_config=vision,
        text_config=text,
        image_token_index=IDS["<image>"],
        video_token_index=IDS["<video>"],
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        image_grid_pinpoints=[[world.SIZE, world.SIZE]],
        tie_word_embeddings=False,
    )
    return LlavaOnevisionForConditionalGeneration(config)


def pixels(frames: torch.Tensor) -> torch.Tensor:
    """uint8 frames [F, H, W, 3] as the tower's input, float32 [F, 3, H, W] in -1..1."""
    return frames.permute(0, 3, 1, 2).float() / 127.5 - 1.0


def video_features(model: LlavaOnevisionForConditionalGeneration, frames: torch.Tensor) -> torch.Tensor:
    """Projected and pooled tokens of uint8 frames [F, H, W, 3]: float32 [F, TOKENS, WIDTH]."""
    inner = model.model
    config = model.config
    output = inner.get_video_features(
        pixels(frames)[None],
        vision_feature_layer=config.vision_feature_layer,
        vision_feature_select_strategy=config.vision_feature_select_strategy,
    )
    # The last token is `image_newline`, which belongs to no frame.
    return output.pooler_output[0, :-1].reshape(len(frames), TOKENS, WIDTH)


def save_checkpoint(model: LlavaOnevisionForConditionalGeneration, folder: Path) -> None:
    """Writes the checkpoint as transformers and the exporter read it, with float16 weights."""
    folder.mkdir(parents=True, exist_ok=True)
    half = LlavaOnevisionForConditionalGeneration(model.config)
    half.load_state_dict(model.state_dict())
    half = half.to(torch.float16)
    half.config.dtype = torch.float16
    half.generation_config = GenerationConfig(
        do_sample=False, eos_token_id=IDS["<|im_end|>"], pad_token_id=IDS["<|endoftext|>"]
    )
    half.save_pretrained(folder)
    (folder / "model.safetensors").chmod(0o644)  # safetensors writes it for its owner alone
    build_tokenizer().save_pretrained(folder)
    (folder / "chat_template.jinja").write_text(CHAT_TEMPLATE, encoding="utf-8")
    common = {
        "do_resize": True,
        "size": {"height": world.SIZE, "width": world.SIZE},
        "resample": 3,  # bicubic
        "do_rescale": True,
        "rescale_factor": 1 / 255,
        "do_normalize": True,
        "image_mean": [0.5, 0.5, 0.5],
        "image_std": [0.5, 0.5, 0.5],
        "do_convert_rgb": True,
    }
    image = {
        "image_processor_type": "LlavaOnevisionImageProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        "image_grid_pinpoints": [[world.SIZE, world.SIZE]],
        "do_pad": True,
        **common,
    }
    video = {
        "video_processor_type": "LlavaOnevisionVideoProcessor",
        "processor_class": "LlavaOnevisionProcessor",
        **common,
    }
    processor = {
        "processor_class": "LlavaOnevisionProcessor",
        "num_image_tokens": (world.SIZE // PATCH) ** 2,
        "vision_feature_select_strategy": "full",
        "image_token": "<image>",
        "video_token": "<video>",
        "vision_aspect_ratio": "anyres_max_9",
    }
    for name, content in (
        ("preprocessor_config.json", image),
        ("video_preprocessor_config.json", video),
        ("processor_config.json", processor),
    ):
        (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
