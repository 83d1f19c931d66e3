"""What an observed layer would say of given rows, in plain NumPy."""

from __future__ import annotations

import numpy as np

from prunevid.calibration.quantize.activations import Activations


def activations_of(rows: np.ndarray) -> Activations:
    """Of rows float32 [n, K], as observation tells of them; all rows are its sample."""
    lengths = np.linalg.norm(rows, axis=1, keepdims=True)
    whole = np.pad(rows / np.where(lengths > 0, lengths, 1), ((0, 0), (0, -rows.shape[1] % 128)))
    blocks = np.split(whole, whole.shape[1] // 128, axis=1)
    moments = np.stack([block.T @ block / np.float32(len(rows)) for block in blocks])
    return Activations(np.abs(rows).mean(axis=0), rows, np.abs(rows).max(axis=0), moments)
