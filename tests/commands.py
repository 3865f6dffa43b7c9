"""The commands of README and docs: found in the text, and run with options that make them short.

What cannot be run here is in ELSEWHERE, with the reason or the test that runs it, or has a method
of its own that checks it as far as that goes. A command that is neither is an error.
"""

import importlib
import io
import os
import re
import shlex
import shutil
import subprocess
import sys
import textwrap
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from glob import glob
from pathlib import Path

import forked
from conftest import ROOT
from markdown_it import MarkdownIt
from packaging.requirements import Requirement

MARKDOWN = MarkdownIt("commonmark").enable("table")
PROGRAMS = ("train", "test", "predict", "export")
SHORT: dict[str, list[str]] = {
    "image-classification": [],
    "image-to-image": ["--img-size=16", "--width=4", "--blocks=0", "--d-width=4", "--d-layers=1"],
}
# By the first words of a command: why it is not run here.
ELSEWHERE = {
    "python tests/machinery.py": "test_engine.py, from the template",
    "python -m venv": "test_project.py: the steps without make",
    "python -m pytest": "test_project.py: the steps without make",
    "cp -R tasks": "test_generation.py: without hooks",
    "rm -R tasks": "test_generation.py: without hooks",
    "sed -i.bak": "test_generation.py: without hooks",
    "rm requirements.txt.bak": "test_generation.py: without hooks",
    "cruft": "test_update.py: all three, with a clone on this machine",
    "ssh": "another machine",
    "scp": "another machine",
    "tmux": "a terminal",
    "jupyter": "a server, of a package that is not among the requirements",
    "tensorboard": "a server, of a package that is not among the requirements",
    "python -m tensorboard.main": "a server, of a package that is not among the requirements",
}


@contextmanager
def folder(path: Path) -> Iterator[None]:
    """A folder is the current one for a while."""
    before = Path.cwd()
    os.chdir(path)
    yield
    os.chdir(before)


def blocks(path: Path, language: str) -> list[str]:
    """The code blocks of a Markdown file in a language."""
    tokens = MARKDOWN.parse(path.read_text(encoding="utf-8"))
    return [token.content for token in tokens if token.type == "fence" and token.info == language]


def in_line(path: Path) -> list[str]:
    """The commands in the sentences and tables of a Markdown file."""
    tokens = MARKDOWN.parse(path.read_text(encoding="utf-8"))
    parts = [part for token in tokens for part in token.children or []]
    codes = [" ".join(part.content.split()) for part in parts if part.type == "code_inline"]
    return [code for code in codes if re.match(r"(python|make) \S", code)]


def simple_commands(block: str) -> Iterator[tuple[list[str], list[str]]]:
    """The commands of a block, each with the one whose output it reads (if there is a pipe)."""
    for line in block.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars="|&;")
        lexer.whitespace_split, words = True, list[str]()
        source = list[str]()
        for word in [*lexer, ";"]:
            if word not in ("|", "&&", ";"):
                words.append(word)
                continue
            if words and word != "|":
                yield words, source
            source, words = words if word == "|" else [], []


