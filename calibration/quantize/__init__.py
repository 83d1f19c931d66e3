"""Quantizing a bundle: recipes, how weights and activations are rounded, and which layers stay as they are."""
