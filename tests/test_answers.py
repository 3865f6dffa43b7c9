"""Every answer is used unharmed, or refused in one line with nothing written."""

import ast
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import pt_template_answers as answers
import pytest
import yaml
from conftest import PATIENCE, Project
from hypothesis import example, given
from hypothesis import strategies as st
from jinja2 import Environment
from markdown_it import MarkdownIt

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

Bake = Callable[..., Project]
Generate = Callable[..., subprocess.CompletedProcess[str]]

ORDINARY = [
    'Ada\'s "Best" Net',
    "C:\\new\\table",
    "Zoë Müller-Ørsted",
    "研究 プロジェクト",
    "שלום עולם",
    "Rockets 🚀👩‍🚀",
    "#1: 100 % {of} [all] *cats* & <dogs> | `ticks` $HOME ~ !",
    "#! torch>=2.6 https://download.pytorch.org/whl/cpu",
    "import os; os.system('exit')",
    "$(touch pwned); `touch pwned`",
    '"]\nx'.replace("\n", " ") + ' = "toml"',
    "'''\"\"\"",
    "null",
    "  kept blanks  ",
    "x" * 300,
]
HOSTILE = [
    "two\nlines",
    "carriage\rreturn",
    "tab\there",
    "bell\x07",
    "red \x1b[31m",
    "delete\x7f",
    "next line\x85",
    "line\u2028separator",
    "paragraph\u2029separator",
    "override\u202etxt",
    "isolate\u2066x",
    "surrogate\udce9",
    "no character\uffff",
]
BAD_SLUGS = [
    "",
    " ",
    "../evil",
    "/tmp/evil",
    "a/b",
    "a\\b",
    "..",
    ".hidden",
    "trailing.",
    "trailing-",
    "trailing_",
    "-dash",
    "3d-net",
    "3d net",
    "My_Net",
    "café",
    "研究",
    "a b",
    "a'b",
    "a;b",
    "$(id)",
    "a" * 101,
    "class",
    "match",
    "random",
    "json",
    "torch",
    "torchvision",
    "tensorboardx",
    "prefetch-generator",
    "numpy",
    "tests",
    "test",
    "train",
    "data",
    "engine",
    "task",
    "con",
    "nul",
    "com1",
    "lpt9",
]
GOOD_SLUGS = ["a", "net", "cat_dog-2", "a" * 100, "vision3d"]
BAD_EMAILS = ["ada", "ada@", "@example.org", "a@b@c", "a b@example.org", "a@b.org\n", '"a"@b.org']
GOOD_EMAILS = ["", "ada@example.org", "ada+net@mail.example", "zoë@exämple.org", "o'brien@x.org"]
FREE_TEXT = ["project_name", "description", "author_name"]
# What Markdown takes for markup, each alone; and pieces from which more of it is made.
MARKDOWN = [
    "<b>bold</b>",
    "<script>alert(1)</script>",
    "<!-- comment",
    "<https://example.org>",
    "<ada@example.org>",
    "[link](https://example.org)",
    "![image](x.png)",
    "[reference]: https://example.org",
    "[^note]",
    "*a* _b_ **c** __d__ ***e*** ~f~ ~~g~~",
    "snake_case, _private, trailing_ and __dunder__",
    "`code` ``code``",
    "```",
    "~~~",
    "# heading",
    "#",
    "C# is #1",
    "closed #",
    "closed ## #",
    "- item",
    "+ item",
    "* item",
    "-",
    "---",
    "***",
    "___",
    "===",
    "> quoted",
    "1. item",
    "12) item",
    "1.",
    "2026 was 1. of many",
    "    indented",
    "&amp; &lt; &#35; &#x23; & AT&T",
    "https://example.org http://a ftp://b",
    "www.example.org and www. too",
    "a | b",
    "|---|---|",
    ":--",
    "$x$ costs $$5$$",
    "{{ x }} {% x %} {# x #}",
    "\\",
    "\\* \\\\ \\a a\\",
    "a  b\u00a0 c",
]
PIECES = [*r"\`*_{}[]()<>#+-.!|~&$:/@=1", " ", "  ", "a", "é", "www.", "://", "&lt;", "1. ", "](x)"]
PARSER = MarkdownIt("commonmark").enable(["table", "strikethrough"])


