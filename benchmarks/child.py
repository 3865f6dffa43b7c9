"""A single measurement, in a process of its own, whose working folder is the rendered project.

python -m benchmarks.child SPEC.json: calls the function that the file names with the file's
content, and writes what it returns to the file under `result`.
"""

import importlib
import json
import os
import sys
from pathlib import Path

OPTIONAL = ("lightning", "timm")  # whom to measure against, if they are there


def main() -> None:
    spec = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    module, _, function = spec["call"].partition(":")
    try:
        result = getattr(importlib.import_module(module), function)(spec)
    except ModuleNotFoundError as error:
        if error.name not in OPTIONAL:
            raise
        result = {"error": f"not installed: {error.name}"}
    Path(spec["result"]).write_text(json.dumps(result), encoding="utf-8")
    sys.stdout.flush()
    # At once: loaders stopped in the middle of an epoch may wait for ever for their workers. The
    # benchmark ends those.
    os._exit(0)


if __name__ == "__main__":
    main()
