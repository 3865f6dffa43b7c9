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


def _parse(code: str) -> ast.Module:
    """The syntax tree of code, without docstrings."""
    tree = ast.parse(textwrap.dedent(code))
    for node in ast.walk(tree):
        match getattr(node, "body", None):
            case [ast.Expr(value=ast.Constant()), *_] as body:
                del body[0]
    return tree


def _dump(value: Any) -> str:
    """As ast.dump, without the fields that are empty, some of which newer Pythons have added."""
    if isinstance(value, ast.AST):
        fields = ((name, getattr(value, name, None)) for name in value._fields)
        told = [f"{name}={_dump(field)}" for name, field in fields if field not in (None, [])]
        return f"{type(value).__name__}({','.join(told)})"
    return f"[{','.join(map(_dump, value))}]" if isinstance(value, list) else repr(value)


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
        text = _dump(_parse((PROJECT / name).read_text(encoding="utf-8")))
    except (OSError, SyntaxError, ValueError):
        return "none"
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
        tree = _parse(inspect.getsource(thing))
    except (OSError, SyntaxError, TypeError):  # made at run time, or a part of a line
        return getattr(getattr(thing, "__code__", None), "co_code", b"").hex(), set()
    names = {getattr(node, "id", getattr(node, "attr", "")) for node in ast.walk(tree)}
    return _dump(tree), names


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
    if not file or "site-packages" in str(file):
        return False
    return Path(file).resolve().is_relative_to(PROJECT)