def blocks(text: str) -> list[tuple[str, str]]:
    """Returns the headings and paragraphs of Markdown; whatever else is in it is a failure."""
    found, tag = [], ""
    for token in PARSER.parse(text):
        if token.type == "inline":
            assert {child.type for child in token.children or []} <= {"text", "softbreak"}, text
            found.append((tag, "".join(child.content or " " for child in token.children or [])))
        else:
            assert token.tag in ("h1", "p"), text
            tag = token.tag
    return [(tag, one_line(text)) for tag, text in found]


def one_line(text: str) -> str:
    """Returns a text with single blanks, as a browser shows it."""
    return " ".join(text.split())


def readme_head(project: Project) -> list[tuple[str, str]]:
    """Returns what stands above the first commands of a project's README."""
    return blocks(project.read("README.md").partition("```sh\n")[0])


def refusal_of(question: str, answer: str) -> str:
    """Returns the line that refuses an answer where nobody can be asked again."""
    extension = answers.Answers(Environment())
    with pytest.raises(click.ClickException) as refusal:
        extension.check({"project_name": "Cats", question: answer}, question)
    return refusal.value.message


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_used_unharmed(bake: Bake, text: str) -> None:
    project = bake(project_name=text, description=text, author_name=text, accelerator="cpu")
    about = tomllib.loads(project.read("pyproject.toml"))["project"]
    assert about["description"] == text
    assert about["authors"][0]["name"] == text
    assert about["name"] == project.path.name
    assert f"{text}\n" in project.read("LICENSE")
    citation = yaml.safe_load(project.read("docs/CITATION.cff"))
    assert (citation["title"], citation["abstract"]) == (text, text)
    assert citation["authors"] == [{"name": text}]
    assert readme_head(project) == [
        ("h1", one_line(text)),
        ("p", one_line(text)),
        ("p", one_line(f"By {text.strip()} · Licence: MIT")),
    ]
    assert not list(project.path.rglob("pwned"))


