"""The estimates of fit: counts against real models and bundles, rates against published figures, time by hand."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import needs
import onnx
import pytest
from models import TINY, build_model

from prunevid import PruneConfig, PruneVidError
from prunevid.bundle import open_bundle
from prunevid.bundle.sections.layout import Piece, TokenLayout
from prunevid.cost import DecoderShape, TokenCounts, VisionShape, decode_flops, kv_bytes, prefill_cost
from prunevid.export import settings
from prunevid.export.catalog import shipped_config
from prunevid.export.engine.rtx_worker import known_capabilities
from prunevid.export.engine.targets import rtx_capabilities
from prunevid.export.families import family_of, text_config
from prunevid.models import KNOWN, ModelShape, known_model
from prunevid.runtime import SamplingConfig, load
from prunevid.runtime.backends.arrays import Array
from prunevid.runtime.backends.ort import OrtGraph
from prunevid.runtime.fit.bundle_shape import shape_of
from prunevid.runtime.fit.devices.cards import DEVICES, Device, device_named
from prunevid.runtime.fit.devices.device import RTX_CAPABILITIES
from prunevid.runtime.fit.estimate import ANSWER, TEXT_BEFORE, Estimate, Workload, estimate, text_after, workload
from prunevid.runtime.fit.footprint import (
    held_kv_bytes,
    loading_bytes,
    merge_bytes,
    parameter_counts,
    prefill_bytes,
    read_kv_bytes,
    vision_bytes,
)
from prunevid.runtime.fit.one_run import QUESTION, synthetic_video
from prunevid.runtime.fit.precision import EXPORTED, PRECISIONS, Precision, precisions_of
from prunevid.runtime.fit.result import Shares, estimate_all, frames_taken, most_frames

ORIN, PI = DEVICES["agx-orin-64gb"], DEVICES["raspberry-pi-5-8gb"]
PUBLISHED = Shares(0.425, 0.17)


def derived(name: str) -> ModelShape:
    """The shapes that the exporter reads from the shipped config of a known model."""
    data = shipped_config(known_model(name))
    return of_config(name, family_of(data, name).parse_config(data, name), KNOWN[name].frames)


def of_config(name: str, config: Any, frames: int) -> ModelShape:
    vision, text, family = config.vision_config, config.text_config, family_of(config.to_dict(), name)
    spec = family.decoder_spec(config)
    return ModelShape(
        name=name,
        decoder=spec.shape,
        vision=family.vision_shape(config),
        image_size=vision.image_size,
        layout=family.token_layout(config),
        tied=text_config.is_tied(config),
        projection_bias=spec.projection_bias,
        query_key_norm=spec.query_key_norm,
        max_positions=text.max_position_embeddings,
        frames=frames,
    )


def test_every_known_model_has_the_shapes_of_its_config() -> None:
    for name, model in KNOWN.items():
        assert derived(name) == model.shape


def test_an_unknown_model_is_refused_by_name() -> None:
    with pytest.raises(PruneVidError, match=r"unknown model 'gpt': known are llava-ov, llava-ov-0\.5b, llava-ov-72b"):
        known_model("gpt")
    with pytest.raises(PruneVidError, match="max_positions must be 1 or more"):
        replace(KNOWN["llava-ov"].shape, max_positions=0)


def shapes_run(model: Any, name: str) -> dict[str, tuple[int, ...]]:
    """The model's tensors, without those of the tower's layers that are not run."""
    family = family_of(model.config.to_dict(), name)
    layers = range(family.vision_shape(model.config).layers, model.config.vision_config.num_hidden_layers)
    unused = tuple(f"model.vision_tower.encoder.layers.{layer}." for layer in layers)
    return {n: shape for n, shape in family.NAMES.shapes(model).items() if not n.startswith(unused)}


@pytest.mark.parametrize("name", list(KNOWN))
def test_parameters_are_those_of_the_transformers_model(name: str) -> None:
    data = shipped_config(known_model(name))
    family = family_of(data, name)
    config = family.parse_config(data, name)
    shapes = shapes_run(family.empty_model(config), name)
    count = {tensor: math.prod(shape) for tensor, shape in shapes.items()}
    found = parameter_counts(KNOWN[name].shape)
    assert found.total == sum(count.values())
    vision = ("model.vision_tower.", "model.multi_modal_projector.")
    assert found.vision == sum(n for tensor, n in count.items() if tensor.startswith(vision))
    assert found.decoder == sum(
        n
        for tensor, n in count.items()
        if tensor.startswith(("model.language_model.layers.", "model.language_model.norm."))
    )
    matrices = sum(
        n
        for tensor, n in count.items()
        if tensor.startswith("model.language_model.layers.") and len(shapes[tensor]) == 2
    )
    assert found.decoder_matrices == matrices


@pytest.mark.parametrize("name", list(TINY))
def test_parameters_of_other_decoders(name: str) -> None:
    model = build_model(TINY[name])
    shapes = shapes_run(model, name)
    expected = sum(math.prod(shape) for shape in shapes.values())
    assert parameter_counts(of_config(name, model.config, 1)).total == expected


def external_values(bundle: Path) -> int:
    """Values in the graphs' weight files and the embedding table, each once."""
    opened = open_bundle(bundle)
    table = opened.manifest.embeddings
    values = table.rows * table.columns
    for graph in opened.manifest.graphs.values():
        for tensor in onnx.load(bundle / graph.file, load_external_data=False).graph.initializer:
            files = [entry.value for entry in tensor.external_data if entry.key == "location"]
            if files and files[0] != table.file:
                values += math.prod(tensor.dims)
    return values


