"""Attention over a KV cache in int8 beside one in float: GroupQueryAttention alone, of the shapes of real decoders.

    python -m benchmarks.kv_attention --output benchmarks/results/kv-attention.json

Three graphs take turns: floats; int8 by ONNX Runtime's operator for any number of rows; and int8 as bundles have it,
by the operator for one row, and in float over what the codes stand for otherwise. Stated is the median time of floats
divided by that of the others. The cache stays in the processor's caches between runs where it fits, as it does not in a
decoder whose weights pass through them in between.
"""

from __future__ import annotations

import argparse
from dataclasses import asdict, dataclass
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort

from benchmarks.machine import describe
from benchmarks.report import save
from prunevid.calibration.quantize.kv_int8 import Scales, put_int8_cache
from prunevid.runtime.backends.ort import session_options

_CONTRIB = "com.microsoft"
_ONE = "one"
GRAPHS = ("float", "int8 by the operator", "int8 as in bundles")


@dataclass(frozen=True)
class Decoder:
    """Heads that ask, heads in the cache, channels of each."""

    name: str
    heads: int
    kv_heads: int
    channels: int


DECODERS = (Decoder("0.5B", 14, 2, 64), Decoder("7B", 28, 4, 128))
# Rows in the cache before, and new rows.
STEPS = ((1000, 1), (3000, 1), (6000, 1), (2560, 512))


def attention(decoder: Decoder, capacity: int, *, codes: bool) -> onnx.ModelProto:
    """A graph that is one attention, with inputs named as the exporter names them; codes: the cache is int8."""
    helper = onnx.helper
    floats, cache = onnx.TensorProto.FLOAT, onnx.TensorProto.INT8 if codes else onnx.TensorProto.FLOAT
    asked, kept = decoder.heads * decoder.channels, decoder.kv_heads * decoder.channels
    held = [1, decoder.kv_heads, capacity, decoder.channels]
    inputs = [helper.make_tensor_value_info("query", floats, [1, "rows", asked])]
    inputs += [helper.make_tensor_value_info(name, floats, [1, "rows", kept]) for name in ("key", "value")]
    inputs += [helper.make_tensor_value_info(name, cache, held) for name in ("past_key.0", "past_value.0")]
    inputs += [helper.make_tensor_value_info("last_row", onnx.TensorProto.INT32, [1])]
    inputs += [helper.make_tensor_value_info("total", onnx.TensorProto.INT32, [])]
    names = [value.name for value in inputs]
    how: dict[str, Any] = {"num_heads": decoder.heads, "kv_num_heads": decoder.kv_heads}
    if codes:
        names += [""] * 5 + [_ONE, _ONE]
        how |= {"k_quant_type": "PER_TENSOR", "v_quant_type": "PER_TENSOR", "kv_cache_bit_width": 8}
    outputs = ["output", "present_key.0", "present_value.0"]
    node = helper.make_node("GroupQueryAttention", names, outputs, domain=_CONTRIB, **how)
    described = [
        helper.make_tensor_value_info("output", floats, [1, "rows", asked]),
        *(helper.make_tensor_value_info(name, cache, held) for name in outputs[1:]),
    ]
    inputs.append(helper.make_tensor_value_info("past_length", onnx.TensorProto.INT64, [1]))
    scale = [onnx.numpy_helper.from_array(np.ones(1, np.float32), _ONE)] if codes else []
    graph = helper.make_graph([node], "attention", inputs, described, scale)
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid(_CONTRIB, 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=10)


def as_in_bundles(decoder: Decoder, capacity: int) -> onnx.ModelProto:
    """The attention over floats, rewritten as calibration rewrites it."""
    model = ir.from_proto(attention(decoder, capacity, codes=False))
    ones = np.ones(decoder.kv_heads * decoder.channels, np.float32)
    put_int8_cache(model, [Scales(ones, ones)])
    return ir.to_proto(model)


def _runs(decoder: Decoder, past: int, rows: int, threads: int) -> dict[str, Any]:
    """By graph, what runs it once over the same numbers, its cache written in place."""
    rng = np.random.default_rng(0)
    capacity = past + rows
    feeds: dict[str, np.ndarray] = {
        "query": rng.standard_normal((1, rows, decoder.heads * decoder.channels), np.float32)
    }
    for name in ("key", "value"):
        feeds[name] = rng.standard_normal((1, rows, decoder.kv_heads * decoder.channels), np.float32)
    codes = rng.integers(-127, 128, (2, 1, decoder.kv_heads, capacity, decoder.channels)).astype(np.int8)
    sizes = {
        "last_row": np.array([past + rows - 1], np.int32),
        "total": np.array(past + rows, np.int32),
        "past_length": np.array([past], np.int64),
    }
    models = {
        "float": attention(decoder, capacity, codes=False),
        "int8 by the operator": attention(decoder, capacity, codes=True),
        "int8 as in bundles": as_in_bundles(decoder, capacity),
    }
    runs = {}
    for name, model in models.items():
        options = session_options(threads)
        session = ort.InferenceSession(model.SerializeToString(), options, providers=["CPUExecutionProvider"])
        cache = codes.astype(np.float32 if name == "float" else np.int8)
        binding = session.io_binding()
        given = feeds | sizes | {"past_key.0": cache[0], "past_value.0": cache[1]}
        for value in session.get_inputs():
            binding.bind_cpu_input(value.name, given[value.name])
        binding.bind_output("output", "cpu")
        for index, output in enumerate(("present_key.0", "present_value.0")):
            part = cache[index]
            binding.bind_output(output, "cpu", 0, part.dtype.type, part.shape, part.ctypes.data)
        # The cache has to live as long as what is bound to it.
        runs[name] = (session, binding, cache)
    return runs


def measure(repeats: int, threads: int) -> list[dict[str, Any]]:
    """Median seconds of every graph, for every decoder and step."""
    found = []
    for decoder in DECODERS:
        for past, rows in STEPS:
            runs = _runs(decoder, past, rows, threads)
            taken: dict[str, list[float]] = {name: [] for name in GRAPHS}
            for number in range(-2, repeats if rows == 1 else max(5, repeats // 10)):
                for name in GRAPHS:
                    session, binding, _ = runs[name]
                    begin = perf_counter()
                    session.run_with_iobinding(binding)
                    if number >= 0:
                        taken[name].append(perf_counter() - begin)
            medians = {name: float(np.median(times)) for name, times in taken.items()}
            found.append({"decoder": asdict(decoder), "past": past, "rows": rows, "seconds": medians})
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """The results as a Markdown table."""
    lines = [
        "| decoder: heads, KV heads, channels | rows in the cache | new rows | float, ms "
        "| float / int8 by the operator | float / int8 as in bundles |",
        "|---|---|---|---|---|---|",
    ]
    for row in rows:
        shape, seconds = row["decoder"], row["seconds"]
        ratios = " | ".join(f"{seconds['float'] / seconds[name]:.2f}" for name in GRAPHS[1:])
        of = f"{shape['name']}: {shape['heads']}, {shape['kv_heads']}, {shape['channels']}"
        lines.append(f"| {of} | {row['past']} | {row['rows']} | {1000 * seconds['float']:.2f} | {ratios} |")
    return "\n".join(lines)


def main() -> None:
    """Measure and print; write JSON where asked to."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--repeats", type=int, default=200)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--output", type=Path)
    args = parser.parse_args()
    rows = measure(args.repeats, args.threads)
    save({"machine": describe(), "threads": args.threads, "repeats": args.repeats, "runs": rows}, args.output)
    print(table(rows))


if __name__ == "__main__":
    main()
