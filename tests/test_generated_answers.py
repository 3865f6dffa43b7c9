"""Generated answers to all questions at once: each render is refused whole, or right everywhere.

What may be refused is said here a second time and in other words than in pt_template_answers.py,
so that neither a broken project nor a needless refusal passes.
"""

import json
import os
import re
import shutil
import tempfile
import unicodedata
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import cookiecutter.prompt
import pt_template_answers
import pytest
import yaml
from conftest import TIMES, Project
from cookiecutter.main import cookiecutter as generate
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from test_answers import (
    BAD_EMAILS,
    BAD_SLUGS,
    GOOD_EMAILS,
    GOOD_SLUGS,
    HOSTILE,
    MARKDOWN,
    ORDINARY,
    blocks,
    one_line,
)
from test_render import parse, tomllib

DEFAULTS = json.loads((Path(__file__).parents[1] / "cookiecutter.json").read_text("utf-8"))
CHOICES = {name: DEFAULTS[name] for name in ("license", "accelerator")}
# The files that show answers; all others must be the same in every project of a build of PyTorch.
SHOWING = {"README.md", "LICENSE", "CITATION.cff", "pyproject.toml"}
CANARY = "pt_canary"

WORDS = r"""
{{ }} {% %} {# #} { } [ ] < > & * @ , = ~ $ ` # % | \ \n \u0041 ' " ''' %s {0} : - --- ... ../ ..\
!!python/object yes null 1.0 1e3 0x1f /etc/passwd C:\ CON é 研究 שלום 🚀
"""
# Pieces that mean something to one of the languages an answer passes through. Those that run leave
# a file or a variable named CANARY behind.
PIECES = [
    "{{ 7 * 7 }}",
    f"{{{{ cycler.__init__.__globals__.os.environ.update({CANARY}='1') }}}}",
    f"{{% set x = lipsum.__globals__['os'].system('touch {CANARY}') %}}",
    f'"+__import__("os").environ.__setitem__("{CANARY}","1")+"',
    f"""'''+str(open('{CANARY}', 'w'))+'''""",
    f"$(touch {CANARY})",
    f"; touch {CANARY} #",
    '"]\n[x]',
    "{% raw %}",
    "#! torch>=2.6 whl/cpu",
    "x" * 100,
    *WORDS.split(),
    *[" ", "  ", "\n", "\r", "\t", "\0", "\x1b[2J", "\x85", "\u2028", "\u202e", "\ufffe", "\ufeff"],
]


