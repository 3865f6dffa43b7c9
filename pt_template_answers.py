"""Checks every answer as it is given and quotes it for the files that show it.

cookiecutter loads this module as a Jinja extension; the private variables `__check_*` of
cookiecutter.json call `check` right after each question, before anything is written.
"""

import json
import keyword
import re
import subprocess
import sys
import unicodedata
from collections.abc import Callable, MutableMapping

import click
from jinja2 import Environment
from jinja2.ext import Extension
from rich.prompt import Prompt
from slugify import slugify

# A folder of such a name hides a module that the project imports, or clashes with a part of the
# project, with a distribution that it needs, or with a device of Windows.
TAKEN = """
torch torchvision tqdm prefetch_generator tensorboardx numpy pil pillow pytest ruff mypy pip uv
setuptools wheel cookiecutter train test tests predict prepare_data check_data data options
classifier translator networks layers losses engine notebooks tasks runs report slurm docs
conftest con prn aux nul com0 com1 com2 com3 com4 com5 com6 com7 com8 com9 lpt0 lpt1 lpt2 lpt3
lpt4 lpt5 lpt6 lpt7 lpt8 lpt9
"""
PYTHON = {*keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names}
RESERVED = {*TAKEN.split(), *(name.lower() for name in PYTHON)}
# Embeddings, overrides and isolates make a line show something else than it says.
BIDI_CONTROLS = {*range(0x202A, 0x202F), *range(0x2066, 0x206A)}


def is_unsafe(char: str) -> bool:
    """Whether a character breaks a line, acts on a terminal, or has no place in UTF-8 or YAML."""
    code = ord(char)
    breaks = unicodedata.category(char) in {"Cc", "Cs", "Zl", "Zp"}
    return breaks or code in BIDI_CONTROLS or code & 0xFFFE == 0xFFFE


def fault_of_text(text: str) -> str:
    """Returns what is wrong with one line of free text, "" if nothing is."""
    unsafe = next((char for char in text if is_unsafe(char)), "")
    return f"must be one line of plain text, without U+{ord(unsafe):04X}" if unsafe else ""


def fault_of_name(name: str) -> str:  # like fault_of_text, and not blank
    return fault_of_text(name) if name.strip() else "must not be empty"


def fault_of_slug(slug: str) -> str:
    """As fault_of_text, for the name of the folder and of the distribution."""
    if not re.fullmatch(r"[a-z]([a-z0-9_-]{0,98}[a-z0-9])?", slug):
        reason = "must be 1 to 100 of a-z, 0-9, _ and -, from a letter to a letter or digit"
    elif slug.replace("-", "_") in RESERVED:
        reason = "is taken by Python, a dependency, a part of the project or a Windows device"
    else:
        return ""
    return f"{reason}; try {slug_of(slug)}"


def fault_of_email(email: str) -> str:
    """As fault_of_text, for an address or nothing."""
    if email and not re.fullmatch(r"[^@\s\"<>,;]+@[^@\s\"<>,;]+", email):
        return "must be empty or an address such as name@example.org"
    return fault_of_text(email)


FAULTS: dict[str, Callable[[str], str]] = {
    "project_name": fault_of_name,
    "project_slug": fault_of_slug,
    "description": fault_of_text,
    "author_name": fault_of_text,
    "author_email": fault_of_email,
}


def slug_of(name: str) -> str:
    """Returns a slug that fault_of_slug accepts, whatever the name is."""
    slug = slugify(name, separator="_", max_length=60).strip("_") or "my_project"
    slug = slug if slug[0].isalpha() else f"project_{slug}"
    return f"{slug}_project" if slug in RESERVED else slug


def check(answers: MutableMapping[str, str], question: str) -> str:
    """Returns "ok"; asks again for a bad answer, or raises a one-line error if nobody is there."""
    while fault := FAULTS[question](answers[question]):
        # !a: what is wrong with an answer must not act on the terminal that shows it.
        message = f"{question} {answers[question][:80]!a}: {fault}"
        context = click.get_current_context(silent=True)  # none: called from Python, not a shell
        if context is None or context.params.get("no_input", True) or not sys.stdin.isatty():
            raise click.ClickException(message)
        click.echo(message, err=True)
        answers[question] = Prompt.ask(f"  {question}", default="")
    return "ok"


def from_git(question: str, key: str) -> str:
    """Returns a good answer from the git configuration, "" where there is none."""
    try:
        git = subprocess.run(["git", "config", "--get", key], capture_output=True, timeout=5)
        value = git.stdout.decode().strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return "" if FAULTS[question](value) else value


def quote(text: str) -> str:
    """Returns the text as one literal that Python, TOML, YAML and JSON all read back as it is."""
    return json.dumps(text, ensure_ascii=False)


class Answers(Extension):
    """The filters that cookiecutter.json and the files of the template use."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters |= {"check": check, "slug": slug_of, "from_git": from_git, "q": quote}
