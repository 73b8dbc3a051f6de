"""`rater.yaml`: a rater in one file, complete enough to be used anywhere.

Model, prompt and guideline stand in it in full, with the scale, the sampling settings and the fitted observations,
so that it works without the corpus and the checkout it came from. `seen` says which items its making has seen, by
hashes of their texts, so that agreement on them can be refused later.
"""

from __future__ import annotations

import base64
import hashlib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import numpy as np
import yaml
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, StrictStr, ValidationError, model_validator

from raters.corpora import Corpus
from raters.corpus_files import Dimension, first_problem
from raters.gold import AggregateMethod, aggregate_draws, default_method
from raters.journal import sha256_of, write_atomically
from raters.label_probabilities import label_texts
from raters.models.protocol import SamplingSettings
from raters.observations import Observations
from raters.prompts import prompt_from_text
from raters.questions import Question
from raters.records import MOST_DRAWS, DataError, JudgeseyeError, shown
from raters.scales import AnyScale, Scale

FORMAT = 1


@dataclass(frozen=True, slots=True)
class SeenItems:
    """Which items the making of a rater has seen.

    Attributes:
        hashes: (items,) sorted hashes of the items' texts, as `Corpus.content` has them.
    """

    hashes: NDArray[np.int64]

    @classmethod
    def none(cls) -> Self:
        """Return the record of a rater that has seen no item."""
        return cls(np.array([], np.int64))

    @classmethod
    def of(cls, corpus: Corpus, items: NDArray[np.int64]) -> Self:
        """Return the record of having seen some items of a corpus, by index."""
        return cls(np.unique(corpus.content[items]))

    def with_items(self, corpus: Corpus, items: NDArray[np.int64]) -> SeenItems:
        """Return the record of having seen some items more."""
        return SeenItems(np.union1d(self.hashes, corpus.content[items]))

    def united(self, other: SeenItems) -> SeenItems:
        """Return the record of having seen what either has."""
        return SeenItems(np.union1d(self.hashes, other.hashes))

    def touched(self, corpus: Corpus, items: NDArray[np.int64]) -> NDArray[np.int64]:
        """Return those of some items, by index, that were seen, or whose group holds an item that was."""
        seen_groups = np.unique(corpus.groups[np.isin(corpus.content, self.hashes)])
        return items[np.isin(corpus.groups[items], seen_groups)]


@dataclass(frozen=True)
class RaterSpec:
    """A rater: what it is asked, of which model, and how its draws become one verdict.

    Attributes:
        model: `provider/name`.
        adapter: LoRA adapter folder for `hf/...`, `vllm/...` or `student`.
        question: Dimension (scale, guideline), prompt and observations.
        settings: Temperature, top-p, most tokens.
        draws: Draws for an item, by default.
        aggregate: How they become one verdict.
        reasoning: False if it gives its verdict alone, rated by the expected value over labels where the model tells
            their probabilities.
        seed: Of its draws.
        seen: Items that its making has seen.
        certificate: What was measured of it; None before that.
        adapter_sha256: Hash of the adapter's weights, if it was made with this rater; wherever they lie, they are it.
    """

    model: str
    question: Question
    adapter: str | None = None
    settings: SamplingSettings = field(default_factory=SamplingSettings)
    draws: int = 1
    aggregate: AggregateMethod = "majority"
    reasoning: bool = True
    seed: int = 0
    seen: SeenItems = field(default_factory=lambda: SeenItems.none())
    certificate: Mapping[str, Any] | None = None
    adapter_sha256: str | None = None

    @property
    def dimension(self) -> Dimension:
        """The dimension it rates."""
        return self.question.dimension

    @property
    def asked_settings(self) -> SamplingSettings:
        """What its model is asked with: its settings, and without reasoning the log-probabilities of the labels."""
        texts = None if self.reasoning else label_texts(self.dimension.scale) or None
        return replace(self.settings, label_logprobs=texts)

    @cached_property
    def sha256(self) -> str:
        """Hash of all that decides a verdict: everything but `seen`, `certificate`, and how many draws there are."""
        record = self.as_record()
        for name in ("seen", "certificate", "sha256"):
            record.pop(name, None)
        record["sampling"] = {**record["sampling"], "draws": None, "aggregate": None}
        record["prompt"] = record["prompt"]["text"]
        if self.adapter_sha256 is not None:
            record["adapter"] = None
        return sha256_of(yaml.safe_dump(record, sort_keys=True))

    def certified(self, certificate: Mapping[str, Any]) -> RaterSpec:
        """Return the rater with a certificate in it."""
        return replace(self, certificate=certificate)

    def as_record(self) -> dict[str, Any]:
        """Return the rater as it stands in rater.yaml, but for its own hash."""
        dimension, prompt, observations = self.dimension, self.question.prompt, self.question.observations
        return {
            "format": FORMAT,
            "model": self.model,
            "adapter": self.adapter,
            "dimension": dimension.name,
            "scale": dimension.scale.model_dump(mode="json"),
            "guideline": dimension.guideline,
            "prompt": {"name": prompt.name, "text": prompt.text},
            "observations": observations.as_record() if observations and self.question.needs_observations else None,
            "sampling": {
                "temperature": float(self.settings.temperature),
                "top_p": float(self.settings.top_p),
                "max_tokens": self.settings.max_tokens,
                "draws": self.draws,
                "aggregate": self.aggregate,
                "reasoning": self.reasoning,
                "seed": self.seed,
            },
            "hashes": {
                "guideline": dimension.guideline_sha256,
                "prompt": prompt.sha256,
                **({} if self.adapter_sha256 is None else {"adapter": self.adapter_sha256}),
            },
            "seen": {"items": len(self.seen.hashes), "hashes": base64.b64encode(self.seen.hashes.tobytes()).decode()},
            "certificate": None if self.certificate is None else dict(self.certificate),
        }

    def write(self, path: Path) -> None:
        """Write rater.yaml.

        Raises:
            StorageError: If it cannot be written.
        """
        write_atomically(path, rater_text(self.as_record()))


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as blocks, for people to read, and nothing by reference."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