@pytest.mark.parametrize("question", FREE_TEXT)
@pytest.mark.parametrize("text", HOSTILE, ids=ascii)
def test_hostile_text_is_refused(bake: Bake, question: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(click.ClickException, match=f"^{question} .*must be one line") as refusal:
        bake(**{question: text})
    assert refusal.value.message.isprintable() and refusal.value.message.isascii()


@pytest.mark.parametrize("slug", BAD_SLUGS)
def test_bad_slug_is_refused(slug: str) -> None:
    message = refusal_of("project_slug", slug)
    assert message.startswith("project_slug ")
    assert answers.fault_of("project_slug", message.rsplit("try ")[-1]) == ""


@pytest.mark.parametrize("slug", GOOD_SLUGS)
def test_good_slug_is_accepted(slug: str) -> None:
    assert answers.fault_of("project_slug", slug) == ""


def test_an_empty_slug_is_suggested_from_the_name() -> None:
    assert refusal_of("project_slug", "").endswith("; try cats")


def test_names_of_the_projects_own_files_are_taken(project: Project) -> None:
    own = {path.stem if path.is_file() else path.name for path in project.path.glob("[a-z]*")}
    assert own - {"pyproject", "requirements"} <= answers.RESERVED


@pytest.mark.parametrize("email", BAD_EMAILS)
def test_bad_email_is_refused(email: str) -> None:
    assert refusal_of("author_email", email).startswith("author_email ")


@pytest.mark.parametrize("email", GOOD_EMAILS)
def test_good_email_is_accepted(email: str) -> None:
    assert answers.fault_of("author_email", email) == ""


@pytest.mark.parametrize(
    "answer",
    [
        "project_name= ",
        "project_slug=../evil",
        "project_slug=/evil",
        "project_slug=torch",
        "description=two\nlines",
        "author_name=\x1b[31mred",
        "author_email=nobody",
    ],
    ids=ascii,
)
def test_refusal_on_the_command_line(generate: Generate, tmp_path: Path, answer: str) -> None:
    result = generate(answer)
    assert result.returncode == 2
    assert result.stdout == ""
    assert result.stderr.startswith(f"Error: {answer.partition('=')[0]} ")
    assert result.stderr.count("\n") == 1 and "\x1b" not in result.stderr
    assert not list(tmp_path.rglob("*"))


@pytest.mark.parametrize("name", ["tsak", "Task", "task ", "\x1b[31m", "slurm"], ids=ascii)
def test_an_answer_to_no_question_is_refused(
    generate: Generate, tmp_path: Path, name: str
) -> None:
    result = generate(f"{name}=image-to-image")
    assert result.returncode == 2 and result.stdout == ""
    assert result.stderr.startswith(f"Error: {name!a}: no question of this template; it asks proj")
    assert result.stderr.count("\n") == 1 and not list(tmp_path.rglob("*"))


@pytest.fixture
def type_in(template: Path, tmp_path: Path) -> Callable[..., str]:
    """Returns a function that types lines into cookiecutter, and returns what it has shown."""
    pty = pytest.importorskip("pty")

    def type_in(*lines: str, flags: Iterable[str] = ()) -> str:
        try:
            terminal, stdin = pty.openpty()
        except OSError:  # a sandbox without /dev/pts
            pytest.skip("no terminals on this machine")
        command = [sys.executable, "-m", "cookiecutter", str(template), *flags]
        with subprocess.Popen(
            [*command, "--output-dir", str(tmp_path / "out")],
            stdin=stdin,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        ) as program:
            os.write(terminal, "".join(f"{line}\n" for line in lines).encode())
            output = program.communicate(timeout=PATIENCE)[0]
        os.close(terminal)
        os.close(stdin)
        assert program.returncode == 0, output
        return str(output)

    return type_in


def test_a_terminal_is_asked_again(type_in: Callable[..., str], tmp_path: Path) -> None:
    """An empty line takes the suggestion: after each refusal but one, nothing is typed."""
    output = type_in(" ", "", "torch", "my net", "", "a\tb", "", "", "nobody", *4 * [""])
    questions = [
        *("project_name '': must not be empty", "project_name (My Vision Project): "),
        *("project_slug 'torch': is taken", "project_slug (torch_project): "),
        *("project_slug 'my net': must be", "project_slug (my_net): "),
        *("description 'a\\tb': must be one line", "description (A PyTorch vision project): "),
        *("author_email 'nobody': must be empty or", "author_email (): "),
    ]
    assert re.findall("|".join(map(re.escape, questions)), output) == questions
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["my_net"]


def test_an_existing_folder_is_asked_for_again(type_in: Callable[..., str], tmp_path: Path) -> None:
    """At the question of its name: the others have not been answered in vain."""
    for name in ("my-net", "my-net_2"):
        (tmp_path / "out" / name).mkdir(parents=True)
    output = type_in("Cats", "my-net", *7 * [""])
    before, refusal, after = output.partition("project_slug 'my-net': exists already")
    assert refusal and "[3/8]" not in before
    assert after.startswith("; try my-net_3\n  project_slug (my-net_3): ")
    assert (tmp_path / "out/my-net_3/train.py").is_file()
    # What was typed is kept for a replay, which asks for nothing but another folder.
    output = type_in("", flags=["--replay"])
    assert "project_slug (my-net_3_2): " in output and "[1/8]" not in output
    assert (tmp_path / "out/my-net_3_2/train.py").is_file()
    assert not list((tmp_path / "out/my-net").iterdir())


@given(st.text(min_size=1, max_size=400))
def test_slug_of_any_name_is_accepted(name: str) -> None:
    assert answers.fault_of("project_slug", answers.slug_of(name)) == ""


@given(st.sampled_from(sorted(answers.RESERVED)))
def test_slug_of_a_reserved_name_is_accepted(name: str) -> None:
    assert answers.fault_of("project_slug", answers.slug_of(name)) == ""


@given(st.text().filter(lambda text: not answers.fault_of("description", text)))
def test_quoted_text_survives_every_format(text: str) -> None:
    quoted = answers.quote(text)
    assert ast.literal_eval(quoted) == text
    assert json.loads(quoted) == text
    assert tomllib.loads(f"x = {quoted}") == {"x": text}
    assert yaml.safe_load(f"x: {quoted}") == {"x": text}


def test_markdown_of_hostile_text_shows_the_text() -> None:
    for text in [*ORDINARY, *MARKDOWN, *GOOD_EMAILS]:
        assert_shown(text)


@given(
    st.one_of(
        st.lists(st.sampled_from(PIECES), max_size=20).map("".join),
        st.text(st.characters(exclude_categories=["Cc", "Cs", "Zl", "Zp"])),
        st.lists(st.sampled_from([*MARKDOWN, *PIECES]), max_size=5).map(" ".join),
    )
)
@example("1" * 9 + ".")
def test_markdown_of_any_text_shows_the_text(text: str) -> None:
    if not answers.fault_of("description", text):
        assert_shown(text)


def assert_shown(text: str) -> None:
    """Asserts that a text is shown as a heading, and as a paragraph and any part of one."""
    quoted, shown = answers.markdown(text), one_line(text)
    assert blocks(f"# {quoted}") == [("h1", shown)]
    assert blocks(f"{quoted}\n\nx") == [("p", line) for line in (shown, "x") if line]
    assert blocks(f"{quoted}\nx") == [("p", f"{shown} x".strip())]
    assert blocks(f"x\n{quoted}") == [("p", f"x {shown}".strip())]
    inside = one_line(f"By {text.strip()} <{text.strip()}> · x")
    assert blocks(f"By {quoted} \\<{quoted}> · x") == [("p", inside)]
    # GitHub makes links, formulas and tables of these, which the parser here leaves alone.
    assert not re.search(r"(?<!\\)://|www\.|(?<!\\)\$|^[:|]", quoted)


def test_the_head_of_the_readme_leaves_out_what_is_not_there(bake: Bake) -> None:
    heads = {
        ("", "", "none"): [],
        ("", "", "MIT"): ["Licence: MIT"],
        ("Ada", "", "none"): ["By Ada"],
        ("", "ada_@example.org", "none"): ["By ada_@example.org"],
        (" ", "ada@example.org", "BSD-3-Clause"): ["By ada@example.org · Licence: BSD-3-Clause"],
        ("Ada", "a_@b.org", "Apache-2.0"): ["By Ada <a_@b.org> · Licence: Apache-2.0"],
    }
    for (name, email, licence), lines in heads.items():
        given = {"author_name": name, "author_email": email, "license": licence}
        project = bake(project_name="Cats", description=" ", accept_hooks=False, **given)
        assert readme_head(project) == [("h1", "Cats"), *(("p", line) for line in lines)]
        assert "\n\n\n" not in project.read("README.md")


def test_author_comes_from_git(bake: Bake, settings: Path) -> None:
    config = settings / "gitconfig"
    config.write_text(
        '[user]\n\tname = "Zoë \\"Z\\" {{ 7 * 7 }}"\n\temail = zoe@example.org\n', "utf-8"
    )
    try:
        about = tomllib.loads(bake(accelerator="cpu").read("pyproject.toml"))["project"]
    finally:
        config.unlink()
    assert about["authors"] == [{"name": 'Zoë "Z" {{ 7 * 7 }}', "email": "zoe@example.org"}]


def test_a_bad_git_value_is_no_default(bake: Bake, settings: Path) -> None:
    config = settings / "gitconfig"
    config.write_text('[user]\n\tname = "a\\tb"\n\temail = nobody\n')
    try:
        about = tomllib.loads(bake(accelerator="cpu").read("pyproject.toml"))["project"]
    finally:
        config.unlink()
    assert "authors" not in about


def test_no_git_is_no_author(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert answers.from_git("author_name", "user.name") == ""
