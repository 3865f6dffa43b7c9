"""Checks every answer as it is given and quotes it for the files that show it."""

import json
import keyword
import re
import subprocess
import sys
from itertools import count
from pathlib import Path

import click
from jinja2 import Environment
from jinja2.ext import Extension
from slugify import slugify

try:
    from rich.prompt import Prompt
except ImportError as error:  # an old cookiecutter, which shows this text in its own line
    raise ImportError("needs cookiecutter 2.7 or newer: pip install -U cookiecutter") from error

TAKEN = re.sub("#.*", "", Path(__file__).with_name("pt_template_taken.txt").read_text("utf-8"))
RESERVED = {*TAKEN.split(), *keyword.kwlist, *keyword.softkwlist, *sys.stdlib_module_names}
# What breaks a line, acts on a terminal, shows a line as something else, or is no character.
UNSAFE = "[\x00-\x1f\x7f-\x9f\u2028-\u202e\u2066-\u2069\ud800-\udfff\ufffe\uffff]"
SLUG, EMAIL = r"[a-z]([a-z0-9_-]{0,98}[a-z0-9])?", r"[^@\s\"<>,;]+@[^@\s\"<>,;]+|"
# What is markup to CommonMark and GitHub: some characters anywhere, others where they stand.
MARKUP = r"[\\`*\[<~$]|(?<![^\W_])_|&(?=#?\w+;)|(?<!\S)#|:(?=//)|(?<=www)\.|^[-+=>:|]"
# One literal that Python, TOML, YAML and JSON all read back as the text that it is.
quote = json.JSONEncoder(ensure_ascii=False).encode


class Refusal(click.ClickException, SystemExit):  # cruft knows none of click's exceptions
    exit_code = 2
    code = property(lambda self: f"Error: {self.message}")


def fault_of(question: str, answer: object, choices: object = None, out: str | None = None) -> str:
    """Returns what is wrong with an answer, "" if nothing is; `out` is the output folder."""
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
    if question == "project_slug" and not re.fullmatch(SLUG, answer):
        return "must be 1 to 100 of a-z, 0-9, _ and -, from a letter to a letter or digit"
    if question == "project_slug" and answer.replace("-", "_") in RESERVED:
        return "is taken by Python, a dependency, a part of the project or a Windows device"
    exists = question == "project_slug" and out is not None and Path(out, answer).exists()
    return "exists already" if exists else ""


def slug_of(name: str) -> str:
    """Returns a slug that fault_of accepts, whatever the name is, if there is no such folder."""
    slug = name if re.fullmatch(SLUG, name) else slugify(name, separator="_") or "my_project"
    slug = (slug if slug[0].isalpha() else f"project_{slug}")[:60].rstrip("_-")
    return f"{slug}_project" if slug.replace("-", "_") in RESERVED else slug


def from_git(question: str, key: str) -> str:
    """Returns a good answer from the git configuration, "" where there is none."""
    try:
        git = subprocess.run(["git", "config", "--get", key], capture_output=True, timeout=5)
    except (OSError, subprocess.SubprocessError):
        return ""
    value = git.stdout.decode(errors="surrogateescape").strip()  # a surrogate is a fault
    return "" if fault_of(question, value) else value


def markdown(text: str) -> str:
    """Returns Markdown that shows a line of text as it is, in a heading and in a paragraph."""
    return re.sub(r"^(\d+)([.)])", r"\1\\\2", re.sub(MARKUP, r"\\\g<0>", text.strip()))


class Answers(Extension):
    """The filters of the files and of cookiecutter.json, which checks each answer by `check`."""

    def __init__(self, environment: Environment) -> None:
        super().__init__(environment)
        environment.filters |= {"slug": slug_of, "from_git": from_git, "q": quote, "md": markdown}
        environment.filters |= {"check": self.check, "check_all": self.check_all}
        sys.modules.pop(__name__, None)  # cruft update renders two versions, each with its own
        sys.path[:] = [str(Path(folder).absolute()) for folder in sys.path]  # a hook's cwd differs
        files = (Path(folder, "cookiecutter.json") for folder in reversed(sys.path))
        self.own = json.loads(next(file for file in files if file.is_file()).read_text("utf-8"))
        self.asking = False
        options = getattr(click.get_current_context(silent=True), "params", {})
        self.alone = options.get("no_input", True)  # also where Python calls cookiecutter
        given = options.get("extra_context")  # cookiecutter itself leaves out what it does not know
        for name in given if isinstance(given, dict) else ():
            if name not in self.own:
                asked = ", ".join(question for question in self.own if question[0] != "_")
                raise Refusal(f"{name[:80]!a}: no question of this template; it asks {asked}")
        self.out = None if options.get("overwrite_if_exists") else options.get("output_dir")

    def check(self, answers: dict[str, object], question: str) -> str:
        """Returns ""; asks again for a bad answer, or refuses it in one line if nobody is there."""
        own = self.own[question]
        default = own[0] if isinstance(own, list) else "" if "{{" in own else own
        while fault := fault_of(question, answers.get(question), own, self.out):
            given = str(answers.get(question))
            if question == "project_slug":
                slug = slug_of(given.strip() or str(answers.get("project_name")))
                slugs = (f"{slug}_{n}" if n > 1 else slug for n in count(1))
                default = next(slug for slug in slugs if not fault_of(question, slug, out=self.out))
                fault += f"; try {default}"
            # !a: what is wrong with an answer must not act on the terminal that shows it.
            error = Refusal(f"{question} {given[:80]!a}: {fault}")
            if self.alone or not sys.stdin.isatty():
                raise error
            click.echo(error.message, err=True)
            answers[question] = Prompt.ask(f"  {question}", default=default)
        return ""

    def check_all(self, answers: dict[str, object]) -> str:
        """Checks what no question did: a replay file, `__check_*` on the command line."""
        return "".join(self.check(answers, question) for question in self.own if question[0] != "_")

    def preprocess(self, source: str, name: str | None, filename: str | None = None) -> str:
        """Makes a literal of an answer: cookiecutter renders those that were not typed."""
        if source == "{{cookiecutter.project_slug}}":  # the folder, before anything is written
            return f"{{{{ cookiecutter | check_all }}}}{source}"
        own = source in self.own.values()
        self.asking |= own  # the environment that renders cookiecutter.json renders no files
        return f"{{{{ {source!a} }}}}" if self.asking and not own else source
