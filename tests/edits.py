"""Edits of a project, made as its owner would: those that docs/edits.md prints, and others."""

import ast
import re
from dataclasses import dataclass

from conftest import Project


@dataclass(frozen=True)
class Edit:
    """A block of docs/edits.md, the file that it goes to, and the function if it is in one."""

    file: str
    function: str
    code: str


def printed_edits(project: Project) -> list[Edit]:
    """The blocks of docs/edits.md; the paragraph before each names its file and function."""
    pieces = re.split(r"(?ms)^```python\n(.*?)^```\n", project.read("docs/edits.md"))
    edits = []
    for text, code in zip(pieces[::2], pieces[1::2], strict=False):
        paragraph = text.strip().rpartition("\n\n")[2]
        file = re.findall(r"\w+\.py", paragraph)[-1]
        functions = [name for name in re.findall(r"`(\w+)`", paragraph) if name[0].islower()]
        edits.append(Edit(file, functions[0] if code[0] == " " else "", code))
    return edits


def apply(project: Project, edit: Edit) -> None:
    """Puts the code where it belongs; a test fails if there is no such place."""
    lines = project.read(edit.file).splitlines(keepends=True)
    body = ast.parse("".join(lines)).body
    start, end = len(lines), len(lines)
    code = edit.code
    if edit.function:
        (function,) = (
            node
            for node in body
            if isinstance(node, ast.FunctionDef) and node.name == edit.function
        )
        start, end = _place(function, code, lines)
    elif same := [node for node in body if _assigned(node) and _assigned(node) == _first(code)]:
        start, end = _lines(same[0])
    else:
        code = "\n\n" + code
    write(project, edit.file, "".join([*lines[:start], code, *lines[end:]]))


def _place(function: ast.FunctionDef, code: str, lines: list[str]) -> tuple[int, int]:
    """The lines of a function that the code replaces; none of them if it is put between two."""
    statements = function.body[1:]  # without the docstring
    if code.lstrip().startswith("return"):
        assert isinstance(statements[-1], ast.Return)
        return _lines(statements[-1])
    if code.lstrip().startswith("elif"):  # before the last branch
        indent = re.match(" *", code)
        assert indent and function.end_lineno
        branch = f"{indent[0]}else:\n"
        (place,) = (i for i in range(function.lineno, function.end_lineno) if lines[i] == branch)
        return place, place
    if name := _first(code):
        return _lines(next(node for node in statements if _assigned(node) == name))
    start, _ = _lines(statements[0])
    return start, start


def _lines(node: ast.stmt) -> tuple[int, int]:
    assert node.end_lineno
    above = [node.lineno, *(d.lineno for d in getattr(node, "decorator_list", []))]
    return min(above) - 1, node.end_lineno


def _assigned(node: ast.stmt) -> str:
    """The name that a statement assigns to, "" if it is no such statement."""
    named = isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name)
    return node.targets[0].id if named else ""  # type: ignore[attr-defined]


def _first(code: str) -> str:
    """The name that code assigns to, "" if it begins otherwise."""
    match = re.match(r"\s*(\w+) = ", code)
    return match[1] if match else ""


def remove(project: Project, file: str, *names: str) -> None:
    """Deletes classes and functions."""
    for name in names:
        lines = project.read(file).splitlines(keepends=True)
        body = ast.parse("".join(lines)).body
        (node,) = (node for node in body if getattr(node, "name", "") == name)
        start, end = _lines(node)
        write(project, file, "".join(lines[:start] + lines[end:]))


def replace(project: Project, file: str, *pairs: tuple[str, str]) -> None:
    """Replaces texts, each of which must be there once; `...` stands for any text."""
    for old, new in pairs:
        pattern, text = re.escape(old).replace(re.escape("..."), ".*?"), project.read(file)
        found = re.findall(pattern, text, flags=re.DOTALL)
        assert len(found) == 1, (file, old, found)
        write(project, file, text.replace(found[0], new))


def write(project: Project, file: str, text: str) -> None:
    ast.parse(text)
    (project.path / file).write_text(text, encoding="utf-8", newline="\n")
