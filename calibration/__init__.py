"""Quantization and the search for a pruning budget: reserved, nothing is here yet."""
