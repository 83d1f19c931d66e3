"""The sections of a manifest that stand for themselves: each a dataclass that refuses what cannot be."""
