"""What code does, as a digest that comments, docstrings and the layout of lines do not change."""

import ast
import hashlib
import inspect
import sys
import textwrap
from collections.abc import Callable
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

from engine.errors import PROJECT

PLAIN = (str, bytes, int, float, bool, type(None))


def _dump(code: str) -> tuple[str, list[ast.AST]]:
    """The syntax of code as text, and its nodes; without docstrings, and without the fields that
    are empty, some of which newer Pythons have added.

    ast.dump and ast.walk take three times as long, which each start of a program would pay.
    """
    told: list[str] = []
    nodes: list[ast.AST] = []
    left: list[Any] = [ast.parse(textwrap.dedent(code))]
    while left:
        value = left.pop()
        if isinstance(value, ast.AST):
            nodes.append(value)
            told.append(type(value).__name__)
            found = value.__dict__
            for name in value._fields:
                if (field := found.get(name)) is not None and field != []:
                    told.append(name)
                    left.append(field)
        elif isinstance(value, list):
            docstring = isinstance(value[0], ast.Expr) and isinstance(value[0].value, ast.Constant)
            told.append(f"[{len(value) - docstring}]")
            left += value[docstring:]
        else:
            told.append(repr(value))
    return " ".join(told), nodes


@cache
def code_digests() -> dict[str, str]:
    """A digest of each file of the project whose code is loaded, by its path in the project.

    Tests, and what defines or reads options, which are compared by their values, are left out.
    """
    ours = [module for module in list(sys.modules.values()) if _ours(module)]
    paths = {Path(module.__file__).resolve() for module in ours if module.__file__}
    names = {path.relative_to(PROJECT).as_posix() for path in paths if path.suffix == ".py"}
    left_out = ("tests/", "options.py", "engine/arguments.py")
    return {name: _digest_file(name) for name in sorted(names) if not name.startswith(left_out)}


def changed_code(before: dict[str, str]) -> list[str]:
    """The files that have changed, or are gone, since `before`: digests of code_digests."""
    return [name for name, digest in before.items() if _digest_file(name) != digest]


def _digest_file(name: str) -> str:
    try:
        return _digest((PROJECT / name).read_text(encoding="utf-8"))
    except (OSError, SyntaxError, ValueError):
        return "none"


@cache  # a program that resumes compares what it has just recorded
def _digest(code: str) -> str:
    text, _ = _dump(code)
    return hashlib.sha256(text.encode("utf-8", "surrogatepass")).hexdigest()[:16]


def digest_of(function: Callable) -> str:
    """A digest of a function and of all in the project that it uses.

    What a name stands for is looked up in the module of the function, and in the modules of the
    project that it names: functions and classes of the project are followed, plain values and
    groups of them count as they are now. What libraries do is not looked at.
    """
    found: dict[str, str] = {}
    _follow(function, found)
    return hashlib.sha256(repr(sorted(found.items())).encode()).hexdigest()[:16]


def _follow(thing: Any, found: dict[str, str]) -> None:
    while isinstance(thing, partial):
        thing = thing.func
    if not inspect.isroutine(thing) and not inspect.isclass(thing):
        thing = type(thing)  # an object that can be called
    thing = inspect.unwrap(thing)
    module = sys.modules.get(getattr(thing, "__module__", None) or "")
    name = f"{module and module.__name__}.{getattr(thing, '__qualname__', '')}"
    if module is None or not _ours(module) or name in found:
        return
    found[name], names = _source_of(thing)
    places = [module]
    for place in places:
        for used in names & vars(place).keys():
            value = vars(place)[used]
            if isinstance(value, ModuleType):
                if _ours(value) and value not in places:
                    places.append(value)
            elif callable(value):
                _follow(value, found)
            elif not used.startswith("__"):
                found[f"{place.__name__}.{used}"] = _text(value, found)


@cache
def _source_of(thing: Any) -> tuple[str, set[str]]:
    """The code of a function or class as text, and the names in it."""
    try:
        text, nodes = _dump(inspect.getsource(thing))
    except (OSError, SyntaxError, TypeError):  # made at run time, or a part of a line
        return getattr(getattr(thing, "__code__", None), "co_code", b"").hex(), set()
    return text, {getattr(node, "id", getattr(node, "attr", "")) for node in nodes}


def _text(value: Any, found: dict[str, str]) -> str:
    """A value as text that is the same in each process: no addresses, sets in one order."""
    if isinstance(value, PLAIN):
        return repr(value)
    if isinstance(value, tuple | list | dict | set | frozenset):
        items = value.items() if isinstance(value, dict) else value
        texts = [_text(item, found) for item in items]
        order = sorted(texts) if isinstance(value, set | frozenset) else texts
        return f"{type(value).__name__}{order}"
    if callable(value):
        _follow(value, found)
    return getattr(value, "__qualname__", type(value).__qualname__)


@cache
def _ours(module: ModuleType) -> bool:
    file = getattr(module, "__file__", None) or next(iter(getattr(module, "__path__", [])), "")
    if not file or "site-packages" in str(file) or not Path(file).is_absolute():
        return False  # torch.ops says that its file is _ops.py
    return Path(file).resolve().is_relative_to(PROJECT)