@pytest.mark.parametrize("name", list(TINY))
def test_a_bundle_tells_its_shapes_and_holds_the_parameters_counted(
    name: str, tiny_bundle: Callable[[str, str], Path], tiny_model: Callable[[str], object]
) -> None:
    bundle = tiny_bundle(name, "ort")
    shape = shape_of(open_bundle(bundle))
    config = tiny_model(name).config  # type: ignore[attr-defined]
    assert shape == of_config(TINY[name].model, config, shape.frames)
    assert parameter_counts(shape).total == external_values(bundle)


def test_weights_are_as_large_as_the_demo_bundles_files(demo_bundle: Path) -> None:
    opened = open_bundle(demo_bundle)
    expected = PRECISIONS["fp32"].weight_bytes(parameter_counts(shape_of(opened)), ORIN)
    files = opened.manifest.files
    weights = [name for name in files if name.endswith(".data") or name == opened.manifest.embeddings.file]
    stored = sum(files[name].size for name in weights)
    # Tensors lie on page boundaries: up to 4 KiB more for each of some 150.
    assert expected <= stored <= expected + 150 * 4096


def test_quantization_shrinks_what_it_is_said_to() -> None:
    parameters = parameter_counts(KNOWN["llava-ov"].shape)
    fp32, fp16, int8, int4 = (PRECISIONS[name].weight_bytes(parameters, ORIN) for name in PRECISIONS)
    assert fp32 == 2 * fp16 == 4 * parameters.total
    assert fp16 - int8 == parameters.vision_matrices + parameters.decoder_matrices + parameters.head
    # Four bits and a 16-bit scale per 128 weights.
    language = parameters.decoder_matrices + parameters.head
    assert fp16 - int4 == pytest.approx(parameters.vision_matrices + language * (2 - 0.5 - 2 / 128), abs=2)
    # A device without float16 keeps the rest in float32.
    assert PRECISIONS["int8"].weight_bytes(parameters, PI) > int8
    # A tied output matrix is the table, until it is quantized: then it stands beside it.
    tied = parameter_counts(KNOWN["llava-ov-0.5b"].shape)
    assert tied.head == 0
    saved = tied.vision_matrices + tied.decoder_matrices - tied.output
    assert PRECISIONS["fp16"].weight_bytes(tied, ORIN) - PRECISIONS["int8"].weight_bytes(tied, ORIN) == saved


@pytest.mark.parametrize(("recipe", "precision"), [("int8-qdq", "int8"), ("int4-awq", "int4")])
def test_quantized_weights_are_as_large_as_the_recipes_bundles(recipe: str, precision: str) -> None:
    """Bundles of LLaVA-OneVision-7B's shape that `benchmarks/quantize_memory.py` made."""
    file = Path(__file__).parents[1] / "benchmarks" / "results" / "quantize-memory.json"
    (run,) = (
        run
        for run in json.loads(file.read_text())["runs"]
        if (run["model"], run["dialect"], run["precision"], run["recipe"]) == ("llava-ov", "portable", "fp16", recipe)
    )
    made = PRECISIONS[precision].weight_bytes(parameter_counts(KNOWN["llava-ov"].shape), ORIN)
    assert made == pytest.approx(run["quantized bytes"], rel=0.005)


