"""Programs for data sets: `python -m tools.check_data`, `python -m tools.prepare_data`."""
