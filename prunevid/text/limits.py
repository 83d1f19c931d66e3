"""What a chat template and a tokenizer may take. Nothing is imported: the worker and whoever asks it both read this."""

from __future__ import annotations

from dataclasses import dataclass

_MIB = 1 << 20


@dataclass(frozen=True)
class RequestLimits:
    """Bounds of one request to the worker.

    characters: of a text that is written; reply: bytes of an answer; own_seconds and own_memory: processor time, and
    bytes beyond what was held before. Reading a tokenizer may take more, by the size of its file: one of 150,000 tokens
    has 7 to 14 MB, of which 10 times as much is held, and takes 0.3 s on an EPYC.
    """

    characters: int = 1_000_000
    reply: int = 16 * _MIB
    own_seconds: float = 2.0
    own_memory: int = 256 * _MIB

    def seconds(self, file_size: int = 0) -> float:
        """Processor time of a request that reads a file of so many bytes."""
        return self.own_seconds + file_size / _MIB

    def memory(self, file_size: int = 0) -> int:
        """Bytes that such a request may take beyond what is held already."""
        return self.own_memory + 16 * file_size

    @property
    def memory_text(self) -> str:
        """The bound on memory, for a sentence."""
        return f"{self.own_memory // _MIB} MiB of memory"


LIMITS = RequestLimits()