@pytest.mark.parametrize("recipe", ["fp16", "int8-qdq", "int4-awq"])
def test_engines_hold_the_weights_that_are_counted_and_little_more(recipe: str) -> None:
    """Engines of LLaVA-OneVision's shapes that NVIDIA's builder made for `benchmarks/engines.py`."""
    file = Path(__file__).parents[1] / "benchmarks" / "results" / "engines.json"
    rows = [row for row in json.loads(file.read_text())["rows"] if row["precision"] == recipe]
    for model in sorted({row["model"] for row in rows} & (set(KNOWN) - {"demo"})):
        engines = [row for row in rows if row["model"] == model]
        assert {row["graph"] for row in engines} == {"vision_merge", "llm_pre", "llm_post", "merge", "select"}
        parameters, precision = parameter_counts(KNOWN[model].shape), PRECISIONS[recipe.partition("-")[0]]
        weights = precision.weight_bytes(parameters, ORIN)
        if parameters.head or recipe != "fp16":
            weights -= 2 * parameters.embeddings  # the table is no engine's
        assert sum(row["weights"] for row in engines) == pytest.approx(weights, rel=0.003)
        assert 0 < sum(row["engine"] - row["weights"] for row in engines) < 70e6


def test_what_is_exported_is_what_the_exporter_offers() -> None:
    assert settings.PRECISIONS == EXPORTED


