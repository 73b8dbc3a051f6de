"""The processes and the global state of a training run: who writes, who waits, and what must stay as it was."""

from __future__ import annotations

import gc
import warnings
from typing import Any


def is_main() -> bool:
    """Return True on the process that writes and prints."""
    return bool(_state().is_main_process)


def num_processes() -> int:
    """Return how many processes share the run."""
    return int(_state().num_processes)


def wait() -> None:
    """Wait until all processes have come here."""
    _state().wait_for_everyone()


def from_main(values: list[Any]) -> list[Any]:
    """Return the first process's values on all of them."""
    if num_processes() == 1:
        return values
    from accelerate.utils import broadcast_object_list

    found: list[Any] = broadcast_object_list(values, from_process=0)
    return found


def _state() -> Any:
    import accelerate
    import torch

    return accelerate.PartialState(cpu=not torch.cuda.is_available())


class SameGenerators:
    """Leaves torch's global generators as they were: a rating must not change what training draws."""

    def __enter__(self) -> None:
        import torch

        self._before = torch.random.get_rng_state()

    def __exit__(self, *details: object) -> None:
        import torch

        torch.random.set_rng_state(self._before)


class QuietTraining:
    """Keeps the libraries' advice, progress bars and news of deprecated names off the terminal for a while."""

    def __enter__(self) -> None:
        import datasets
        import transformers

        self._chatter: Any = transformers.utils.logging
        self._level = self._chatter.get_verbosity()
        self._chatter.set_verbosity_error()
        self._chatter.disable_progress_bar()
        datasets.disable_progress_bars()
        self._warnings = warnings.catch_warnings()
        self._warnings.__enter__()
        warnings.simplefilter("ignore", FutureWarning)

    def __exit__(self, *details: object) -> None:
        self._warnings.__exit__(None, None, None)
        self._chatter.set_verbosity(self._level)
        self._chatter.enable_progress_bar()


def free_memory() -> None:
    """Give back what is no longer used."""
    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
