"""A rater as plain values that `judge` reads: the prompt in pieces, the scale, how it is sampled.

A prompt is taken apart by its syntax, not by trying it out: what stands for the item may stand in it once, as it is.
So an exported rater fills no template, and text that looks like one stays text.
"""

from __future__ import annotations

import keyword
import re
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any

from jinja2 import nodes

from raters.models import IN_PROCESS, STUDENT, check_spec
from raters.prompts import Prompt, sandbox
from raters.questions import Question
from raters.rater_files import RaterSpec
from raters.records import ConfigError, DataError, shown
from raters.scales import PairwiseScale

FORMAT = 1
_OF_ITEM = ("fields", "observations")
ADAPTER = "adapter"
"""Folder of the adapter in an export, and its name on the server."""


@dataclass(frozen=True, slots=True)
class Naming:
    """What an export is called, and how a harness's fields become an item.

    Attributes:
        name: Of scores, metrics and packages: an identifier.
        fields: Text fields of an item, in the order they are shown.
        output: The one that an evaluated system writes.
        served_model: Name of the model on the server; None for the rater's own.
    """

    name: str
    fields: tuple[str, ...]
    output: str
    served_model: str | None = None


def portable_record(spec: RaterSpec, naming: Naming) -> dict[str, Any]:
    """Return what `judge.Judge` is made of.

    Raises:
        ConfigError: If no exported rater can do what this one does, or no server can have its model.
    """
    if not spec.reasoning:
        raise ConfigError(
            f"rater of {spec.dimension.name}: rates without reasoning, by its model's probabilities of labels, which "
            "no exported rater sees; export one that reasons"
        )
    question = spec.question
    pieces = _pieces(question)
    fit = question.observations.as_record() if question.observations and question.needs_observations else None
    return {
        "format": FORMAT,
        "name": naming.name,
        "dimension": spec.dimension.name,
        "rater_sha256": spec.sha256,
        "spec": spec.model,
        "model": naming.served_model or served_model(spec),
        "embedded": spec.model == "embedded",
        "certified": bool(spec.certificate and spec.certificate.get("certified")),
        "fields": list(naming.fields),
        "output": naming.output,
        "scale": spec.dimension.scale.model_dump(mode="json"),
        "labels": spec.dimension.scale.describe(),
        "guideline": spec.dimension.guideline,
        "message": pieces[0],
        "field": pieces[1],
        "observations": fit,
        "sampling": {
            "temperature": float(spec.settings.temperature),
            "top_p": float(spec.settings.top_p),
            "max_tokens": spec.settings.max_tokens,
            "draws": spec.draws,
            "aggregate": spec.aggregate,
            "seed": spec.seed,
        },
    }


def served_model(spec: RaterSpec) -> str:
    """Return the name of a rater's model on a server; `embedded` is not served.

    Raises:
        ConfigError: If nobody can serve it.
    """
    provider, name = check_spec(spec.model)
    if spec.model == STUDENT:
        raise ConfigError(
            f"model {STUDENT}: works inside this project alone; export a rater of a served model, or serve its folder "
            f"({name}) and give --served-model with the name it has there"
        )
    return ADAPTER if provider in IN_PROCESS and spec.adapter else name or spec.model


def serving_line(spec: RaterSpec) -> str | None:
    """Return the command that serves a rater's model on this machine; None if it needs none."""
    provider, name = check_spec(spec.model)
    if provider not in IN_PROCESS:
        return None
    extra = f" --enable-lora --lora-modules {ADAPTER}=./{ADAPTER}" if spec.adapter else ""
    return f"vllm serve {name}{extra}"


def adapter_files(spec: RaterSpec) -> dict[str, Path]:
    """Return the files of a rater's adapter by their names; none if it has no adapter.

    Raises:
        DataError: If the folder is missing or empty.
    """
    if spec.adapter is None:
        return {}
    folder = Path(spec.adapter)
    found = sorted(path for path in folder.iterdir() if path.is_file()) if folder.is_dir() else []
    if not found:
        raise DataError(f"adapter {spec.adapter}: no such folder, or an empty one; put it where rater.yaml says")
    return {path.name: path for path in found}


def as_name(text: str) -> str:
    """Return a text as an identifier in ASCII."""
    name = re.sub(r"\W+", "_", text, flags=re.ASCII).strip("_").lower()
    return f"rater_{name}" if not name[:1].isalpha() else name


