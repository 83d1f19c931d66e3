"""How much goes through a graph at once: what the runtime runs, and what engines' profiles are made for."""

FRAMES_AT_ONCE = 4
"""Frames that the vision tower encodes at once: enough rows for full speed, few enough that the activations of a long
video never exist together."""

ROWS_AT_ONCE = 512
"""Rows that a decoder segment takes at once. ONNX Runtime's attention computes every score of its rows against all rows
so far and masks the later ones: in blocks, what lies behind a block is never computed, nor held in memory."""
