"""How far an attribution has come, in one file, so that one that was killed goes on from there.

The file is replaced as a whole: a reader finds it as it was after one step or after a later one.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch

from raters.influence.trajectory import write_tensors
from raters.records import DataError


@dataclass(frozen=True)
class Kept:
    """How far it has come.

    Attributes:
        step: The last step, or stored state, that is done.
        done: How much of the work that is, as its progress is counted.
        tensors: What it goes on with, by name.
    """

    step: int
    done: int
    tensors: dict[str, torch.Tensor]

    def write(self, path: Path | None) -> None:
        """Write it, if it is to be kept at all.

        Raises:
            StorageError: If it cannot be written.
        """
        if path is not None:
            write_tensors(path, self.tensors, {"step": str(self.step), "done": str(self.done)})

    @classmethod
    def read(cls, path: Path | None) -> Kept | None:
        """Return what was kept; None if nothing was.

        Raises:
            DataError: If the file is damaged.
        """
        from safetensors import SafetensorError, safe_open

        if path is None or not path.exists():
            return None
        try:
            with safe_open(str(path), "pt") as file:
                told = file.metadata() or {}
                tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 - it is no mapping
            return cls(int(told["step"]), int(told["done"]), tensors)
        except (SafetensorError, KeyError, OSError) as error:
            raise DataError(
                f"{path}: cannot be gone on from ({type(error).__name__}: {error}); remove it and give the same "
                "command again"
            ) from error
