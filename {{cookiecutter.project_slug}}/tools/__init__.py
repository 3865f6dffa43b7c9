"""Helper programs: `python -m tools.replay --help` and the like."""
