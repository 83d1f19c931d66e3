"""Chat templates and tokenizers, which come from strangers: run within bounds, in a process of their own."""
