"""The precisions of an estimate: how many bits weights take, and in which type is computed."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from prunevid.runtime.fit.devices.device import Device
from prunevid.runtime.fit.footprint import ParameterCounts

__all__ = ["EXPORTED", "PRECISIONS", "Precision", "precisions_of"]

EXPORTED = ("fp32", "fp16")
"""Precisions that `prunevid export` writes; `prunevid calibrate` makes the others of them."""

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
        head_bits: the same of the output matrix.
        scale_every: weights of the language model and of the output matrix that share a 16-bit scale; 0 for one scale
            per output channel, which is less than 0.1 % and not counted.

    Where weights have 8 bits, the layers compute on 8-bit integers, if the device can; with 4, as all else.
    """

    name: str
    wide: Literal["fp32", "fp16"] | None
    vision_bits: int | None = None
    decoder_bits: int | None = None
    head_bits: int | None = None
    scale_every: int = 0

    def value_bytes(self, device: Device) -> int:
        """Bytes of an activation, of a value in the KV cache, and of a weight that is not quantized."""
        return 2 if self._wide(device) == "fp16" else 4

    def vision_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of the weights of vision tower and projector."""
        wide = self.value_bytes(device)
        return parameters.vision_rest * wide + _weight_bytes(parameters.vision_matrices, self.vision_bits, wide)

    def decoder_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of the weights of the language model's layers, without embeddings and output matrix."""
        matrices = self._scaled_bytes(parameters.decoder_matrices, self.decoder_bits, device)
        return parameters.decoder_rest * self.value_bytes(device) + matrices

    def head_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of the output matrix, which is the embedding table where both are one and it is not quantized."""
        return self._scaled_bytes(parameters.output, self.head_bits, device)

    def weight_bytes(self, parameters: ParameterCounts, device: Device) -> int:
        """Bytes of all weights. A quantized output matrix stands beside the table, whatever the two were before."""
        table = parameters.embeddings * self.value_bytes(device)
        head = self.head_bytes(parameters, device) if parameters.head or self.head_bits else 0
        return self.vision_bytes(parameters, device) + self.decoder_bytes(parameters, device) + table + head

    def vision_rate(self, device: Device) -> float:
        """Peak operations per second of the linear layers of tower and projector."""
        return self._rate(self.vision_bits, device)

    def decoder_rate(self, device: Device) -> float:
        """The same of the language model."""
        return self._rate(self.decoder_bits, device)

    def wide_rate(self, device: Device) -> float:
        """Peak FLOP/s of everything else."""
        return device.fp16 if self._wide(device) == "fp16" and device.fp16 is not None else device.fp32

    def _rate(self, bits: int | None, device: Device) -> float:
        return device.int8 if bits == 8 and device.int8 is not None else self.wide_rate(device)

    def _scaled_bytes(self, weights: int, bits: int | None, device: Device) -> int:
        scales = weights // self.scale_every * _SCALE_BYTES if self.scale_every else 0
        return _weight_bytes(weights, bits, self.value_bytes(device)) + scales

    def _wide(self, device: Device) -> str:
        return self.wide or ("fp32" if device.fp16 is None else "fp16")


PRECISIONS = {
    precision.name: precision
    for precision in (
        Precision("fp32", "fp32"),
        Precision("fp16", "fp16"),
        Precision("int8", None, vision_bits=8, decoder_bits=8, head_bits=8),
        # The tower never decodes: integers compute faster than 4-bit weights are read.
        Precision("int4", None, vision_bits=8, decoder_bits=4, head_bits=4, scale_every=128),
    )
}
"""All precisions by name, widest first; the quantized ones as the recipes int8-qdq and int4-awq make them."""


def precisions_of(device: Device) -> tuple[Precision, ...]:
    """The precisions that make sense on a device: float16 only where it computes in it, just float32 where measured."""
    if device.is_measured:
        return (PRECISIONS["fp32"],)
    return tuple(p for p in PRECISIONS.values() if p.wide != "fp16" or device.fp16 is not None)


def _weight_bytes(weights: int, bits: int | None, wide: int) -> int:
    return weights * wide if bits is None else weights * bits // 8
