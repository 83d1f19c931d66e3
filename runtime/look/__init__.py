"""How reports look: colours and letters, figures and units, charts, pages. Knows nothing of what is reported."""
