"""What is measured where nothing else is asked for; apart from the rest so that help need not load NumPy."""

QUESTION = "How many objects move?"
RUNS = 5
WARMUP = 1
MAX_NEW_TOKENS = 16
