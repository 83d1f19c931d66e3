"""Questions become ids. Chat templates and tokenizers come from strangers: they run within bounds, apart."""
