"""Some definitions of this project, and all that they rest on, as one file that needs nothing but Python.

Exported folders carry the very code that reads verdicts here, not a second version of it. Definitions are copied out of
their modules as they stand, in the order in which they need each other.
"""

from __future__ import annotations

import ast
import importlib.util
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

_OURS = "raters"
_Import = tuple[str, str | None]
"""Module, and the name taken from it; None if the module itself is what is imported."""


@dataclass(frozen=True)
class _Module:
    """The top level of a module.

    Attributes:
        definitions: Source of each definition by name, with what is written about it below.
        nodes: Its syntax.
        imports: Where each imported name comes from; `urllib` from each of its modules that is imported.
    """

    definitions: dict[str, str]
    nodes: dict[str, ast.stmt]
    imports: dict[str, list[_Import]]


def one_file(module: str, names: Sequence[str], head: str) -> str:
    """Return the text of a Python file with some definitions of a module.

    Args:
        module: Its full name.
        names: Of the definitions.
        head: Docstring of the file.

    Raises:
        AssertionError: If they rest on more than the standard library, or two that are needed have one name: a mistake
            of ours.
    """
    found: dict[str, tuple[str, str]] = {}
    imports: set[_Import] = set()
    visiting: set[tuple[str, str]] = set()

    def add(place: str, name: str) -> None:
        if (place, name) in visiting:
            return
        visiting.add((place, name))
        top = _read(place)
        if name in top.imports:
            for source, member in top.imports[name]:
                if source.partition(".")[0] == _OURS:
                    assert member == name, f"{place}: {name} is imported under another name"
                    add(source, name)
                else:
                    assert source.partition(".")[0] in sys.stdlib_module_names, f"{place}: {name} is of {source}"
                    imports.add((source, member))
        elif name in top.nodes:
            for used in _names(top.nodes[name]):
                add(place, used)
            assert found.setdefault(name, (place, ""))[0] == place, f"{name} is in {place} and {found[name][0]}"
            found[name] = (place, top.definitions[name])

    for name in names:
        add(module, name)
    sources = list(dict.fromkeys(source for _, source in found.values()))
    lines = [f"import {source}" for source, member in sorted(imports, key=str) if member is None]
    for source in sorted({source for source, member in imports if member is not None}):
        members = ", ".join(sorted(str(member) for place, member in imports if place == source and member))
        lines.append(f"from {source} import {members}")
    top = f'"""{head}"""\n\nfrom __future__ import annotations\n\n' + "\n".join(lines)
    return "\n\n\n".join([top, *sources]) + "\n"


@cache
def _read(module: str) -> _Module:
    spec = importlib.util.find_spec(module)
    assert spec is not None, module
    assert spec.origin is not None, module
    text = Path(spec.origin).read_text(encoding="utf-8")
    lines = text.splitlines()
    top = _Module({}, {}, {})
    body = ast.parse(text).body
    for place, node in enumerate(body):
        if isinstance(node, ast.Import | ast.ImportFrom):
            for alias in node.names:
                name = (alias.asname or alias.name).partition(".")[0]
                source = (alias.name, None) if isinstance(node, ast.Import) else (str(node.module), alias.name)
                top.imports.setdefault(name, []).append(source)
        for name in _defined(node):
            following = body[place + 1] if place + 1 < len(body) else None
            last = following if _is_docstring(following) else node
            first = min([node.lineno, *(one.lineno for one in getattr(node, "decorator_list", ()))])
            assert last is not None
            top.nodes[name] = node
            top.definitions[name] = "\n".join(lines[first - 1 : last.end_lineno])
    return top


def _defined(node: ast.stmt) -> Iterator[str]:
    if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
        yield node.name
    elif isinstance(node, ast.Assign):
        for target in node.targets:
            yield from (name.id for name in ast.walk(target) if isinstance(name, ast.Name))
    elif isinstance(node, ast.AnnAssign) and isinstance(node.target, ast.Name):
        yield node.target.id


def _is_docstring(node: ast.stmt | None) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


def _names(node: ast.stmt) -> list[str]:
    """Return the names that a definition uses, in the order of its text."""
    return list(dict.fromkeys(name.id for name in ast.walk(node) if isinstance(name, ast.Name)))
