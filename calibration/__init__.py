"""Quantization of a bundle, judged on videos: what `prunevid calibrate` does."""
