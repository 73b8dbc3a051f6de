"""Load and fill the templates of `prompts/`.

Templates are Jinja2 in a sandbox. What fills a slot is data: it is never read as template syntax, and
markup with a meaning to raters (answer tags, fences, control tokens) is made harmless in an item's text, so
that an item can neither close its fence nor pass for an answer.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import StrictUndefined, Template, TemplateError, meta
from jinja2.sandbox import SandboxedEnvironment

from raters.journal import sha256_of
from raters.records import ConfigError
from raters.resources import resource_folder

_RESERVED = re.compile(
    r"<(?=\s*/?\s*(?:rating|think|item|field|system|user|assistant|s|start_of_turn|end_of_turn|bos|eos|pad|unk"
    r"|guideline|reasoning|right_reasoning|wrong_reasoning|case|instructions|criteria|critiques|edit)\b|[|｜])",
    re.IGNORECASE,
)
_HARMLESS = "‹"


@dataclass(frozen=True)
class Prompt:
    """A prompt template.

    Attributes:
        name: As it was asked for.
        slots: Names that `fill` needs, all and no others.
        sha256: Hash of the template's text.
        text: The template.
    """

    name: str
    slots: frozenset[str]
    sha256: str
    text: str
    _template: Template

    def fill(self, **values: Any) -> str:
        """Return the template with every slot filled.

        Raises:
            ConfigError: If a slot is missing or a value has no slot, or the template fails.
        """
        missing, unused = self.slots - values.keys(), values.keys() - self.slots
        if missing or unused:
            raise ConfigError(
                f"prompt {self.name}: "
                + "; ".join(
                    f"{word} {', '.join(sorted(names))}"
                    for word, names in (("missing slots", missing), ("no slot for", unused))
                    if names
                )
            )
        try:
            return self._template.render(**values)
        except Exception as error:  # a template can fail in any way that Python can
            raise ConfigError(
                f"prompt {self.name}: fails when it is filled ({type(error).__name__}: {error}); mend the template"
            ) from error


def load_prompt(name: str) -> Prompt:
    """Return the prompt `name` of `prompts/` (such as `rate` or `embedded/rate`), or of a file path.

    Raises:
        ConfigError: If there is no such prompt or its syntax is broken.
    """
    folder = resource_folder("prompts")
    path = Path(name) if name.endswith(".md") else folder / f"{name}.md"
    if not path.is_file():
        known = ", ".join(sorted(str(p.relative_to(folder).with_suffix("")) for p in folder.rglob("*.md")))
        raise ConfigError(f"prompt {name!r}: no such prompt; give a .md file or one of: {known}")
    try:
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"prompt {path}: {error}; mend the template") from error
    return prompt_from_text(name, text)


def prompt_from_text(name: str, text: str) -> Prompt:
    """Return the prompt whose template is `text`; `name` is for messages and records.

    Raises:
        ConfigError: If its syntax is broken.
    """
    environment = sandbox()
    try:
        slots = meta.find_undeclared_variables(environment.parse(text))
        return Prompt(name, frozenset(slots), sha256_of(text), text, environment.from_string(text))
    except (TemplateError, RecursionError) as error:
        raise ConfigError(f"prompt {name}: {error}; mend the template") from error


def sandbox() -> SandboxedEnvironment:
    """Return the environment that templates are read and filled in."""
    return SandboxedEnvironment(undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, autoescape=False)


def harmless(text: str) -> str:
    """Return an item's text with the `<` of reserved markup replaced by `‹`; all else stays as it is."""
    return _RESERVED.sub(_HARMLESS, text)
