"""Measurements behind the README's figures: speed side by side, and accuracy on the demo world."""
