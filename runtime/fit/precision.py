"""The precisions of an estimate: how many bits weights take, and in which type is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunevid.memory import ParameterCounts
from prunevid.runtime.fit.device import Device

__all__ = ["EXPORTED", "PRECISIONS", "Precision", "precisions_of"]

EXPORTED = ("fp32", "fp16")
"""Precisions that `prunevid export` writes; the others say what quantized weights would take."""

_SCALE_BYTES = 2


@dataclass(frozen=True)
class Precision:
    """How weights are kept and computed with.

    Attributes:
        name: what the command line calls it.
        wide: type of all that is not quantized (embeddings, output matrix, norms, activations, KV cache, attention);
            None for the narrowest that the device computes in.
        vision_bits: bits of a weight in the linear layers of vision tower and projector; None where not quantized.
        decoder_bits: the same of the language model.
        scale_every: weights of the language model that share a 16-bit scale; 0 for one scale per output channel,
            which is less than 0.1 % and not counted.
        computes_int8: whether the linear layers compute on 8-bit integers, where the device can.
    """

    name: str
    wide: Literal["fp32", "fp16"] | None
    vision_bits: int | None = None
    decoder_bits: int | None = None
    scale_every: int = 0
    computes_int8: bool = False

    def value_bytes(self, device: Device) -> int:
        """Bytes of an activation, of a value in the KV cache, and of a weight that is not quantized."""
        return 2 if self._wide(device) == "fp16" else 4

    def vision_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of the weights of vision tower and projector."""
        wide = self.value_bytes(device)
        return parameters.vision_rest * wide + _weight_bytes(parameters.vision_matrices, self.vision_bits, wide)

    def decoder_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of the weights of the language model's layers, without embeddings and output matrix."""
        wide = self.value_bytes(device)
        scales = parameters.decoder_matrices // self.scale_every * _SCALE_BYTES if self.scale_every else 0
        matrices = _weight_bytes(parameters.decoder_matrices, self.decoder_bits, wide)
        return parameters.decoder_rest * wide + matrices + scales

    def weight_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of all weights."""
        table = (parameters.embeddings + parameters.head) * self.value_bytes(device)
        return self.vision_bytes(parameters, device) + self.decoder_bytes(parameters, device) + table

    def linear_rate(self, device: Device) -> float:
        """Peak operations per second of the linear layers."""
        return device.int8 if self.computes_int8 and device.int8 is not None else self.wide_rate(device)

    def wide_rate(self, device: Device) -> float:
        """Peak FLOP/s of everything else."""
        return device.fp16 if self._wide(device) == "fp16" and device.fp16 is not None else device.fp32

    def _wide(self, device: Device) -> str:
        return self.wide or ("fp32" if device.fp16 is None else "fp16")


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "fp32"),
        Precision("fp16", "fp16"),
        Precision("int8", None, vision_bits=8, decoder_bits=8, computes_int8=True),
        # Weights of the language model alone, as in GPTQ (arXiv 2210.17323) and AWQ (arXiv 2306.00978).
        Precision("int4", None, decoder_bits=4, scale_every=128),
    )
}
"""All precisions by name, widest first."""


def precisions_of(device: Device) -> tuple[Precision, ...]:
    """The precisions that make sense on a device: float16 only where it computes in it, just float32 where measured."""
    if device.is_measured:
        return (PRECISIONS["fp32"],)
    return tuple(p for p in PRECISIONS.values() if p.wide != "fp16" or device.fp16 is not None)


def _weight_bytes(weights: int, bits: int | None, wide: int) -> int:
    return weights * wide if bits is None else weights * bits // 8
