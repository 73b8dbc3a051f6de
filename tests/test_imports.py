"""Imports point one way, heavy libraries are imported where they are needed, and help is quick."""

from __future__ import annotations

import ast
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.places import CHECKOUT

HEAVY = frozenset(
    "torch transformers peft trl datasets pandas pyarrow crowdkit openai vllm ray matplotlib sklearn "
    "sentence_transformers".split()
)
OF_STAGES = ("batches", "completion", "importing", "finetuning", "selection", "selection_results")
SHARED_BY_STAGES = frozenset(
    [
        "pipelines",
        *(f"pipelines.{name}" for name in ("options", "command", "screen", "session", "stages", "workers", *OF_STAGES)),
    ]
)

MADE_OF_A_LIBRARY = {"raters.models.transport": "openai"}
"""Modules that subclass a library's classes; they are imported inside functions themselves."""
OF_TENSORS = ("raters.influence.",)
"""Packages that are torch through and through; they are imported inside functions by all others."""
WORKERS = {"pipelines.workers": frozenset({"pipelines.infer_traces", "pipelines.rate_items"})}
"""What a worker in another process opens is named by a module, and that of a stage is `__main__` there."""

LAYERS = (
    ("raters.records", "raters.resources"),
    ("raters.scales", "raters.journal", "raters.prompts"),
    ("raters.corpora", "raters.models"),
    (
        "raters.sampling",
        "raters.rating",
        "raters.guidelines",
        "raters.guideline_lint",
        "raters.critiques",
        "raters.training",
    ),
)
"""A module of a layer imports none of a later one; a package stands for all its modules."""


def module_name(path: Path) -> str:
    parts = path.relative_to(CHECKOUT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for folder in ("raters", "pipelines") for path in (CHECKOUT / folder).rglob("*.py")}


def is_type_checking(node: ast.AST) -> bool:
    return isinstance(node, ast.If) and "TYPE_CHECKING" in ast.unparse(node.test)


def statements(tree: ast.AST, *, inside_functions: bool) -> Iterator[ast.Import | ast.ImportFrom]:
    """Yield import statements that run; those for type checkers alone are left out."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            yield node
        elif isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            if inside_functions:
                yield from statements(node, inside_functions=True)
        elif is_type_checking(node):
            assert isinstance(node, ast.If)
            yield from statements(ast.Module(node.orelse, []), inside_functions=inside_functions)
        else:
            yield from statements(node, inside_functions=inside_functions)


def imported(name: str, *, inside_functions: bool) -> set[str]:
    """Return the modules that a module imports, ours as far as they exist and others by their full names."""
    found: set[str] = set()
    for node in statements(ast.parse(MODULES[name].read_text(encoding="utf-8")), inside_functions=inside_functions):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
            continue
        assert node.level == 0, f"{name} imports relatively"
        assert node.module is not None
        members = {f"{node.module}.{alias.name}" for alias in node.names}
        found |= (members & MODULES.keys()) or {node.module}
    return found


def test_the_modules_are_found() -> None:
    assert {"raters.records", "raters.models.embedded", "pipelines.infer_traces"} <= MODULES.keys()
    assert "raters.inferring" in imported("pipelines.infer_traces", inside_functions=True)
    assert "raters.inferring" not in imported("pipelines.infer_traces", inside_functions=False)


@pytest.mark.parametrize("name", sorted(MODULES))
def test_heavy_libraries_are_imported_inside_functions(name: str) -> None:
    heavy = {module.partition(".")[0] for module in imported(name, inside_functions=False)} & HEAVY
    of_tensors = name.startswith(OF_TENSORS)
    assert heavy <= {MADE_OF_A_LIBRARY.get(name), "torch" if of_tensors else None}
    if heavy:
        others = [other for other in MODULES if name in imported(other, inside_functions=False)]
        assert not [other for other in others if not (of_tensors and other.startswith(OF_TENSORS))]


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("raters")))
def test_the_library_never_imports_a_stage(name: str) -> None:
    assert not {module for module in imported(name, inside_functions=True) if module.startswith("pipelines")}


@pytest.mark.parametrize("name", sorted(name for name in MODULES if name.startswith("pipelines")))
def test_a_stage_never_imports_another(name: str) -> None:
    stages = {module for module in imported(name, inside_functions=True) if module.startswith("pipelines")}
    assert stages - SHARED_BY_STAGES <= {name} | WORKERS.get(name, frozenset())


def layer(name: str) -> int | None:
    for place, modules in enumerate(LAYERS):
        if any(name == module or name.startswith(f"{module}.") for module in modules):
            return place
    return None


@pytest.mark.parametrize("name", sorted(name for name in MODULES if layer(name) is not None))
def test_imports_point_from_later_layers_to_earlier_ones(name: str) -> None:
    """Also through modules that belong to no layer."""
    seen: set[str] = set()
    waiting = [name]
    while waiting:
        for module in imported(waiting.pop(), inside_functions=True) & MODULES.keys() - seen:
            seen.add(module)
            waiting.append(module)
    here = layer(name)
    assert here is not None
    assert not {module for module in seen if (there := layer(module)) is not None and there > here}


def test_the_library_has_no_cycle() -> None:
    graph = {name: imported(name, inside_functions=False) & MODULES.keys() for name in MODULES}
    done: set[str] = set()

    def visit(name: str, above: tuple[str, ...]) -> None:
        assert name not in above, " imports ".join((*above[above.index(name) :], name))
        if name not in done:
            for module in sorted(graph[name]):
                visit(module, (*above, name))
            done.add(name)

    for name in sorted(graph):
        visit(name, ())
    assert done == MODULES.keys()


def seconds_of(*arguments: str) -> float:
    began = time.perf_counter()
    subprocess.run([sys.executable, *arguments], cwd=CHECKOUT, check=True, capture_output=True)
    return time.perf_counter() - began


@pytest.mark.parametrize(
    "stage", sorted(name for name in MODULES if name.startswith("pipelines.") and name not in SHARED_BY_STAGES)
)
def test_help_is_quick(stage: str) -> None:
    """It stays below two seconds, or on a busy machine below twice what its three small libraries take alone."""
    alone = seconds_of("-c", "import numpy, pydantic, yaml")
    assert min(seconds_of("-m", stage, "--help") for _ in range(2)) < max(2.0, 2 * alone)


def test_scoring_and_help_load_no_heavy_library() -> None:
    script = """
import contextlib, sys
sys.argv = ["infer_traces", "--help"]
import raters.sampling, raters.utilisation, raters.contrasts, raters.models, raters.models.embedded
from pipelines.infer_traces import main
with contextlib.suppress(SystemExit):
    main(["--help"])
print(sorted(set(sys.modules) & set("torch transformers peft trl datasets openai vllm ray matplotlib".split())))
"""
    found = subprocess.run([sys.executable, "-c", script], cwd=CHECKOUT, check=True, capture_output=True, text=True)
    assert found.stdout.splitlines()[-1] == "[]"
