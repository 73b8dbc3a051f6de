"""Stage: run the steps of a recipe, each in its turn, and none whose inputs have not changed since."""

from __future__ import annotations

import hashlib
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import Field

from pipelines.command import INTERRUPTED, run_command
from pipelines.options import parse_options, positional
from pipelines.screen import say
from pipelines.stages import RECIPE_STAGES
from raters.journal import write_atomically
from raters.options import BudgetOptions, StageOptions
from raters.records import ConfigError, JudgeseyeError, shown
from raters.yaml_files import read_yaml

STAGE = "run_recipe"
DESCRIPTION = """\
Run the steps of a recipe. Each step is a stage with its options; ${name} in an option stands for the folder of an
earlier step, ${recipe} for the recipe's own folder.

    steps:
      traces:  {stage: infer_traces, corpus: demo, k: 16}
      refined: {stage: refine_guideline, traces: "${traces}"}

  python -m pipelines.run_recipe data/demo/recipe.yaml --list

Writes to --out: a folder for each step, and <step>.yaml with its options. The same command again passes over steps
whose options and inputs are unchanged, and goes on with a step that was stopped."""

_REFERENCE = re.compile(r"\$\{([^}]*)\}")
_NAME = re.compile(r"[A-Za-z0-9][\w-]*")
_NOT_OUTPUTS = frozenset({".lock", ".reviews.lock", "manifest.json", "recipe.json"})
_BOUNDS = frozenset({"concurrency", "batch_size", "ahead", "give_up", *BudgetOptions.model_fields})
_BOUNDS_OF_REFINING = frozenset(
    {"max_requests", "max_tokens", "max_cost", "rounds", "patience", "max_proposals", "test"}
)
"""Options under another value of which a stage goes on in the folder of its run."""


class RunRecipeOptions(StageOptions):
    """Options of run_recipe."""

    recipe: str | None = positional("YAML file of steps; needed")
    out: str | None = Field(None, description="folder of all steps (default: runs/<name of the recipe>)")
    list: bool = Field(False, description="say what would be run, and run nothing")


class StepFailedError(JudgeseyeError):
    """A step ended with an error, which it has said itself."""

    def __init__(self, message: str, exit_code: int) -> None:
        """Take over the step's exit status."""
        super().__init__(message)
        self.exit_code = exit_code


@dataclass(frozen=True)
class Step:
    """One stage of a recipe.

    Attributes:
        name: Of its folder.
        stage: Which stage.
        options: As the recipe has them, references included.
        needs: Names of the steps that it refers to.
    """

    name: str
    stage: str
    options: Mapping[str, Any]
    needs: tuple[str, ...]


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(RunRecipeOptions, STAGE, DESCRIPTION, arguments)
    if options.recipe is None:
        raise ConfigError("RECIPE: missing; give a YAML file such as data/demo/recipe.yaml, or see --help")
    recipe = Path(options.recipe)
    name, steps = read_recipe(recipe)
    out = Path(options.out) if options.out else Path("runs") / name
    began = time.monotonic()
    for place, step in enumerate(steps, start=1):
        given = _filled(step.options, {"recipe": recipe.parent, **{one.name: out / one.name for one in steps}})
        state = _state(step, given, out)
        folder = out / step.name
        head = f"[{place}/{len(steps)}] {step.name} ({step.stage})"
        if state is not None and state == _known_state(folder):
            say(f"{head}: unchanged, passed over")
            continue
        say(f"{head}: {'to run' if options.list else 'running'}")
        if not options.list and not _run(step, given, out):
            say(f"{STAGE}: interrupted; give the same command again to go on")
            return INTERRUPTED
    if not options.list:
        print(f"\n{name}: {len(steps)} steps done in {time.monotonic() - began:,.0f} s, in {out}")
    return 0


def read_recipe(path: Path) -> tuple[str, list[Step]]:
    """Return the name and the steps of a recipe.

    Raises:
        ConfigError: If it is not a recipe: which step, what is wrong, what to do.
    """
    recipe = read_yaml(path, str(path), "give a recipe such as data/demo/recipe.yaml")
    if not isinstance(recipe, dict) or not isinstance(recipe.get("steps"), dict) or not recipe["steps"]:
        raise ConfigError(f"{path}: holds no steps; write `steps:` and one `name: {{stage: ..., option: ...}}` a line")
    if unknown := recipe.keys() - {"name", "steps"}:
        raise ConfigError(f"{path}: unknown key {shown(min(map(str, unknown)))}; the keys are name and steps")
    name = str(recipe.get("name", path.parent.name if path.stem == "recipe" else path.stem)) or "recipe"
    steps: list[Step] = []
    for step_name, entry in recipe["steps"].items():
        where = f"{path}: step {shown(step_name)}"
        if not isinstance(step_name, str) or not _NAME.fullmatch(step_name) or step_name == "recipe":
            raise ConfigError(f"{where}: is no name of a folder; use letters, digits, - and _")
        if not isinstance(entry, dict) or entry.get("stage") not in RECIPE_STAGES:
            stage = entry.get("stage") if isinstance(entry, dict) else entry
            raise ConfigError(f"{where}: stage {shown(stage)}; give one of {', '.join(RECIPE_STAGES)}")
        options = {str(key): value for key, value in entry.items() if key != "stage"}
        if "out" in options:
            raise ConfigError(f"{where}: out is the recipe's to give; leave it out")
        needs = tuple(dict.fromkeys(name for name in _references(options) if name != "recipe"))
        for need in needs:
            if need not in [step.name for step in steps]:
                raise ConfigError(f"{where}: ${{{need}}} is no earlier step; they are run in the order of the file")
        steps.append(Step(step_name, entry["stage"], options, needs))
    return name, steps


