"""Real checkpoints: written by real processes that call `dcp.save`, once per test session.

`cases_plain`, `cases_sharded` and `cases_models` each hold functions that save one checkpoint;
`writer` runs them in as many processes as each asks for; `fixtures` is what tests use.
"""