def test_weights_are_read_as_often_as_the_runtime_runs_their_graphs(
    demo_bundle: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Frames and rows at once: what the estimate takes for granted, against the runs of a real question."""
    rows: dict[str, list[int]] = {}
    run = OrtGraph.run

    def noted(self: OrtGraph, feeds: Mapping[str, Array], outputs: Mapping[str, Array | None]) -> dict[str, Array]:
        for name, axis in (("pixel_values", 0), ("inputs_embeds", 1), ("hidden", 1)):
            if name in feeds and self._file.stem in ("vision_merge", "llm_pre", "llm_post"):
                rows.setdefault(self._file.stem, []).append(feeds[name].shape[axis])
        return run(self, feeds, outputs)

    monkeypatch.setattr(OrtGraph, "run", noted)
    pipeline = load(demo_bundle, "ort-cpu")
    frames, model = 62, shape_of(pipeline.bundle)
    video = synthetic_video(frames, pipeline.bundle.manifest.preprocessing.size)
    counts = pipeline.ask(video, QUESTION, frames=frames, prune=False, max_new_tokens=1).token_counts
    # More than two blocks of rows, and frames that do not fill the last batch.
    blocks = pipeline.bundle.manifest.blocks
    assert counts.visual > 2 * blocks.rows
    assert frames % blocks.frames
    for name, at_once in (("vision_merge", blocks.frames), ("llm_pre", blocks.rows), ("llm_post", blocks.rows)):
        assert max(rows[name]) == at_once
    # Where arithmetic and all bytes but the weights' cost nothing, a stage takes what its weights' reading takes.
    work = Workload(model, pipeline.bundle.manifest.prune.prune_layer, frames, counts)
    device = replace(ORIN, fp32=1e30, fp16=1e30, int8=1e30)
    made = estimate(work, PRECISIONS["fp32"], device)
    parameters, rate = parameter_counts(model), ORIN.bandwidth * ORIN.bandwidth_efficiency
    layer, layers = 4 * parameters.decoder / model.decoder.layers, work.prune_layer + 1
    assert len(rows["vision_merge"]) * 4 * parameters.vision / rate == pytest.approx(made.stages_s["vision"])
    assert len(rows["llm_pre"]) * layers * layer / rate == pytest.approx(made.stages_s["llm_pre"])
    post = len(rows["llm_post"]) * (model.decoder.layers - layers) * layer + 4 * parameters.head
    assert post / rate == pytest.approx(made.stages_s["llm_post"])


SMALL = DecoderShape(4, 8, 16, heads=4, kv_heads=2, head_dim=2, vocab_size=10)


def test_kv_that_is_held_includes_what_the_next_question_needs() -> None:
    counts = TokenCounts(visual=100, merged=40, kept=10, text_before=3, text_after=5)
    row = 2 * 2 * 2 * 4
    assert read_kv_bytes(SMALL, counts, 4) == 4 * 18 * row
    assert held_kv_bytes(SMALL, counts, 1, 7, 4) == (4 * (18 + 7) + 2 * 48) * row
    assert held_kv_bytes(SMALL, counts.unpruned(), 1, 7, 4) == 4 * (108 + 7) * row


def test_kv_that_is_read_is_what_the_runtime_counts(demo_bundle: Path) -> None:
    pipeline = load(demo_bundle, "ort-cpu")
    shape = pipeline.bundle.manifest.model.decoder
    video = synthetic_video(6, pipeline.bundle.manifest.preprocessing.size)
    for prune in (True, False):
        answer = pipeline.ask(video, QUESTION, frames=6, prune=prune, max_new_tokens=2)
        assert answer.kv_bytes == read_kv_bytes(shape, answer.token_counts, 4)
        assert answer.kv_bytes_unpruned == read_kv_bytes(shape, answer.token_counts.unpruned(), 4)


def test_activations_follow_what_runs_at_once() -> None:
    siglip, qwen = KNOWN["llava-ov-0.5b"].shape.vision, KNOWN["llava-ov-0.5b"].shape.decoder
    # Four frames at once, whatever the video's length; one frame is a quarter.
    assert vision_bytes(siglip, 4, 4) == vision_bytes(siglip, 32, 4) == 4 * vision_bytes(siglip, 1, 4)
    # Two tables of scores, 16 heads x 729 x 729, are the most of it.
    scores = 2 * 4 * 16 * 729 * 729 * 4
    assert scores < vision_bytes(siglip, 4, 4) < 2 * scores
    # A block of 512 rows before 1000 or 2000: only the scores grow.
    assert prefill_bytes(qwen, 2000, 2) - prefill_bytes(qwen, 1000, 2) == 512 * 14 * 1000 * 2
    assert prefill_bytes(qwen, 300, 2) < prefill_bytes(qwen, 512, 2)
    assert merge_bytes(KNOWN["llava-ov-0.5b"].shape, 32) == 2 * merge_bytes(KNOWN["llava-ov-0.5b"].shape, 16)
    assert loading_bytes(qwen, 2) == 152000 * 896 * 2


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_devices_can_be_used_and_say_where_their_figures_are_from(device: Device) -> None:
    assert device_named(device.name) is device
    assert 0 < device.usable_bytes < device.memory_bytes
    assert not device.is_measured
    assert len(device.source) > 60
    if device.fp16 is not None:
        assert device.fp16 >= 1.99 * device.fp32
        assert device.int8 is not None
        assert device.int8 >= 1.99 * device.fp16


# Sparse INT8 TOPS of the GPU alone, as NVIDIA prints them: technical brief, data sheets, JetPack 6.2 blog post.
SPARSE_INT8 = {
    "orin-nano-8gb": 40,
    "orin-nano-8gb-super": 67,
    "orin-nx-8gb": 50,
    "orin-nx-8gb-super": 77,
    "orin-nx-16gb": 60,
    "orin-nx-16gb-super": 77,
    "agx-orin-32gb": 108,
    "agx-orin-64gb": 170,
}


@pytest.mark.parametrize(("name", "tops"), SPARSE_INT8.items())
def test_orin_rates_are_half_of_what_is_printed_for_sparse_int8(name: str, tops: float) -> None:
    device = DEVICES[name]
    assert device.int8 == pytest.approx(tops / 2 * 1e12, rel=0.03)
    assert device.fp16 == pytest.approx(tops / 4 * 1e12, rel=0.03)


def test_thor_computes_an_eighth_of_its_sparse_fp4_rate_in_fp16() -> None:
    # "517 TFLOPS (dense FP8 | sparse FP16)" in the blog post that introduces it.
    assert DEVICES["thor-128gb"].int8 == pytest.approx(517e12, rel=0.01)
    assert DEVICES["thor-128gb"].fp16 == pytest.approx(517e12 / 2, rel=0.01)


# AI TOPS as NVIDIA prints them, and how often dense INT8 is in them: sparse INT8 for RTX 40, sparse FP4 for Blackwell.
AI_TOPS = {
    "rtx-4060-laptop": (233, 2),
    "rtx-4070-laptop": (321, 2),
    "rtx-4090": (1321, 2),
    "rtx-5090": (3352, 4),
    "rtx-pro-2000": (545, 4),
    "rtx-pro-6000": (4000, 4),
    "dgx-spark": (1000, 4),
}


@pytest.mark.parametrize(("name", "printed"), AI_TOPS.items())
def test_rtx_rates_are_dense_where_the_printed_ones_are_sparse(name: str, printed: tuple[int, int]) -> None:
    device, (tops, sparse) = DEVICES[name], printed
    assert device.int8 == pytest.approx(tops / sparse * 1e12, rel=0.01)
    # Accumulated in float32: GeForce cards do half of what the RTX PRO cards do per 8-bit operation.
    assert device.fp16 is not None
    assert device.int8 is not None
    assert device.int8 / device.fp16 == pytest.approx(2 if name.startswith("rtx-pro") else 4, rel=0.01)


def test_a_laptop_gpu_counts_on_the_clock_that_is_printed_and_not_on_the_larger_tops() -> None:
    # 798 AI TOPS are sparse FP4 at a clock of 2.7 GHz; 2.347 GHz is the boost clock at the highest power.
    laptop = DEVICES["rtx-5070-laptop"]
    assert laptop.int8 is not None
    assert 4 * laptop.int8 == pytest.approx(798e12 * 2.347 / 2.706, rel=0.01)
    for name in ("rtx-4060-laptop", "rtx-4070-laptop", "rtx-5070-laptop"):
        assert " W" in DEVICES[name].title
        assert "TechPowerUp" in DEVICES[name].source


def test_a_rate_that_nobody_prints_is_said_to_be_a_lower_bound() -> None:
    assert {name: device.at_least for name, device in DEVICES.items() if device.at_least} == {"dgx-spark": ("fp16",)}
    assert "NVIDIA prints no rate for dense FP16" in DEVICES["dgx-spark"].source


def test_engines_are_for_whom_their_builders_build() -> None:
    rtx = {name for name, device in DEVICES.items() if device.has_tensorrt_rtx}
    assert rtx == {name for name in DEVICES if name.startswith("rtx-")} | {"dgx-spark", "l4"}
    assert {name for name, device in DEVICES.items() if not device.has_tensorrt} == {"raspberry-pi-5-8gb"}
    # Jetsons and the H100 are left to TensorRT.
    assert {DEVICES[name].compute_capability for name in set(DEVICES) - rtx} == {"8.7", "9.0", "11.0", None}


def test_capabilities_of_tensorrt_rtx_are_those_that_the_build_offers() -> None:
    trt = needs.package("tensorrt_rtx", "tensorrt-rtx-cu13")
    assert rtx_capabilities((), tuple(known_capabilities(trt)), trt.__version__, "fp16") == RTX_CAPABILITIES


def test_the_documentation_lists_every_device_with_its_figures() -> None:
    rows = {}
    for line in (Path(__file__).parents[1] / "docs" / "fit.md").read_text().splitlines():
        cells = [cell.strip() for cell in line.strip("|").split("|")]
        if len(cells) == 9 and cells[0].startswith("`") and cells[0] != "`--device`":
            rows[cells[0].strip("`")] = cells[1:]
    assert list(rows) == list(DEVICES)
    for device in DEVICES.values():
        title, capability, memory, *figures = rows[device.name]
        assert capability == (device.compute_capability or "-")
        assert title == device.title
        assert int(memory) == device.memory_bytes / 2**30
        rates = [None if rate is None else rate / 1e12 for rate in (device.fp32, device.fp16, device.int8)]
        assert figures[2].startswith("at least ") is ("fp16" in device.at_least)
        figures[2] = figures[2].removeprefix("at least ")
        for printed, value in zip(figures, [device.usable_bytes / 1e9, *rates, device.bandwidth / 1e9], strict=True):
            assert printed == "-" if value is None else float(printed) == pytest.approx(value, rel=0.005)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"bandwidth": 0.0}, "bandwidth must be above 0"),
        ({"fp16": -1.0}, "fp16 must be above 0"),
        ({"reserved_bytes": 64 * 2**30}, "reserved_bytes must be from 0 to below memory_bytes"),
        ({"compute_efficiency": 1.1}, "compute_efficiency must be above 0 and at most 1"),
        ({"source": ""}, "figures without a source are guesses"),
    ],
)
def test_impossible_devices_are_refused(change: dict[str, object], message: str) -> None:
    with pytest.raises(PruneVidError, match=message):
        replace(ORIN, **change)  # type: ignore[arg-type]


def test_precisions_are_those_that_a_device_computes_in() -> None:
    assert [p.name for p in precisions_of(ORIN)] == ["fp32", "fp16", "int8", "int4"]
    assert [p.name for p in precisions_of(PI)] == ["fp32", "int8", "int4"]
    assert [p.name for p in precisions_of(replace(PI, is_measured=True))] == ["fp32"]
    int8, int4 = PRECISIONS["int8"], PRECISIONS["int4"]
    assert int8.decoder_rate(ORIN) == int8.vision_rate(ORIN) == int4.vision_rate(ORIN) == ORIN.int8
    assert int4.decoder_rate(ORIN) == int8.wide_rate(ORIN) == ORIN.fp16
    assert int8.decoder_rate(PI) == int8.vision_rate(PI) == int4.wide_rate(PI) == PI.fp32
    assert (int4.value_bytes(ORIN), int4.value_bytes(PI), PRECISIONS["fp32"].value_bytes(ORIN)) == (2, 4, 4)


def busy(model: ModelShape = KNOWN["llava-ov"].shape, frames: int = 32) -> Workload:
    return workload(model, PruneConfig.for_depth(model.decoder.layers).prune_layer, frames, 0.425, 0.17)


def idle(work: Workload) -> Workload:
    return workload(work.model, work.prune_layer, work.frames)


def test_where_arithmetic_decides_the_time_is_the_cost_models_flops() -> None:
    work, fp16 = busy(), ORIN.fp16
    assert fp16 is not None
    # So much bandwidth that arithmetic decides everywhere but in select, which has none.
    device = replace(ORIN, bandwidth=1e18, fp32=fp16)
    made = estimate(work, PRECISIONS["fp16"], device)
    cost = prefill_cost(
        work.model.decoder,
        work.counts,
        PruneConfig.for_depth(28),
        vision=work.model.vision,
        frames=work.frames,
    )
    rate = fp16 * ORIN.compute_efficiency
    assert made.stages_s["vision"] == pytest.approx((cost.vision + cost.projector) / rate)
    assert made.stages_s["llm_pre"] == pytest.approx((cost.llm_pre + cost.select) / rate)
    assert made.stages_s["llm_post"] == pytest.approx((cost.llm_post + cost.lm_head) / rate)
    assert made.decode_s == pytest.approx(decode_flops(work.model.decoder, work.counts.kept + 44) / rate)
    # Gram matrices and cluster means, two FLOPs each, over a table of 64 groups of 196 tokens.
    assert made.stages_s["merge"] == pytest.approx(2 * 2 * 64 * 196 * 196 * 3584 / rate)


def test_where_bandwidth_decides_the_time_is_bytes_once_per_block() -> None:
    work = busy()
    device = replace(ORIN, fp32=1e30, fp16=1e30, int8=1e30)
    made = estimate(work, PRECISIONS["fp16"], device)
    parameters, bandwidth = parameter_counts(work.model), ORIN.bandwidth * ORIN.bandwidth_efficiency
    layer, head = 2 * parameters.decoder / 28, 2 * parameters.head
    assert made.stages_s["vision"] == pytest.approx(8 * 2 * parameters.vision / bandwidth)
    # 14 + 2665 + 1 rows before the question are six blocks of 512, the question a seventh; 1110 rows are three.
    assert work.counts.merged == 2665
    assert made.stages_s["llm_pre"] == pytest.approx(7 * 9 * layer / bandwidth)
    assert made.stages_s["llm_post"] == pytest.approx((3 * 19 * layer + head) / bandwidth)
    read = 28 * layer + head + kv_bytes(work.model.decoder, [work.counts.kept + 44] * 28)
    assert made.decode_s == pytest.approx(read / bandwidth)


def test_integer_arithmetic_helps_linear_layers_alone() -> None:
    work, device = idle(busy()), replace(ORIN, bandwidth=1e18)
    fp16, int8 = (estimate(work, PRECISIONS[name], device) for name in ("fp16", "int8"))
    for stage in ("vision", "llm_pre", "llm_post"):
        assert 0.5 < int8.stages_s[stage] / fp16.stages_s[stage] < 0.7


@pytest.mark.parametrize("device", DEVICES.values(), ids=list(DEVICES))
def test_pruning_makes_every_device_faster(device: Device) -> None:
    for precision in precisions_of(device):
        pruned, whole = (estimate(work, precision, device) for work in (busy(), idle(busy())))
        assert pruned.first_token_s < whole.first_token_s
        assert pruned.decode_s < whole.decode_s
        assert pruned.memory.kv < whole.memory.kv / 2
        assert pruned.memory.weights == whole.memory.weights
        assert set(whole.stages_s) == set(pruned.stages_s) - {"merge", "select"}


def test_memory_is_set_against_what_is_usable() -> None:
    made = estimate(busy(), PRECISIONS["fp16"], ORIN)
    assert made.left_bytes == ORIN.usable_bytes - made.memory.total
    assert made.fits
    tight = replace(ORIN, reserved_bytes=ORIN.memory_bytes - made.memory.total)
    assert estimate(busy(), PRECISIONS["fp16"], tight).fits
    tighter = replace(tight, reserved_bytes=tight.reserved_bytes + 1)
    assert not estimate(busy(), PRECISIONS["fp16"], tighter).fits


QWEN3_8B = ModelShape(
    "qwen3-vl-8b",
    DecoderShape(36, 4096, 12288, heads=32, kv_heads=8, head_dim=128, vocab_size=151936),
    # SigLIP 2 so400m over an image of 265 tokens, each of four patches.
    VisionShape(27, 1152, 4304, patches=4 * 265, patch_values=2 * 3 * 16 * 16),
    image_size=512,
    layout=TokenLayout(265, None),
    tied=False,
    projection_bias=False,
    query_key_norm=True,
    max_positions=32768,
    frames=1,
)


# TensorRT Edge-LLM 0.9.0, "Performance Benchmarks": INT4 AWQ, vision in FP16, batch 1. Qwen3-VL-8B's prefill of 292
# tokens and encoding of one image in ms, Qwen3-8B's decoding in tokens per second.
@pytest.mark.parametrize(
    ("device", "vision_ms", "prefill_ms", "tokens_per_s"),
    [
        ("agx-orin-64gb", 57.2, 225.1, 32.5),
        ("orin-nx-16gb-super", 120.0, 462.1, 19.0),
        ("thor-128gb", 15.8, None, 49.3),  # docs/fit.md: INT4 prefill is far slower there than its FP16 rate
    ],
)
def test_what_nvidia_measured_is_within_a_third(
    device: str, vision_ms: float, prefill_ms: float | None, tokens_per_s: float
) -> None:
    work = Workload(QWEN3_8B, 11, 1, TokenCounts(265, 265, 265, 10, 17))
    made = estimate(work, Precision("int4", None, decoder_bits=4, scale_every=128), DEVICES[device])
    assert 1000 * made.stages_s["vision"] == pytest.approx(vision_ms, rel=0.33)
    assert 1 / made.decode_s == pytest.approx(tokens_per_s, rel=0.33)
    if prefill_ms is not None:
        assert 1000 * (made.stages_s["llm_pre"] + made.stages_s["llm_post"]) == pytest.approx(prefill_ms, rel=0.33)


def test_the_longest_video_is_the_last_that_has_positions() -> None:
    model = KNOWN["llava-ov"].shape
    text = TEXT_BEFORE + text_after(model.layout) + ANSWER
    assert most_frames(model, 1.0) == (32768 - text) // 196
    for share in (1.0, 0.425, 0.17, 0.5):
        longest = most_frames(model, share)
        assert workload(model, 8, longest, share, share).positions <= model.max_positions
        assert workload(model, 8, longest + 1, share, share).positions > model.max_positions
    assert most_frames(replace(model, max_positions=100), 1.0) == 0


def test_what_stands_among_frames_takes_positions() -> None:
    row, time = Piece(row=5), Piece(text="<{seconds:.1f} seconds>")
    beside = TokenLayout(576, (24, 24), "frame", (row, time), (row,), (row, row))
    plain = replace(KNOWN["llava-ov"].shape, layout=TokenLayout(576, (24, 24)))
    model = replace(plain, layout=beside)
    counts, without = (workload(shape, 8, 6, 0.5, 0.2).counts for shape in (model, plain))
    # A line break, two rows and a timestamp for each frame; two rows behind the video.
    assert counts.text_before == without.text_before + 6 * (1 + 2 + 10)
    assert counts.text_after == without.text_after + 2
    assert (counts.visual, counts.merged, counts.kept) == (without.visual, without.merged, without.kept)
    for share in (1.0, 0.425, 0.17):
        longest = most_frames(model, share)
        assert workload(model, 8, longest, share, share).positions <= model.max_positions
        assert workload(model, 8, longest + 1, share, share).positions > model.max_positions
    # Only rows behind the vocabulary are parameters of their own.
    learned = replace(beside, after_frame=(Piece(row=152000),))
    assert parameter_counts(replace(model, layout=learned)).embeddings == 152001 * 3584
    assert parameter_counts(model).embeddings == 152000 * 3584


def test_a_video_that_only_pruning_makes_short_enough_is_marked() -> None:
    result = estimate_all(KNOWN["llava-ov"].shape, 8, DEVICES["h100"], [160, 200], PUBLISHED)
    short, long = result.of("fp16")
    assert not short.unpruned.is_too_long
    assert long.unpruned.is_too_long
    assert not long.unpruned.fits
    assert long.pruned.fits
    assert "fits 160, 200 frames" in result.details[1]
    assert "without pruning 160 frames" in result.details[1]
    with pytest.raises(
        PruneVidError, match=r"400 frames, .* 33492 positions .* at most 391 frames \(166 without pruning\)"
    ):
        estimate_all(KNOWN["llava-ov"].shape, 8, DEVICES["h100"], [8, 400], PUBLISHED)


def verdict(model: str, device: str) -> str:
    shape = KNOWN[model].shape
    return estimate_all(shape, 8, DEVICES[device], [8, 32], PUBLISHED).verdict


def test_the_verdict_names_the_precisions_that_fit() -> None:
    assert verdict("llava-ov", "agx-orin-64gb").startswith("FITS: llava-ov on Jetson AGX Orin 64GB, in fp32, fp16")
    assert verdict("llava-ov", "orin-nx-16gb").startswith("FITS ONLY QUANTIZED:")
    assert verdict("llava-ov-72b", "orin-nano-8gb") == "DOES NOT FIT: llava-ov-72b on Jetson Orin Nano 8GB at 15 W"


def test_json_adds_up() -> None:
    result = estimate_all(KNOWN["llava-ov"].shape, 8, ORIN, [8, 32], PUBLISHED)
    found = json.loads(json.dumps(result.to_dict(), allow_nan=False))
    assert len(found["estimates"]) == 2 * 2 * 4
    for made in found["estimates"]:
        parts = made["weights_bytes"] + made["kv_bytes"] + made["activations_bytes"]
        assert made["total_bytes"] == parts
        assert made["left_bytes"] == found["device"]["usable_bytes"] - parts
        assert made["first_token_s"] == pytest.approx(sum(made["stages_s"].values()))
    assert [made["pruned"] for made in found["estimates"][:2]] == [False, True]
    assert found["model"]["parameters"]["total"] == parameter_counts(KNOWN["llava-ov"].shape).total


@pytest.mark.parametrize(("merged", "kept"), [(0.2, 0.5), (0.0, 0.0), (1.5, 0.5), (float("nan"), 0.1)])
def test_shares_out_of_range_are_refused(merged: float, kept: float) -> None:
    with pytest.raises(PruneVidError, match=f"merged-share is {merged}, kept-share {kept}"):
        workload(KNOWN["llava-ov"].shape, 8, 8, merged, kept)


def test_an_estimate_of_a_real_run_is_of_that_run(demo_bundle: Path) -> None:
    """Tokens that were really merged and kept give the KV cache that the runtime really had."""
    opened = open_bundle(demo_bundle)
    pipeline = load(opened, "ort-cpu")
    size = opened.manifest.preprocessing.size
    session = pipeline.open(synthetic_video(8, size), frames=8)
    answer = session.ask(QUESTION, SamplingConfig(max_new_tokens=4, ignore_eos=True))
    work = Workload(shape_of(opened), opened.manifest.prune.prune_layer, 8, answer.token_counts, 4, size**2)
    made: Estimate = estimate(work, PRECISIONS["fp32"], PI)
    shape, layers = work.model.decoder, work.prune_layer + 1
    row = 2 * shape.kv_heads * shape.head_dim * 4
    rows = session._pre_cache.length  # what stays for the next question
    assert rows == answer.token_counts.merged + answer.token_counts.text
    assert made.memory.kv == answer.kv_bytes + 4 * shape.layers * row + layers * rows * row


def test_frames_that_a_model_has_no_positions_for_are_left_out_by_default() -> None:
    for name, expected in (("llava-ov", [8, 16, 32, 64]), ("llava-next-video", [8, 16, 32, 64]), ("llava-1.5", [6, 8])):
        assert frames_taken(KNOWN[name].shape, 10, (8, 16, 32, 64), PUBLISHED) == expected