class _Loader(yaml.SafeLoader):
    """Reads no references: our own files have none, and a few lines of them can unfold to gigabytes."""

    def compose_node(self, parent: Any, index: Any) -> Any:
        if self.check_event(yaml.AliasEvent):
            raise yaml.YAMLError("references (&, *) are not read")
        return super().compose_node(parent, index)


def _as_block(dumper: yaml.SafeDumper, text: str) -> yaml.ScalarNode:
    style = "|" if "\n" in text else None
    if any(mark in text for mark in "\x85\u2028\u2029"):
        style = '"'  # other line breaks than \n are read back as \n from a block
    return dumper.represent_scalar("tag:yaml.org,2002:str", text, style=style)


_Dumper.add_representer(str, _as_block)


def rater_text(record: Mapping[str, Any]) -> str:
    """Return a rater's record, as `RaterSpec.as_record` has it, as the text of a rater.yaml."""
    return yaml.dump(dict(record), Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=110)


class _Strict(BaseModel):
    model_config = ConfigDict(extra="forbid", allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, data: object) -> object:
        for name, value in data.items() if isinstance(data, dict) else ():
            if isinstance(value, bool) and name != "reasoning":
                raise ValueError(f"{name} is {value}, not a number")
        return data


class _PromptEntry(_Strict):
    name: StrictStr
    text: StrictStr


class _SamplingEntry(_Strict):
    temperature: float = Field(ge=0)
    top_p: float = Field(gt=0, le=1)
    max_tokens: int = Field(ge=1)
    draws: int = Field(ge=1, le=MOST_DRAWS)
    aggregate: AggregateMethod
    reasoning: bool
    seed: int


class _HashesEntry(_Strict):
    guideline: StrictStr
    prompt: StrictStr
    adapter: StrictStr | None = None


class _SeenEntry(_Strict):
    items: int = Field(ge=0)
    hashes: StrictStr


class _RaterFile(_Strict):
    format: Literal[1]
    model: StrictStr
    adapter: StrictStr | None
    dimension: StrictStr
    scale: Scale
    guideline: StrictStr = Field(min_length=1)
    prompt: _PromptEntry
    observations: dict[str, Any] | None
    sampling: _SamplingEntry
    hashes: _HashesEntry
    seen: _SeenEntry
    certificate: dict[str, Any] | None


