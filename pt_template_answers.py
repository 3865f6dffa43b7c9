"""Checks every answer as it is given and quotes it for the files that show it.

cookiecutter loads it as a Jinja extension; cookiecutter.json calls `check` after each question.
"""

import json
import keyword
import re
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
from jinja2 import Environment
from jinja2.ext import Extension
from rich.prompt import Prompt
from slugify import slugify

TAKEN = re.sub("#.*", "", Path(__file__).with_name("pt_template_taken.txt").read_text("utf-8"))
RESERVED = {*TAKEN.split(), *keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names}
# What breaks a line, acts on a terminal, shows a line as something else, or is no character.
UNSAFE = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
SLUG, EMAIL = r"[a-z]([a-z0-9_-]{0,98}[a-z0-9])?", r"[^@\s\"<>,;]+@[^@\s\"<>,;]+|"


class Refusal(click.ClickException, SystemExit):  # cruft knows none of click's exceptions
    exit_code = 2
    code = property(lambda self: f"Error: {self.message}")


def fault_of(question: str, answer: object, choices: object = None) -> str:
    """Returns what is wrong with an answer, "" if nothing is."""
    if isinstance(choices, list):
        return "" if answer in choices else f"must be one of {', '.join(choices)}"
    if not isinstance(answer, str):  # a configuration file may give anything
        return "must be text"
    if unsafe := re.search(UNSAFE, answer):
        return f"must be one line of plain text, without U+{ord(unsafe[0]):04X}"
    if question == "project_name" and not answer.strip():
        return "must not be empty"
    if question == "author_email" and not re.fullmatch(EMAIL, answer):
        return "must be empty or an address such as name@example.org"
    fault = ""
    if question == "project_slug" and not re.fullmatch(SLUG, answer):
        fault = "must be 1 to 100 of a-z, 0-9, _ and -, from a letter to a letter or digit"
    elif question == "project_slug" and answer.replace("-", "_") in RESERVED:
        fault = "is taken by Python, a dependency, a part of the project or a Windows device"
    return fault and f"{fault}; try {slug_of(answer)}"


def slug_of(name: str) -> str:
    """Returns a slug that fault_of_slug accepts, whatever the name is."""
    slug = slugify(name, separator="_", max_length=60).strip("_") or "my_project"
    slug = slug if slug[0].isalpha() else f"project_{slug}"
    return f"{slug}_project" if slug in RESERVED else slug


def check(answers: dict[str, Any], question: str, choices: object = None) -> str:
    """Returns ""; asks again for a bad answer, or refuses it in one line if nobody is there."""
    while fault := fault_of(question, answers.get(question), choices):
        # !a: what is wrong with an answer must not act on the terminal that shows it.
        error = Refusal(f"{question} {str(answers.get(question))[:80]!a}: {fault}")
        context = click.get_current_context(silent=True)  # none: called from Python, not a shell
        if context is None or context.params.get("no_input", True) or not sys.stdin.isatty():
            raise error
        click.echo(error.message, err=True)
        answers[question] = Prompt.ask(f"  {question}", default="")
    return ""


def from_git(question: str, key: str) -> str:
    """Returns a good answer from the git configuration, "" where there is none."""
    try:
        git = subprocess.run(["git", "config", "--get", key], capture_output=True, timeout=5)
        value = git.stdout.decode().strip()
    except (OSError, subprocess.SubprocessError, UnicodeDecodeError):
        return ""
    return "" if fault_of(question, value) else value


# One literal that Python, TOML, YAML and JSON all read back as the text that it is.
quote = partial(json.dumps, ensure_ascii=False)


class Answers(Extension):
    """The filters of cookiecutter.json and of the files. Jinja in an answer stays plain text."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters |= {"check": check, "slug": slug_of, "from_git": from_git, "q": quote}
        environment.filters["check_all"] = self.check_all
        files = (Path(folder, "cookiecutter.json") for folder in reversed(sys.path))
        self.own = json.loads(next(file for file in files if file.is_file()).read_text("utf-8"))
        self.asking = False

    def check_all(self, answers: dict[str, Any]) -> str:
        """Checks what no question did: a replay file, `__check_*` on the command line."""
        questions = [question for question in self.own if not question.startswith("_")]
        return "".join(check(answers, question, self.own[question]) for question in questions)

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Makes a literal of an answer: cookiecutter renders those that were not typed."""
        if source == "{{cookiecutter.project_slug}}":  # the folder, before anything is written
            return f"{{{{ cookiecutter | check_all }}}}{source}"
        own = source in self.own.values()
        self.asking |= own  # the environment that renders cookiecutter.json renders no files
        return f"{{{{ {source!a} }}}}" if self.asking and not own else source