def naming_of(
    spec: RaterSpec,
    of_corpus: Sequence[str],
    *,
    name: str | None = None,
    fields: Sequence[str] = (),
    output: str | None = None,
    served_model: str | None = None,
) -> Naming:
    """Return how an export is called, with what was not asked for taken from the rater and the corpus.

    Args:
        spec: The rater.
        of_corpus: Fields of the corpus's items; none if there is no corpus.
        name: As asked for.
        fields: As asked for.
        output: As asked for.
        served_model: As asked for.

    Raises:
        ConfigError: If nothing tells the fields, or one that is asked for is none.
    """
    scale, fit = spec.dimension.scale, spec.question.observations
    pair = scale.fields if isinstance(scale, PairwiseScale) else ()
    observed = () if fit is None or not spec.question.needs_observations else (*fit.fields, *filter(None, [fit.second]))
    found = tuple(fields) or tuple(of_corpus) or observed
    if not found:
        raise ConfigError(
            "--fields: missing, and rater.yaml does not tell which text fields an item has; give them in their order, "
            "such as --fields question reply, or --corpus"
        )
    for field in found:
        if found.count(field) > 1 or not field.strip() or not field.isprintable():
            raise ConfigError(f"--fields {shown(field)}: stands twice or is no name; give each field once")
    for field in (*pair, *(observed if fit and fields else ())):
        if field not in found:
            raise ConfigError(f"--fields {' '.join(found)}: the rater reads {field} as well; name it")
    described = fit.fields[-1:] if observed and fit else ()
    chosen = output or (*pair[1:], *described, found[-1])[0]
    if chosen not in found:
        raise ConfigError(f"--output-field {shown(chosen)}: is not one of the fields; give one of {', '.join(found)}")
    if name is not None and (not name.isidentifier() or not name.isascii() or keyword.iskeyword(name)):
        raise ConfigError(f"--name {shown(name)}: must be an identifier, such as helpfulness")
    return Naming(name or as_name(spec.dimension.name), found, chosen, served_model)


# --- the prompt in pieces ---------------------------------------------------------------------------------


def _pieces(question: Question) -> tuple[list[str], list[str]]:
    """Return a prompt, and what it shows of a field, as pieces: text and the name of a slot in turn."""
    prompt = question.prompt
    slot = next(name for name in _OF_ITEM if name in prompt.slots)
    syntax = sandbox().parse(prompt.text)
    place, node = _place_of(syntax, slot, prompt)
    values = {**question.constants, "observations": ""}
    told = f"{prompt.text}{values}"
    mark = next("\ue000" * length for length in count(1) if "\ue000" * length not in told)
    around, name, text = (f"{mark}{kind}{mark}" for kind in ("around", "name", "text"))
    if slot == "observations":
        output = syntax.body[place]
        assert isinstance(output, nodes.Output)
        at = next(at for at, part in enumerate(output.nodes) if part is node)
        output.nodes[at : at + 1] = [nodes.TemplateData(around), nodes.TemplateData(around)]
    else:
        ends = [nodes.Output([nodes.TemplateData(around)]) for _ in range(2)]
        syntax.body[place : place + 1] = [ends[0], node, ends[1]]
    values["fields"] = [(name, text)]
    filled = sandbox().from_string(syntax).render(**{slot: values[slot] for slot in prompt.slots})
    head, field, tail = filled.split(around)
    parts = re.split(f"({name}|{text})", field)
    return [head, slot, tail], [{name: "name", text: "text"}.get(part, part) for part in parts]


def _place_of(syntax: nodes.Template, slot: str, prompt: Prompt) -> tuple[int, nodes.Node]:
    """Return where in a template's body the item stands, and its node there.

    Raises:
        ConfigError: If it stands there more than once, or a template's logic hangs on it.
    """
    used = [name for name in syntax.find_all(nodes.Name) if name.name == slot]
    for place, node in enumerate(syntax.body):
        if len(used) != 1:
            break
        if slot == "observations" and isinstance(node, nodes.Output) and any(part is used[0] for part in node.nodes):
            return place, used[0]
        if isinstance(node, nodes.For) and node.iter is used[0] and _lists_plainly(node):
            return place, node
    raise ConfigError(
        f"prompt {prompt.name}: does more with {slot} than to show them once, each in the same way; an exported prompt "
        "may only do {% for name, text in fields %}…{{ name }}…{{ text }}…{% endfor %}"
    )


def _lists_plainly(loop: nodes.For) -> bool:
    target: Any = loop.target
    if loop.test or loop.else_ or loop.recursive or not isinstance(target, nodes.Tuple):
        return False
    names = [name.name for name in target.items if isinstance(name, nodes.Name)]
    shown_nodes = [part for node in loop.body if isinstance(node, nodes.Output) for part in node.nodes]
    plain = all(
        isinstance(part, nodes.TemplateData) or (isinstance(part, nodes.Name) and part.name in names)
        for part in shown_nodes
    )
    return (
        len(names) == 2 and len(set(names)) == 2 and all(isinstance(node, nodes.Output) for node in loop.body) and plain
    )
