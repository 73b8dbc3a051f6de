"""A run drawn by several workers: each has a shard of the items and a journal of its own, and all become one journal.

Shard i of n has every n-th item of the run's order of work, from the i-th on. A draw's seed comes from what the draw is
(see `drawing.draw_seed`), so who makes it decides nothing, and the merged journal holds what one worker would have
written, in another order. A worker that dies takes with it what was in flight, and whoever has its shard next goes on
from its journal. Workers are processes of this machine, or actors of Ray Data (Moritz et al. 2018, "Ray: A Distributed
Framework for Emerging AI Applications", OSDI) on any number of machines that share the run's folder.
"""

from __future__ import annotations

import contextlib
import ctypes
import importlib.util
import json
import multiprocessing
import os
import shutil
import signal
import socket
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

import raters.records as records
from raters.journal import Record, parse_line, replacing, write_atomically
from raters.records import ConfigError, JudgeseyeError, ModelError, StorageError
from raters.runs import hold

FOLDER, _ABOUT = "shards", "shards.json"
_PR_SET_PDEATHSIG = 1
_REFRESH_SECONDS, _CONNECT_SECONDS = 0.5, 5.0

Draw = Callable[["Shard"], bool]
"""Makes the draws that a shard still misses; returns False if the user stopped it."""
Open = Callable[..., Draw]
"""Takes plain values and returns a `Draw`; a function of a module, so that a worker elsewhere finds it."""


@dataclass(frozen=True, slots=True)
class Shard:
    """A worker's part of a run.

    Attributes:
        folder: Of all shards of the run.
        place: Which one, from 0.
        count: How many there are.
    """

    folder: Path
    place: int
    count: int

    @property
    def journal(self) -> Path:
        """Where its draws are."""
        return self.folder / f"{self.place}.jsonl"

    @property
    def known(self) -> Path:
        """Where the numbers are of what was drawn for it before the run had shards."""
        return self.folder / f"{self.place}.npz"

    def rows(self, rows: int) -> slice:
        """Return which of so many rows it has."""
        return slice(self.place, rows, self.count)

    def first_rows(self, rows: int) -> int:
        """Return how many of the run's first rows it has; they are its own first ones."""
        return len(range(self.place, rows, self.count))

    def read_known(self) -> Mapping[str, NDArray[Any]]:
        """Return the arrays that `Shards.begin` was given for it."""
        with np.load(self.known, allow_pickle=False) as saved:
            return dict(saved)


class Shards:
    """The shards of a run, from their beginning until they are merged.

    Args:
        journal: The run's own, which nobody appends to meanwhile.
        count: How many shards.

    Raises:
        ConfigError: If the run has shards already, and another number of them.
    """

    def __init__(self, journal: Path, count: int) -> None:
        """See what is there; nothing is made yet."""
        self.journal, self.folder = journal, journal.parent / FOLDER
        self.all = [Shard(self.folder, place, count) for place in range(count)]
        self._base = journal.stat().st_size if journal.exists() else 0
        self._counted = [(0, 0)] * count
        self._seen = [0] * count
        if (about := _about(self.folder)) is not None:
            if about["shards"] != count:
                raise ConfigError(
                    f"--workers {count}: the run in {journal.parent} was begun by {about['shards']} workers; give "
                    f"--workers {about['shards']} until it is done"
                )
            self._base = about["base"]

    def begin(self, known: Callable[[Shard], Mapping[str, NDArray[Any]]]) -> None:
        """Make the folder, with what is known of each shard from the run's own journal.

        Raises:
            StorageError: If it cannot be written.
        """
        try:
            self.folder.mkdir(exist_ok=True)
        except OSError as error:
            raise StorageError(f"{self.folder}: cannot be made ({error.strerror}); mend that and try again") from error
        self._note(merged=False)
        for shard in self.all:
            with replacing(shard.known) as file:
                np.savez(file, **known(shard))  # type: ignore[arg-type]

    def draws(self) -> int:
        """Return how many lines the journals of all shards have by now."""
        for shard in self.all:
            size, lines = self._counted[shard.place]
            if shard.journal.exists():
                with shard.journal.open("rb") as file:
                    file.seek(size)
                    while block := file.read(1 << 20):
                        size, lines = size + len(block), lines + block.count(b"\n")
                self._counted[shard.place] = (size, lines)
        return sum(lines for _, lines in self._counted)

    def new_records(self) -> Iterator[Record]:
        """Yield the records that the journals of all shards have got since the last time; half a line waits."""
        for place, shard in enumerate(self.all):
            if not shard.journal.exists():
                continue
            with shard.journal.open("rb") as file:
                file.seek(self._seen[place])
                for line in file:
                    if not line.endswith(b"\n"):
                        break
                    self._seen[place] += len(line)
                    yield parse_line(line, f"{shard.journal} at byte {self._seen[place]}")

    def merge(self) -> None:
        """Append the journals of all shards to the run's own, and remove them; for when all shards are done.

        A merge that was cut off is done again from its beginning.

        Raises:
            StorageError: If there is no room.
        """
        try:
            with self.journal.open("ab") as whole:
                whole.truncate(self._base)
                for shard in self.all:
                    if shard.journal.exists():
                        with shard.journal.open("rb") as part:
                            shutil.copyfileobj(part, whole, 1 << 20)
                whole.flush()
                os.fsync(whole.fileno())
        except OSError as error:
            with contextlib.suppress(OSError):  # what does not fit is in the shards still
                os.truncate(self.journal, self._base)
            raise StorageError(
                f"{self.journal}: cannot be written ({error.strerror}); mend that and try again"
            ) from error
        self._note(merged=True)
        shutil.rmtree(self.folder)

    def _note(self, *, merged: bool) -> None:
        about = {"shards": len(self.all), "base": self._base, "merged": merged}
        write_atomically(self.folder / _ABOUT, json.dumps(about) + "\n")


