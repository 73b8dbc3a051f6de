"""A recorded fine-tuning run with its model in memory, ready to be differentiated twice."""

from __future__ import annotations

import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from raters.influence.answers import AnswerLosses
from raters.influence.attention import make_twice_differentiable
from raters.influence.recording import FOLDER, read_examples
from raters.influence.trajectory import Trajectory
from raters.models.generation import LoadedModel
from raters.training_loss import OrdinalTerm
from raters.training_models import fingerprint_of, load_base, save_adapter, with_adapter
from raters.training_processes import QuietTraining


@dataclass(frozen=True)
class TunedRun:
    """A recorded run.

    Attributes:
        trajectory: Its steps.
        losses: Its model and examples.
        example_ids: (examples,).
        learned: (examples,) how many tokens of each are learned.
        loaded: The base, for its tokenizer and template.
        fingerprint: Of the base without an adapter.
    """

    trajectory: Trajectory
    losses: AnswerLosses
    example_ids: list[str]
    learned: list[int]
    loaded: LoadedModel
    fingerprint: str

    @classmethod
    def open(
        cls,
        folder: Path,
        adapter: Path,
        chat_template: str | None = None,
        rows_at_once: int = 8,
        last: int | None = None,
    ) -> TunedRun:
        """Read a seed's folder and load its base under its adapter, on a GPU if there is one.

        Args:
            folder: With trajectory/.
            adapter: Folder of the adapter that the run came to, for its shape.
            chat_template: In place of the base's own.
            rows_at_once: Examples that are read at once.
            last: The step up to which it is read; the run's last one if None.

        Raises:
            DataError: If no run was recorded there.
            ModelAccessError: If the base cannot be loaded.
        """
        with QuietTraining():
            return cls._open(folder, adapter, chat_template, rows_at_once, last)

    @classmethod
    def _open(
        cls, folder: Path, adapter: Path, chat_template: str | None, rows_at_once: int, last: int | None
    ) -> TunedRun:
        trajectory = Trajectory(folder / FOLDER)
        if last is not None:
            trajectory = trajectory.up_to(last)
        about = trajectory.header.about
        loaded = load_base(about["base"], about["dtype"], four_bit=False, chat_template=chat_template)
        rows = read_examples(folder / FOLDER)
        fingerprint = fingerprint_of(loaded)
        loaded = with_adapter(loaded, adapter)
        if torch.cuda.is_available():
            loaded.model.to("cuda")
        model = _frozen(loaded.model)
        longest = max((row["input_ids"] for row in rows), key=len)
        make_twice_differentiable(model.get_base_model(), torch.tensor([longest]))
        ordinal = None if about["ordinal"] is None else OrdinalTerm(**about["ordinal"])
        losses = AnswerLosses(
            model,
            trajectory.header,
            rows,
            loaded.generation.pad_token_id,
            ordinal=ordinal,
            rows_at_once=rows_at_once,
        )
        learned = [sum(label != -100 for label in row["labels"]) for row in rows]
        return cls(trajectory, losses, [row["example_id"] for row in rows], learned, loaded, fingerprint)


def _frozen(model: Any) -> Any:
    """Return a model of whose own weights none asks for a gradient: they are given as a vector."""
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    return model.eval()


def write_adapter(tuned: TunedRun, parameters: Any, folder: Path) -> None:
    """Write parameters (P,) as an adapter that PEFT and the hf backend load.

    Args:
        tuned: The run whose adapter they have the shape of.
        parameters: In the order of its header.
        folder: Where to write; what stands there is replaced.
    """
    named = tuned.trajectory.header.named(parameters)
    model = tuned.losses.model
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name in named:
                parameter.copy_(named[name])
    with QuietTraining(), tempfile.TemporaryDirectory(dir=folder.parent) as place:
        model.save_pretrained(place)
        save_adapter(Path(place), tuned.loaded, tuned.fingerprint, folder)
