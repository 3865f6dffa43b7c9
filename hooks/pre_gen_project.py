"""Before a project is written: notes what is in its folder, and makes a git repository of it."""

import contextlib
import json
import os
import subprocess
import sys
from functools import partial
from pathlib import Path

# What makes git take another repository than that of the current folder.
ELSEWHERE = {"GIT_DIR", "GIT_WORK_TREE", "GIT_COMMON_DIR", "GIT_INDEX_FILE", "GIT_OBJECT_DIRECTORY"}


def note_what_is_there() -> None:
    """Tells the hook that runs afterwards which files are not the project's."""
    there = [name for name in ("requirements.txt", "pyproject.toml") if os.path.lexists(name)]
    there += ["tasks"] * os.path.lexists("tasks")
    there += [path.as_posix() for path in Path("tasks").rglob("*")]
    try:
        Path("tasks").mkdir(exist_ok=True)
    except OSError:
        sys.exit("tasks: is a file, where a project needs a folder for a moment; move it away")
    Path("tasks/.before").write_text(json.dumps(there), "utf-8")
    # The template's file of this name replaces it, unless --skip-if-file-exists was given.
    Path("tasks/.overwrite").write_text("no\n", "utf-8")


def make_repository() -> str:
    """Makes a repository, unless one around could then not add the folder; returns why not."""
    world = {**os.environ, "LC_ALL": "C"}
    alone = {name: value for name, value in world.items() if name not in ELSEWHERE}
    git = partial(subprocess.run, capture_output=True, encoding="utf-8", errors="replace")
    # A GIT_DIR alone comes from git's own hooks; with a work tree it is a way to keep a home.
    for env in [alone, world] if "GIT_WORK_TREE" in world else [alone]:
        found = git(["git", "rev-parse", "--is-inside-work-tree", "--show-toplevel"], env=env)
        inside, _, top = found.stdout.strip().partition("\n")
        if inside == "true" and git(["git", "check-ignore", "-q", "."], env=env).returncode:
            return f"git: no new repository, the folder is in that of {top}"
        if env is alone and found.returncode and not inside and "(or any" not in found.stderr:
            fault = found.stderr.partition("\n")[0]
            return f"git: no new repository, git refuses the one around: {fault}"
    subprocess.run(["git", "-c", "init.defaultBranch=main", "init", "--quiet"], env=alone)
    return ""


if __name__ == "__main__":
    if any(Path().iterdir()):
        note_what_is_there()
    with contextlib.suppress(OSError):  # no git: the project works without
        if reason := make_repository():
            with contextlib.suppress(UnicodeError):  # a narrow terminal
                print(reason)
