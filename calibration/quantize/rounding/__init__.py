"""How one weight matrix becomes codes and scales: schemes, and rounding that makes up for its own errors."""
