"""Installs by pip, for make: PyTorch's small CPU build where there is no NVIDIA driver.

    python tools/install.py -r requirements.txt    # the words are those of `pip install`

An index with `# auto` behind it was chosen by itself, and is chosen again for this machine; one
that its owner changed stays. TORCH_CPU_INDEX names another index of CPU builds, such as a mirror.
"""

import os
import re
import subprocess
import sys
from contextlib import suppress
from pathlib import Path
from threading import Thread
from urllib.request import urlopen

AUTO = re.compile(r"^--extra-index-url (\S+/)(\w+) +# auto: \2 *$", re.MULTILINE)
PIP = [sys.executable, "-m", "pip"]
NO_PIP = "has no pip; delete it, on Debian and Ubuntu install python3-venv, and call make again"


def works(*command: str, seconds: float | None = None) -> bool:
    """Whether a program is there and ends with status 0, in time."""
    quiet = subprocess.DEVNULL
    with suppress(OSError, subprocess.TimeoutExpired):  # one stuck in a broken driver is left
        return subprocess.Popen(command, stdin=quiet, stdout=quiet, stderr=quiet).wait(seconds) == 0
    return False


def answers(index: str, seconds: float = 2.0) -> bool:
    """Whether a wheel index has PyTorch and says so in time: names, proxy and TLS included."""
    found = list[int]()

    def ask() -> None:
        with suppress(Exception), urlopen(f"{index}/torch/", timeout=seconds) as page:
            found.append(page.status)

    thread = Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)  # urlopen's own limit is for each wait, and none for the name
    return bool(found)


def choose(named: re.Match[str]) -> str:
    """The line that takes the place of an index that was chosen by itself."""
    if named[2] != "cpu" and works("nvidia-smi", seconds=5):
        return named[0]
    cpu = os.environ.get("TORCH_CPU_INDEX") or f"{named[1]}cpu"
    own = os.environ.get("PIP_INDEX_URL") or os.environ.get("PIP_EXTRA_INDEX_URL")
    if sys.platform == "linux" and not own and answers(cpu):  # elsewhere it is the usual build
        print(f"PyTorch: the CPU build of {cpu}", flush=True)
        return f"--extra-index-url {cpu}"
    print(f"PyTorch: the build of {'your' if own else 'the usual'} index", flush=True)
    return ""


def main() -> int:
    if not works(*PIP, "--version"):  # an environment that uv made, or half of one
        print(f"{sys.prefix}: adding pip; what is installed stays", flush=True)
        if not works(sys.executable, "-m", "ensurepip") or not works(*PIP, "--version"):
            sys.exit(f"{sys.prefix}: {NO_PIP}")
    words, copy = sys.argv[1:], Path(f".requirements-{os.getpid()}.txt")
    with suppress(KeyboardInterrupt):  # pip says so
        try:
            if words[0] == "-r" and AUTO.search(text := Path(words[1]).read_text("utf-8")):
                # pip must not see an index that does not answer: it would try for minutes.
                copy = Path(words[1]).with_name(copy.name)
                copy.write_text(AUTO.sub(choose, text), "utf-8")
                words[1] = str(copy)
            return subprocess.run([*PIP, "install", *words]).returncode
        finally:
            copy.unlink(missing_ok=True)
    return 130


if __name__ == "__main__":
    sys.exit(main())
