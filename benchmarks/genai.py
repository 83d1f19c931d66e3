"""onnxruntime-genai as a peer for the language model: its own builder's decoder on the same random weights.

It prunes nothing and has no vision here: ids of the same number stand for the unpruned prompt. Needs
`pip install onnxruntime-genai`.
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
from pathlib import Path
from time import perf_counter
from typing import Any

import numpy as np


def build(bundle: str, folder: Path, precision: str) -> Path:
    """Write the bundle's decoder as a transformers checkpoint, once, and build it with genai's builder."""
    checkpoint, output = folder / "decoder", folder / f"genai-{precision}"
    if not checkpoint.exists():
        _in_own_process("write_checkpoint", bundle, str(checkpoint))
    if not output.exists():
        command = [sys.executable, "-m", "onnxruntime_genai.models.builder", "-i", str(checkpoint), "-o", str(output)]
        command += ["-p", precision, "-e", "cpu", "-c", str(folder), "--extra_options", "prune_lm_head=true"]
        subprocess.run(command, check=True, stdout=sys.stderr)
    return output


def _in_own_process(function: str, *arguments: str) -> None:
    """Call a function of this module elsewhere, so that its memory is gone afterwards."""
    call = f"from benchmarks import genai; genai.{function}(*{arguments!r})"
    subprocess.run([sys.executable, "-c", call], check=True)


def write_checkpoint(bundle: str, folder: str) -> None:
    """The language model of a random-weights bundle as a Qwen2ForCausalLM checkpoint."""
    from transformers import PreTrainedTokenizerFast, Qwen2ForCausalLM

    from benchmarks.systems import Transformers
    from prunevid.bundle import open_bundle

    whole = Transformers(bundle, frames=1, threads=2).model
    language = Qwen2ForCausalLM(whole.config.text_config)
    language.model, language.lm_head = whole.model.language_model, whole.lm_head
    language.save_pretrained(folder)
    opened = open_bundle(bundle, verify=False)
    tokenizer = opened.file(opened.manifest.prompt.tokenizer)
    PreTrainedTokenizerFast(tokenizer_file=str(tokenizer)).save_pretrained(folder)


class GenAi:
    """onnxruntime-genai over `rows` ids."""

    def __init__(self, model: Path, rows: int, vocabulary: int, threads: int) -> None:
        import onnxruntime_genai as og

        config = og.Config(str(model))
        options = {"intra_op_num_threads": threads}
        config.overlay(json.dumps({"model": {"decoder": {"session_options": options}}}))
        self._og, self._model = og, og.Model(config)
        self._ids = np.random.default_rng(3).integers(0, vocabulary, rows).astype(np.int32)

    def vision(self) -> dict[str, Any]:
        """Nothing: this is a language model alone."""
        return {}

    def round(self, steps: int, pruned: bool) -> dict[str, Any]:
        """Prefill of all ids, then `steps` greedy tokens; it knows no pruning."""
        parameters = self._og.GeneratorParams(self._model)
        parameters.set_search_options(max_length=len(self._ids) + steps + 2, do_sample=False)
        generator = self._og.Generator(self._model, parameters)
        begin = perf_counter()
        generator.append_tokens(self._ids)
        generator.generate_next_token()
        prefill, decode = perf_counter() - begin, []
        for _ in range(steps):
            begin = perf_counter()
            generator.generate_next_token()
            decode.append(perf_counter() - begin)
        return {"merge": 0.0, "select": 0.0, "llm prefill": prefill, "decode": statistics.median(decode)}
