"""Searching a bundle's pruning settings, and drawing what was found."""