def read_rater(path: Path) -> RaterSpec:
    """Return the rater of a rater.yaml; a relative adapter is taken from the file's folder.

    Raises:
        DataError: If the file is missing or is not a rater, or its guideline or prompt are not those it was written
            with.
    """
    try:
        raw = yaml.load(path.read_text(encoding="utf-8"), _Loader)
        file = _RaterFile.model_validate(raw)
    except FileNotFoundError as error:
        raise DataError(f"{path}: no such file; give the rater.yaml of a run") from error
    except IsADirectoryError as error:
        raise DataError(f"{path}: is a folder; give the rater.yaml in it") from error
    except ValidationError as error:
        raise DataError(f"{path}: {first_problem(error)}; give the rater.yaml of a run") from error
    except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
        raise DataError(f"{path}: cannot be read ({' '.join(str(error).split())}); mend the file") from error
    dimension = Dimension(file.dimension, file.scale, file.guideline)
    try:
        prompt = prompt_from_text(file.prompt.name, file.prompt.text)
    except JudgeseyeError as error:
        raise DataError(f"{path}: {error}") from error
    for name, now, then in (
        ("guideline", dimension.guideline_sha256, file.hashes.guideline),
        ("prompt", prompt.sha256, file.hashes.prompt),
    ):
        if now != then:
            raise DataError(
                f"{path}: the {name} is not the one the file was written with (sha256 {now}, not {shown(then)}); undo "
                f"the change, or make a new rater of it: put that sha256 into hashes.{name}, and certificate: null"
            )
    try:
        seen = np.frombuffer(base64.b64decode(file.seen.hashes, validate=True), np.int64)
    except ValueError as error:
        raise DataError(f"{path}: seen.hashes: {error}; undo the change") from error
    if len(seen) != file.seen.items:
        raise DataError(f"{path}: seen: says {file.seen.items} items and lists {len(seen)}; undo the change")
    try:
        observations = None if file.observations is None else Observations.from_record(file.observations)
        question = Question(dimension, prompt, observations)
        aggregate_draws(np.array([]), file.sampling.aggregate, file.scale)
    except JudgeseyeError as error:
        raise DataError(f"{path}: {error}") from error
    if "observations" in prompt.slots and observations is None:
        raise DataError(f"{path}: observations: missing, and its prompt shows them; give the rater.yaml of a run")
    sampling = file.sampling
    spec = RaterSpec(
        model=file.model,
        question=question,
        adapter=_adapter(path, file),
        adapter_sha256=file.hashes.adapter,
        settings=SamplingSettings(sampling.temperature, sampling.top_p, sampling.max_tokens),
        draws=sampling.draws,
        aggregate=sampling.aggregate,
        reasoning=sampling.reasoning,
        seed=sampling.seed,
        seen=SeenItems(seen),
        certificate=file.certificate,
    )
    certified = (file.certificate or {}).get("rater_sha256", spec.sha256)
    if certified != spec.sha256:
        raise DataError(
            f"{path}: certificate: is of another rater (sha256 {shown(certified)}, this is {spec.sha256}); undo the "
            "change, or set certificate: null"
        )
    return spec


def adapter_sha256(folder: Path) -> str:
    """Return the hash of an adapter's weights.

    Raises:
        DataError: If they cannot be read.
    """
    path = folder / "adapter_model.safetensors"
    try:
        with path.open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read ({error.strerror}); give the adapter's folder as it was made"
        ) from error


def seen_by_adapter(folder: Path | None) -> SeenItems:
    """Return which items an adapter has seen, as the rater.yaml that was made with it says; none if there is none."""
    if folder is None:
        return SeenItems.none()
    try:
        made_with = read_rater(folder.parent / "rater.yaml")
    except JudgeseyeError:
        return SeenItems.none()
    return made_with.seen if made_with.adapter_sha256 == adapter_sha256(folder) else SeenItems.none()


def _adapter(path: Path, file: _RaterFile) -> str | None:
    """Return the folder of a rater's adapter.

    Raises:
        DataError: If its weights are not those that the file was written with.
    """
    adapter, then = _beside(path, file.adapter), file.hashes.adapter
    if adapter is not None and then is not None and (now := adapter_sha256(Path(adapter))) != then:
        raise DataError(
            f"{path}: adapter {adapter} is not the one the file was written with (sha256 {now[:12]}…, not "
            f"{then[:12]}…); give that one"
        )
    return adapter


def _beside(path: Path, adapter: str | None) -> str | None:
    """Return an adapter's folder, from the file's own folder if it is there."""
    here = os.path.join(path.parent, adapter or "")
    return here if adapter and os.path.isdir(here) else adapter


def default_aggregate(scale: AnyScale) -> AggregateMethod:
    """Return how draws become one verdict if nothing else is asked for: the mean, or the majority without order."""
    return "majority" if default_method(scale) == "majority" else "mean"