class Follower:
    """Follows documents in a folder, in which each command leaves what the next ones need.

    Args:
        folder: A project, or an empty folder for the commands that make one.
        task: That of the project.
        full: Also run the commands that start processes, each of which takes seconds.
        template: What the address of the template stands for.
    """

    def __init__(self, folder: Path, task: str, full: bool, template: Path) -> None:
        self.base = self.cwd = folder
        self.task, self.full, self.template = task, full, template
        self.done: set[str] = set()
        self.only_parse = False

    def follow(self, block: str) -> None:
        """Runs a block of commands; each must end well."""
        self.cwd = self.base
        for words, source in simple_commands(block):
            line = shlex.join([*source, *"|" * bool(source), *words])
            if line not in self.done or words[0] == "cd":
                self.one(line, words, source)
            self.done |= {line} if self.cwd == self.base else set()

    def look_at(self, line: str) -> None:
        """Parses a command of a sentence, which is part of what a reader does later, or never."""
        self.only_parse = True
        self.follow(line)
        self.only_parse = False

    def one(self, line: str, words: list[str], source: list[str]) -> None:
        words = [re.sub(r"^(.*/)?python3?$", "python", words[0]), *words[1:]]
        known = shlex.join(words)
        if any(known.startswith(begin) for begin in ELSEWHERE):
            return
        name = "-".join(words[:3]) if words[:2] == ["python", "-m"] else words[0]
        method = getattr(self, "do_" + re.sub(r"\W", "_", name.partition("-tools.")[0]), None)
        assert method, f"{line}: neither run nor listed in tests/commands.py"
        with folder(self.cwd):
            method(words, source)

    def do_cd(self, words: list[str], source: list[str]) -> None:
        self.cwd = self.cwd / words[1]
        assert self.cwd.is_dir(), words

    def do_docker(self, words: list[str], source: list[str]) -> None:
        """Needs an engine, or root: its file is there, and the program in it takes its options."""
        if words[1] == "build":
            assert Path(words[words.index("-f") + 1]).is_file()
            return
        program = words[words.index("python") + 1 :]
        self.check(program[0].removesuffix(".py"), program[1:])

    def do_mkdir(self, words: list[str], source: list[str]) -> None:
        subprocess.run(words, check=True)

    def do_git(self, words: list[str], source: list[str]) -> None:
        subprocess.run(words, check=True, capture_output=True)

    def do_make(self, words: list[str], source: list[str]) -> None:
        """What make prints instead of running it; the environment counts as installed."""
        if not Path("Makefile").exists():  # a command of the template, for .ci/run
            subprocess.run(["make", "-n", *words[1:]], check=True, capture_output=True, cwd=ROOT)
            return
        Path(".venv/bin").mkdir(parents=True, exist_ok=True)
        for file in ("bin/python", ".installed"):
            Path(".venv", file).touch()
        said = re.compile("ARGS|MFLAGS|MAKE.*")  # to the make that runs the tests
        rest = {name: value for name, value in os.environ.items() if not said.fullmatch(name)}
        make = ["make", "-n", *words[1:]]
        dry = subprocess.run(make, capture_output=True, text=True, check=True, env=rest)
        for each, _ in simple_commands(dry.stdout):
            if each[0].endswith("python"):  # the rest is the business of the Makefile
                self.one(dry.stdout, each, [])

    def do_cookiecutter(self, words: list[str], source: list[str]) -> None:
        """Makes a project, with the answers given and the defaults, without questions."""
        assert words[1] == "gh:org/pt-template"
        shutil.rmtree("my_vision_project", ignore_errors=True)
        given = [word for word in words[2:] if word != "--no-input"]
        command = [sys.executable, "-m", "cookiecutter", "--no-input", str(self.template)]
        subprocess.run([*command, *given, "accelerator=cpu"], check=True, capture_output=True)

    def do_python__m_cookiecutter(self, words: list[str], source: list[str]) -> None:
        self.do_cookiecutter(words[2:], source)

    def do_python__m_pip(self, words: list[str], source: list[str]) -> None:
        """Needs a network: the requirements are well formed, and the files are there."""
        assert words[3] == "install"
        for word in words[4:]:
            if word.endswith(".txt"):
                assert Path(word).is_file(), word
            elif not word.startswith("-"):
                Requirement(word)

    def do_sbatch(self, words: list[str], source: list[str]) -> None:
        """Needs a cluster: the job names these options itself, and train.py those after it."""
        (i,) = (i for i, word in enumerate(words) if word.endswith(".sbatch"))
        job = Path(words[i]).read_text(encoding="utf-8")
        for option in words[1:i]:
            assert f"#SBATCH {option.partition('=')[0]}=" in job, option
        self.check("train", words[i + 1 :])

    def do_torchrun(self, words: list[str], source: list[str]) -> None:
        """Two processes instead of several GPUs, in full; two machines are for test_hosts.py."""
        from torch.distributed.run import parse_args

        launch = parse_args(words[1:])
        assert launch.training_script == "train.py"
        if not self.full or launch.nnodes != "1":
            self.check("train", launch.training_script_args)
            return
        options = [*launch.training_script_args, *self.short(launch.training_script_args)]
        command = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        command += ["--local-addr=localhost"]  # the own name of a machine is not always known
        subprocess.run([*command, "--nproc-per-node=2", "--", "train.py", *options], check=True)

    def do_python(self, words: list[str], source: list[str]) -> None:
        if words[1] == "-c":
            self.snippet(words[2])
        elif words[1] == "tools/install.py":  # by pip, from an index that it looks for
            self.do_python__m_pip(["python", "-m", "pip", "install", *words[2:]], source)
        else:
            self.program(words[1].removesuffix(".py"), words[2:], source)

    def do_python__m(self, words: list[str], source: list[str]) -> None:
        self.program(words[2], words[3:], source)

    def snippet(self, code: str) -> None:
        """Runs lines of Python in the project."""
        with folder(self.cwd):
            name = f"snippet_{len(list(Path().glob('snippet_*.py')))}"
            body = textwrap.indent(code, "    ")
            Path(f"{name}.py").write_text(f"def main():\n{body}\n    return 0\n")
            self.end(name, [], lambda: None)

    def program(self, name: str, words: list[str], source: list[str]) -> None:
        """Runs a program of the project."""
        assert name in PROGRAMS or name.startswith("tools."), name
        slow = name in ("tools.replay", "tools.folds") and not self.full  # they start train.py
        if self.only_parse or slow or name == "tools.prepare_data":  # this one downloads
            self.check(name, words)
            return
        words = [word for part in words for word in self.expand(part)]
        more = self.short(words) if name in ("train", "tools.folds") else []
        given = subprocess.run(source, capture_output=True, check=True).stdout if source else b""
        Path("input.txt").write_bytes(given)
        self.end(name, [*words, *more], read_input)

    def expand(self, word: str) -> list[str]:
        """What a shell makes of a word; what is quoted matches nothing and stays as it is."""
        return sorted(glob(word)) or [word]

    def short(self, words: list[str]) -> list[str]:
        """Options for train.py that make a run take a moment."""
        options = [*SHORT[self.task], "--device=cpu", "--workers=0", "--val-every=1"]
        if self.task == "image-classification":
            large = {"resnet18", "timm:convnext_atto", "@presets/long.txt"}
            side = 32 if large & {*words} else 8
            options += [f"--img-size={side}"]
            options += ["--no-pretrained", "--no-hold-norms"]  # the weights are a download
            options += ["--val-img-size=32"] if "@presets/long.txt" in words else []
        elif "runs/first" not in words:
            options += ["--crops=2"]
        if "--data" in words:
            options += ["--batch-size=8", "--head-epochs=0"]
        epochs = 2 if "runs/first" in words else 1  # after --resume too: it is replayed
        return [*options, f"--epochs={epochs}"]

    def end(self, name: str, words: list[str], prepare: Callable[[], object]) -> None:
        """Runs a program in a child, which must end well."""
        here = str(self.cwd)

        def begin() -> None:
            sys.path.insert(0, here)
            prepare()

        status = forked.finish(forked.start(words, begin, name))
        text = Path("output.txt").read_text(encoding="utf-8")
        assert status == 0, f"{name} {words}: {status}\n{text[-3000:]}"

    def check(self, name: str, words: list[str]) -> None:
        """Has a program read its options, and nothing more."""
        self.end(name, words, parse_only)


def read_input() -> None:
    """Lets a program read from standard input what a pipe has brought."""
    sys.stdin = io.TextIOWrapper(io.BytesIO(Path("input.txt").read_bytes()))


def parse_only() -> None:
    """Lets a program of the project in the current folder end after it has read its options."""
    arguments = importlib.import_module("engine.arguments")
    parse_args = arguments.Parser.parse_args

    def parse(self: object, *args: object) -> None:
        parse_args(self, *args)
        raise SystemExit(0)

    arguments.Parser.parse_args = parse
