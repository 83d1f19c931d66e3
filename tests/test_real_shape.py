"""LLaVA-OneVision-0.5B's real shape, random weights: export in bounded memory, logits equal to transformers."""

from __future__ import annotations

import gc
import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
import torch
from models import save_preprocessing
from safetensors.numpy import save_file
from torch_method import generate_pruned
from transformers import LlavaOnevisionForConditionalGeneration

from prunevid.export import prompt_files
from prunevid.export.catalog import shipped_config
from prunevid.export.checkpoint.weights import RandomWeights
from prunevid.export.families import llava_onevision
from prunevid.models import known_model
from prunevid.runtime import Pipeline, SamplingConfig, load
from prunevid.runtime.stream import AnswerStream

ROOT = Path(__file__).parents[1]
STEPS = 3
QUESTIONS = ("Why?", "What does the second person from the left do with the red cup?")

pytestmark = pytest.mark.timeout(1500)


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint folder: 1.8 GB of fp16 weights, under the names that the published one has."""
    folder = tmp_path_factory.mktemp("checkpoint-0.5b")
    data = shipped_config(known_model("llava-ov-0.5b"))
    config = llava_onevision.parse_config(data, "shipped")
    shapes = llava_onevision.NAMES.shapes(llava_onevision.empty_model(config))
    weights = RandomWeights(ir.DataType.FLOAT16, shapes, seed=5)
    save_file({_published(name): weights.tensor(name).numpy() for name in shapes}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps(data))
    (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": 151645}))
    prompt_files.prompt_of_bytes(folder, llava_onevision.CHAT, config.text_config.max_position_embeddings)
    save_preprocessing(folder, config.vision_config.image_size)
    return folder


def _published(name: str) -> str:
    name = name.replace("model.language_model.", "language_model.model.")
    name = name.replace("model.vision_tower.", "vision_tower.vision_model.")
    return name.removeprefix("model.")


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Iterator[LlavaOnevisionForConditionalGeneration]:
    yield LlavaOnevisionForConditionalGeneration.from_pretrained(
        checkpoint, dtype=torch.float32, attn_implementation="eager"
    ).eval()
    gc.collect()


def export_in_its_own_process(checkpoint: Path, output: Path, dialect: str) -> int:
    """Export and return the process's peak memory in bytes."""
    code = (
        "import sys\n"
        "from benchmarks.machine import peak_rss\n"
        "from prunevid.export import export\n"
        "export('llava-ov-0.5b', sys.argv[2], checkpoint=sys.argv[1], dialect=sys.argv[3])\n"
        "print(peak_rss())"
    )
    command = [sys.executable, "-c", code, str(checkpoint), str(output), dialect]
    result = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert result.returncode == 0, result.stderr
    peak = int(result.stdout)
    print(f"peak memory of the {dialect} export: {peak / 1e6:.0f} MB")
    return peak


def clip(frames: int) -> np.ndarray:
    rng = np.random.default_rng(frames)
    still = rng.integers(0, 256, (1, 384, 384, 3), dtype=np.uint8)
    video = np.repeat(still, frames, axis=0)
    video[:, :, :192] = rng.integers(0, 256, (frames, 384, 192, 3), dtype=np.uint8)
    return video


def logits_of(pipeline: Pipeline, stream: AnswerStream) -> tuple[np.ndarray, list[int]]:
    """Every row of logits that an answer's tokens were chosen from, and the tokens."""
    rows: list[np.ndarray] = []
    original = pipeline.chain.run_post

    def spy(*arguments: Any, **options: Any) -> np.ndarray:
        rows.append(original(*arguments, **options))
        return rows[-1]

    pipeline.chain.run_post = spy  # type: ignore[method-assign]
    try:
        list(stream)
    finally:
        pipeline.chain.run_post = original  # type: ignore[method-assign]
    return np.stack(rows), list(stream.answer.token_ids)


@torch.inference_mode()
def expected(model: Any, pipeline: Pipeline, video: np.ndarray, question: str) -> tuple[np.ndarray, list[int]]:
    from prunevid.runtime.video.pixel_values import preprocess

    pixels = preprocess(video, pipeline.preprocessing)
    ids = pipeline.prompt.encode(question)
    visual = len(video) * pipeline.bundle.manifest.token_layout.tokens_per_frame + 1
    tokens = np.concatenate([ids.prefix, np.full(visual, model.config.video_token_id), ids.suffix])[None]
    output = model.generate(
        input_ids=torch.from_numpy(tokens),
        attention_mask=torch.ones(tokens.shape, dtype=torch.long),
        pixel_values_videos=torch.from_numpy(pixels)[None],
        do_sample=False,
        max_new_tokens=STEPS,
        output_logits=True,
        return_dict_in_generate=True,
    )
    logits = torch.cat(output.logits).float().numpy()
    return logits, output.sequences[0, tokens.shape[1] :].tolist()


@pytest.mark.parametrize("dialect", ["ort", "portable"])
def test_the_chain_of_the_real_model_equals_transformers(
    checkpoint: Path, model: Any, dialect: str, tmp_path: Path
) -> None:
    peak = export_in_its_own_process(checkpoint, tmp_path / "bundle", dialect)
    assert peak < 1.5e9
    pipeline = load(tmp_path / "bundle", verify=False)
    sampling = SamplingConfig(max_new_tokens=STEPS)
    for frames, question in zip((1, 2), QUESTIONS, strict=True):
        video = clip(frames)
        session = pipeline.open(video, frames=frames, prune=False)
        logits, ids = logits_of(pipeline, session.stream(question, sampling))
        wanted, wanted_ids = expected(model, pipeline, video, question)
        assert ids == wanted_ids
        np.testing.assert_allclose(logits, wanted, atol=1e-3, rtol=0)

    from prunevid.runtime.video.pixel_values import preprocess

    session = pipeline.open(video, frames=2)
    logits, ids = logits_of(pipeline, session.stream(QUESTIONS[1], sampling))
    text = pipeline.prompt.encode(QUESTIONS[1])
    pixels = preprocess(video, pipeline.preprocessing)
    prune = pipeline.bundle.manifest.prune
    trace = generate_pruned(model, pixels, text.prefix.tolist(), text.suffix.tolist(), prune, STEPS)
    assert len(session.video.tokens) == len(trace.tokens) < 2 * 196
    assert ids == trace.ids
    np.testing.assert_allclose(logits, trace.logits, atol=1e-3, rtol=0)
