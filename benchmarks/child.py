"""A single measurement, in a process of its own, whose working folder is the rendered project.

python -m benchmarks.child SPEC.json: calls the function that the file names with the file's
content, and writes what it returns to the file under `result`.
"""

import importlib
import json
import os
import sys
from pathlib import Path

if __name__ == "__main__":
    spec = json.loads(Path(sys.argv[1]).read_text())
    result = getattr(importlib.import_module(spec["module"]), spec["function"])(spec)
    Path(spec["result"]).write_text(json.dumps(result))
    # At once: the loaders of others, stopped in the middle of an epoch, may wait for ever for their
    # workers. The runner ends those.
    os._exit(0)