def _references(value: Any) -> Iterator[str]:
    if isinstance(value, dict):
        for each in value.values():
            yield from _references(each)
    elif isinstance(value, list):
        for each in value:
            yield from _references(each)
    elif isinstance(value, str):
        yield from _REFERENCE.findall(value)


def _filled(value: Any, folders: Mapping[str, Path]) -> Any:
    """Return options with folders in place of references."""
    if isinstance(value, Mapping):
        return {key: _filled(each, folders) for key, each in value.items()}
    if isinstance(value, list):
        return [_filled(each, folders) for each in value]
    if isinstance(value, str):
        return _REFERENCE.sub(lambda found: str(folders[found[1]]), value)
    return value


def _state(step: Step, given: Mapping[str, Any], out: Path) -> dict[str, Any] | None:
    """Return what a step's outcome depends on: options, the files they name, earlier outputs, prompts, version.

    None if an earlier step has no outputs yet.
    """
    from raters.runs import versions

    inputs: dict[str, str] = {}
    for need in step.needs:
        if _known_state(out / need) is None:
            return None
        inputs[f"${{{need}}}"] = _outputs_sha256(out / need)
    for key, value in given.items():
        for each in value if isinstance(value, list) else [value]:
            if not isinstance(each, str):
                continue
            name = each.partition("=")[2] or each  # such as a dimension's guideline, tone=told.md
            if not name.startswith(str(out)) and (path := _place(key, name)) is not None:
                inputs[f"{key} {each}"] = _outputs_sha256(path) if path.is_dir() else _file_sha256(path)
    # Of another version a step runs again, but goes on with what it has paid for, if the stage itself allows it.
    version = versions().get("judgeseye")
    state = {"stage": step.stage, "options": dict(given), "inputs": inputs}
    return {**state, "prompts": _prompts_sha256(), "version": version}


def _place(key: str, value: str) -> Path | None:
    """Return the file or folder that an option names, a corpus by its name too; None if it names none."""
    from raters.corpora import find_corpus

    try:
        path = find_corpus(value) if key == "corpus" else Path(value)
        return path if value and path.exists() else None
    except (JudgeseyeError, OSError, ValueError):
        return None


def _outputs_sha256(folder: Path) -> str:
    """Return a hash of the files directly in a folder and in its folders, but for those that tell the time."""
    digest = hashlib.sha256()
    for path in sorted(folder.rglob("*")):
        if path.is_file() and path.name not in _NOT_OUTPUTS:
            digest.update(f"{path.relative_to(folder)}\0{_file_sha256(path)}\n".encode())
    return digest.hexdigest()


def _file_sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _prompts_sha256() -> str:
    """Return a hash of the prompts that ship."""
    from raters.resources import resource_folder

    digest = hashlib.sha256()
    for path in sorted(resource_folder("prompts").rglob("*.md")):
        digest.update(path.read_bytes())
    return digest.hexdigest()


def _known_state(folder: Path) -> dict[str, Any] | None:
    """Return the state in which a step was completed; None if it was not."""
    try:
        return dict(json.loads((folder / "recipe.json").read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError):
        return None


def _options_in(config: Path) -> dict[str, Any] | None:
    """Return the options that a step was last begun with; None if it was not."""
    try:
        return dict(yaml.safe_load(config.read_text(encoding="utf-8")))
    except (OSError, ValueError, TypeError, yaml.YAMLError):
        return None


def _decisive(step: Step, options: Mapping[str, Any]) -> dict[str, Any]:
    """Return a step's options but for those that only bound what it may use."""
    bounds = _BOUNDS | (_BOUNDS_OF_REFINING if step.stage == "refine_guideline" else frozenset())
    return {name: value for name, value in options.items() if str(name).replace("-", "_") not in bounds}


def _same_inputs(known: Mapping[str, Any], step: Step, given: Mapping[str, Any], out: Path) -> bool:
    """Return whether a completed step differs from what is asked now by its options alone."""
    state = _state(step, given, out)
    return state is not None and all(known.get(name) == state[name] for name in ("stage", "inputs", "prompts"))


def _run(step: Step, given: Mapping[str, Any], out: Path) -> bool:
    """Run a step in a process of its own; return False if the user stopped it.

    Raises:
        StepFailedError: If it fails.
    """
    out.mkdir(parents=True, exist_ok=True)
    config, folder = out / f"{step.name}.yaml", out / step.name
    options = yaml.safe_dump({**given, "out": str(folder)}, sort_keys=False, allow_unicode=True)
    # A run that was completed from other inputs is set aside. One that was stopped under the same options goes on, and
    # so does one that may only use more than before: what it has paid for is not paid for again.
    begun, known = _options_in(config), _known_state(folder)
    same_inputs = known is None or _same_inputs(known, step, given, out)
    same_options = begun is not None and _decisive(step, begun) == _decisive(step, yaml.safe_load(options))
    new = folder.exists() and not (same_inputs and same_options)
    (folder / "recipe.json").unlink(missing_ok=True)
    write_atomically(config, options)
    command = [sys.executable, "-m", f"pipelines.{step.stage}", "--config", str(config), *(["--new"] if new else [])]
    process = subprocess.Popen(command)
    while True:
        try:
            status = process.wait()
            break
        except KeyboardInterrupt:
            continue  # the step has had it as well, and ends in its own way
    if status in (INTERRUPTED, -2):
        return False
    if status:
        raise StepFailedError(
            f"step {step.name} ended with status {status}; its own line above says why", max(status, 1)
        )
    write_atomically(folder / "recipe.json", json.dumps(_state(step, given, out), indent=2, ensure_ascii=False) + "\n")
    return True


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
