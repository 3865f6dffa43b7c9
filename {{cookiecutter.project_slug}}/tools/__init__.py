"""Programs beside training: `python -m tools.compare`; each file starts with its purpose."""