def _about(folder: Path) -> dict[str, Any] | None:
    """Return what a folder of shards says of itself; None if there are none, or they are merged."""
    try:
        about = json.loads((folder / _ABOUT).read_text(encoding="utf-8"))
        return None if about["merged"] else {"shards": int(about["shards"]), "base": int(about["base"])}
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(f"{folder / _ABOUT}: cannot be read ({error}); give another --out") from error


def clear_up(journal: Path) -> None:
    """Make a run's own journal fit to be read: without half a merge, and without shards that are merged already."""
    folder = journal.parent / FOLDER
    if not folder.exists():
        return
    if (about := _about(folder)) is None:
        shutil.rmtree(folder)
    elif journal.exists() and journal.stat().st_size > about["base"]:
        os.truncate(journal, about["base"])


def unfinished(run: Path) -> int | None:
    """Return by how many workers a run was begun that is to be gone on with; None if it has no shards."""
    about = _about(run / FOLDER)
    return None if about is None else int(about["shards"])


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a worker ended: it is done, was stopped, or failed with an error of `records`."""

    status: Literal["done", "stopped", "failed"]
    kind: str = ""
    message: str = ""


def draw_shard(draw: Draw, shard: Shard) -> Outcome:
    """Draw a shard, alone: where another worker still has it, as after a network was cut, this one fails."""
    try:
        with hold(shard.folder / f"{shard.place}.lock", f"shard {shard.place} in {shard.folder}"):
            return Outcome("done" if draw(shard) else "stopped")
    except JudgeseyeError as error:
        return Outcome("failed", type(error).__name__, str(error))
    except OSError as error:
        return Outcome("failed", "StorageError", f"{error.filename or shard.folder}: {error.strerror or error}")
    except KeyboardInterrupt:
        return Outcome("stopped")


def conclude(outcomes: Sequence[Outcome]) -> bool:
    """Return True if all are done, False if the user stopped one.

    Raises:
        JudgeseyeError: What the first one that failed had to say.
    """
    for outcome in outcomes:
        if outcome.status == "failed":
            kind: type[JudgeseyeError] = getattr(records, outcome.kind, JudgeseyeError)
            raise kind(outcome.message)
    return all(outcome.status == "done" for outcome in outcomes)


# --- processes of this machine ----------------------------------------------------------------------------


def in_processes(open_: Open, arguments: Sequence[Any], shards: Shards, refresh: Callable[[], None]) -> list[Outcome]:
    """Draw every shard in a process of its own, and return how each ended.

    Ctrl-C and SIGTERM go to this process alone, which hands them on, so that a terminal's and another process's do the
    same. Workers die with this process.

    Args:
        open_: See `Open`.
        arguments: Its own.
        shards: What to draw.
        refresh: Called twice a second.
    """
    context = multiprocessing.get_context("spawn")
    ends: list[Connection] = []
    processes: list[multiprocessing.context.SpawnProcess] = []
    with _forwarding(processes):
        for shard in shards.all:
            end, theirs = context.Pipe(duplex=False)
            process = context.Process(target=_work, args=(theirs, open_, arguments, shard, os.getpid()), daemon=True)
            process.start()
            theirs.close()
            ends.append(end)
            processes.append(process)
        waiting = list(ends)
        while waiting:
            ready = wait(waiting, _REFRESH_SECONDS)
            waiting = [end for end in waiting if end not in ready]
            refresh()
        outcomes = [_received(end) for end in ends]
        for process in processes:
            process.join()
    return outcomes


def _received(end: Connection) -> Outcome:
    try:
        outcome = end.recv()
        assert isinstance(outcome, Outcome)
        return outcome
    except EOFError:
        return Outcome("failed", ModelError.__name__, "a worker was killed; give the same command again to go on")


@contextlib.contextmanager
def _forwarding(processes: Sequence[Any]) -> Iterator[None]:
    def forward(number: int, frame: FrameType | None) -> None:
        for process in processes:
            if process.is_alive():
                os.kill(process.pid, number)

    before = {number: signal.signal(number, forward) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def _work(end: Connection, open_: Open, arguments: Sequence[Any], shard: Shard, starter: int) -> None:
    """Draw a shard in a process of its own, which ends with the one that started it."""
    os.setsid()
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    if os.getppid() != starter:  # it died before it could be watched
        os._exit(1)
    with (shard.folder / f"{shard.place}.log").open("a", encoding="utf-8") as log:
        os.dup2(log.fileno(), 2)  # or the progress of all of them would be on the terminal at once
    end.send(_opened_and_drawn(open_, arguments, shard))


def _opened_and_drawn(open_: Open, arguments: Sequence[Any], shard: Shard) -> Outcome:
    try:
        return draw_shard(open_(*arguments), shard)
    except JudgeseyeError as error:
        return Outcome("failed", type(error).__name__, str(error))
    except KeyboardInterrupt:
        return Outcome("stopped")


# --- actors of Ray Data -----------------------------------------------------------------------------------


class _Actor:
    """A worker of Ray Data: it opens its model client or engine once and draws the shards it is given."""

    def __init__(self, open_: Open, arguments: Sequence[Any], folder: str, count: int, home: str) -> None:
        if Path(home).is_dir():
            os.chdir(home)  # where relative paths of the options are meant
        self._open, self._arguments = open_, arguments
        self._folder, self._count = Path(folder), count

    def __call__(self, batch: Mapping[str, NDArray[Any]]) -> dict[str, list[Any]]:
        found = [
            _opened_and_drawn(self._open, self._arguments, Shard(self._folder, int(place), self._count))
            for place in batch["place"]
        ]
        columns = {name: [getattr(outcome, name) for outcome in found] for name in ("status", "kind", "message")}
        return {"place": batch["place"].tolist(), **columns}


def check_ray(address: str | None) -> None:
    """Refuse at once what Ray would try for a minute, or fail at with a page.

    Args:
        address: See `on_ray`.

    Raises:
        ConfigError: If Ray is not installed, or nobody listens at a `host:port`.
    """
    if importlib.util.find_spec("ray") is None:
        raise ConfigError("--engine ray: needs ray; pip install 'judgeseye[ray]', or give --engine local")
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit() and "/" not in host:
        try:
            socket.create_connection((host, int(port)), _CONNECT_SECONDS).close()
        except (OSError, OverflowError) as error:
            reason = f"no cluster answers ({error}); start it, or leave it out"
            raise ConfigError(f"--ray-address {address}: {reason}") from error


def on_ray(open_: Open, arguments: Sequence[Any], shards: Shards, address: str | None, *, gpu: bool) -> list[Outcome]:
    """Draw every shard in an actor of Ray Data, and return how each ended; an actor that dies is replaced.

    Args:
        open_: See `Open`.
        arguments: Its own.
        shards: What to draw; their folder must be the same one on all machines.
        address: Of a cluster; one on this machine is started if None and RAY_ADDRESS is not set.
        gpu: Give each actor a GPU, if the cluster has any.

    Raises:
        ConfigError: If no cluster answers.
    """
    import ray
    import ray.data

    count = len(shards.all)
    try:
        ray.init(address=address, log_to_driver=False, logging_level="ERROR")
    except (ConnectionError, RuntimeError, ValueError) as error:
        raise ConfigError(
            f"--ray-address {address}: no cluster answers ({error}); start it, or leave it out"
        ) from error
    try:
        context = ray.data.DataContext.get_current()
        context.enable_progress_bars = False
        places = ray.data.from_items([{"place": place} for place in range(count)], override_num_blocks=count)
        drawn = places.map_batches(
            _Actor,
            fn_constructor_args=(open_, arguments, str(shards.folder.resolve()), count, os.getcwd()),
            batch_size=1,
            compute=ray.data.ActorPoolStrategy(size=count, max_tasks_in_flight_per_actor=1),
            num_cpus=1,
            num_gpus=1 if gpu and ray.cluster_resources().get("GPU") else None,
        )
        rows = sorted(drawn.take_all(), key=lambda row: int(row["place"]))
        return [Outcome(row["status"], row["kind"], row["message"]) for row in rows]
    finally:
        ray.shutdown()
