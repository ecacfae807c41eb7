"""How fast, and how small: `python -m tests.benchmark` (this package's root imports nothing)."""
