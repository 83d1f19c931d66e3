"""Reading a checkpoint: its tensors one at a time, its JSON files within bounds, each held against what it may say."""