def is_plain(text: str) -> bool:
    """Whether a text is one line that shows what it is."""
    bidi = {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
    return not any(
        unicodedata.category(char) in ("Cc", "Cs", "Zl", "Zp")
        or unicodedata.bidirectional(char) in bidi
        or char in "\ufffe\uffff"
        for char in text
    )


def is_slug(text: str) -> bool:
    ends = text[:1].isalpha() and text[-1:].isalnum()
    plain = text.isascii() and text == text.lower() and len(text) <= 100
    return (
        ends
        and plain
        and text.replace("_", "").replace("-", "").isalnum()
        and text.replace("-", "_") not in pt_template_answers.RESERVED
    )


def is_email(text: str) -> bool:
    name, _, host = text.partition("@")
    whole = name and host and "@" not in host and not set(text) & set('"<>,;')
    return not text or bool(whole and is_plain(text) and text.split() == [text])


def expected_refusal(answers: dict[str, str]) -> str:
    """Returns the first question whose answer may not be used, "" if all may be."""
    good = {
        "project_name": lambda text: is_plain(text) and bool(text.strip()),
        "project_slug": is_slug,
        "description": is_plain,
        "author_name": is_plain,
        "author_email": is_email,
    }
    return next((name for name in good if not good[name](answers.get(name, DEFAULTS[name]))), "")


ordinary = st.one_of(
    st.sampled_from([*ORDINARY, *MARKDOWN, "", " "]),
    st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"]), max_size=60),
    st.lists(st.sampled_from([piece for piece in PIECES if is_plain(piece)])).map("".join),
)
hostile = st.one_of(
    st.sampled_from(HOSTILE),
    st.text(max_size=60),
    st.lists(st.sampled_from(PIECES)).map("".join),
)
QUESTIONS = {
    "project_name": ordinary.filter(str.strip),
    "project_slug": st.sampled_from(GOOD_SLUGS)
    | st.from_regex(r"[a-z][a-z0-9_-]{0,20}[a-z0-9]", fullmatch=True),
    "description": ordinary,
    "author_name": ordinary,
    "author_email": st.sampled_from(GOOD_EMAILS) | st.emails(),
}
BAD = {
    "project_slug": st.sampled_from(BAD_SLUGS) | hostile,
    "author_email": st.sampled_from(BAD_EMAILS) | st.tuples(hostile, ordinary).map("@".join),
}


@st.composite
def all_answers(draw: st.DrawFn) -> dict[str, str]:
    # One that is refused hides the others, so in most cases there is none.
    spoilt = draw(st.sampled_from([None, None, None, None, None, *QUESTIONS]))
    answers = {
        name: draw(BAD.get(name, hostile) if name == spoilt else good)
        for name, good in QUESTIONS.items()
    }
    answers |= {name: draw(st.sampled_from(choices)) for name, choices in CHOICES.items()}
    if spoilt is None and draw(st.booleans()):  # as the question would suggest it
        answers["project_slug"] = pt_template_answers.slug_of(answers["project_name"])
    return answers


def listing(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


class World:
    """A folder to generate into, inside one that is watched, as the home folder is."""

    def __init__(self, folder: Path, home: Path, template: Path) -> None:
        self.outer, self.out = folder, folder / "a" / "b"
        self.temp, self.home, self.template = folder.parent / "temp", home, template
        self.temp.mkdir()
        self.out.mkdir(parents=True)
        (self.outer / "kept").write_text("kept")
        self.checked: set[tuple[str, bytes]] = set()  # files whose content has been parsed
        self.builds = {}  # the files by the build of PyTorch, which some of them name
        for build in CHOICES["accelerator"]:
            project = self.generate({"description": DEFAULTS["description"], "accelerator": build})
            files = {path.relative_to(project.path): path.read_bytes() for path in project.files()}
            self.builds[build] = files
            shutil.rmtree(project.path)
        self.before = self.listing()

    def listing(self) -> set[Path]:
        """Returns what exists around the output folder, in the home folder and beside them."""
        return listing(self.outer) | listing(self.home) | listing(Path.cwd())

    def generate(
        self, answers: dict[str, str], typed: bool = False, hooks: bool = False
    ) -> Project:
        """Generates a project; typed answers take the way of those given at the questions."""

        def typed_answer(name: str, default: Any, *_: Any) -> Any:
            return answers.get(name, default[0] if isinstance(default, list) else default)

        with pytest.MonkeyPatch.context() as patch:
            for function in ("read_user_variable", "read_user_choice"):
                patch.setattr(cookiecutter.prompt, function, typed_answer)
            patch.setattr(tempfile, "tempdir", str(self.temp))  # cookiecutter leaves hooks there
            path = generate(
                str(self.template),
                no_input=not typed,
                extra_context=None if typed else answers,
                output_dir=str(self.out),
                config_file=os.environ["COOKIECUTTER_CONFIG"],
                accept_hooks=hooks,
            )
        return Project(Path(path))

    def check(self, project: Project, answers: dict[str, str], hooks: bool) -> None:
        """Everything that must hold of a project, whatever the answers are."""
        self.same = self.builds[answers["accelerator"]]
        assert [path.name for path in self.out.iterdir()] == [answers["project_slug"]]
        for path in project.files():
            key = (path.name, path.read_bytes())
            if key not in self.checked:
                parse(path)
                self.checked.add(key)
            if path.name not in SHOWING and not hooks:
                assert self.same[path.relative_to(project.path)] == key[1], path
        if not hooks:
            shown = {path.relative_to(project.path) for path in project.files()}
            assert shown | {Path("LICENSE")} == set(self.same)
        self.check_pyproject(project.read("pyproject.toml"), answers, hooks)
        self.check_readme(project.read("README.md"), answers)
        self.check_license(project.path / "LICENSE", answers)
        self.check_citation(yaml.safe_load(project.read("docs/CITATION.cff")), answers)

    def check_pyproject(self, text: str, answers: dict[str, str], hooks: bool) -> None:
        about = tomllib.loads(text)["project"]
        assert about["name"] == answers["project_slug"]
        assert about["description"] == answers["description"]
        author = {"name": answers["author_name"], "email": answers["author_email"]}
        author = {name: answer for name, answer in author.items() if answer}
        assert about.get("authors", []) == ([author] if author else [])
        license = answers["license"]
        assert about.get("license", "none") == license
        rest, default = (
            text.partition("\nreadme =")[2],
            self.same[Path("pyproject.toml")].decode().partition("\nreadme =")[2],
        )
        assert rest == default or hooks

    def check_readme(self, text: str, answers: dict[str, str]) -> None:
        name, email = answers["author_name"], answers["author_email"]
        name = name.strip()
        author = f"{name} <{email}>" if name and email else name or email
        by = [f"By {author}"] if author else []
        by += [f"Licence: {answers['license']}"] if answers["license"] != "none" else []
        lines = [answers["description"], " · ".join(by)]
        head, *rest = text.partition("\n\n```sh\nmake train")
        assert blocks(head) == [
            ("h1", one_line(answers["project_name"])),
            *(("p", one_line(line)) for line in lines if line.strip()),
        ]
        same = self.same[Path("README.md")].decode()
        assert rest == list(same.partition("\n\n```sh\nmake train")[1:])

    def check_license(self, path: Path, answers: dict[str, str]) -> None:
        assert path.exists() == (answers["license"] != "none")
        if path.exists():
            holder = answers["author_name"]
            holder = holder if holder.strip() else f"the authors of {answers['project_name']}"
            lines = path.read_text(encoding="utf-8").split("\n")
            (line,) = [line for line in lines if re.match(r" *Copyright (\(c\) )?20\d\d ", line)]
            assert re.sub(r"^ *Copyright (\(c\) )?20\d\d ", "", line) == holder

    def check_citation(self, shown: dict[str, Any], answers: dict[str, str]) -> None:
        assert shown.pop("title") == answers["project_name"]
        description, license = answers["description"], answers["license"]
        assert shown.pop("abstract", "") == (description if description.strip() else "")
        assert shown.pop("license", "none") == license
        ((label, holder),) = shown.pop("authors")[0].items()
        name, others = answers["author_name"], f"The authors of {answers['project_name']}"
        assert label == "name" and holder == (name if name.strip() else others)
        assert set(shown) == {"cff-version", "message", "type"}

    def clean(self) -> None:
        """Removes the project; nothing else may have come or gone, and nothing may have run."""
        shutil.rmtree(self.temp)
        self.temp.mkdir()
        for path in self.out.iterdir():
            assert not (path / CANARY).exists()
            shutil.rmtree(path)
        assert self.listing() == self.before
        assert CANARY not in os.environ


@pytest.fixture
def world(
    settings: Path, template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Iterator[World]:
    # The environment of the tests, as the hook's: what an answer ran would be seen there.
    monkeypatch.delenv(CANARY, raising=False)
    yield World(tmp_path / "world", settings, template)


def test_all_questions_at_once(
    world: World, full: bool, capsys: pytest.CaptureFixture[str]
) -> None:
    count = 200 * TIMES if full else 30
    seen: set[str] = set()
    counts: Counter[str] = Counter()

    @settings(
        max_examples=count,
        deadline=None,
        derandomize=not full,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(all_answers(), st.booleans(), st.integers(0, 999))
    def check(answers: dict[str, str], typed: bool, number: int) -> None:
        hooks = number % 3 == 0  # each costs the start of a Python
        seen.add(repr((answers, typed)))
        refused = expected_refusal(answers)
        try:
            if refused:
                with pytest.raises(click.ClickException) as refusal:
                    world.generate(answers, typed, hooks)
                message = refusal.value.message
                assert message.startswith(f"{refused} ") and message.isprintable()
                assert message.isascii() and refusal.value.exit_code == 2
                assert not list(world.out.iterdir())
            else:
                world.check(world.generate(answers, typed, hooks), answers, hooks)
        finally:
            world.clean()
        counts["refused" if refused else "made, with hooks" if hooks else "made"] += 1

    check()
    with capsys.disabled():
        print(f"\ngenerated answers: {len(seen)} different combinations, {dict(counts)}")
    assert len(seen) >= count * 5 // 6
    # How many of those that are made have hooks is chance: of 300 draws between 87 and 146.
    assert counts["made"] and counts["made, with hooks"]
    assert len(seen) - counts["refused"] >= len(seen) / 5 and counts["refused"] >= len(seen) / 20
