"""Programs beside training, such as `python -m tools.replay`; each file starts with its purpose."""
