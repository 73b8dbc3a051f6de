"""A run's folder: what it was made from, whether the same command may go on in it, and its manifest.

A run is known by its *identity*: everything that decides what its records mean. The same command finds its
own folder and continues; a command that differs is refused with the difference named, so that records of
two settings never mix.
"""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import platform
import re
import subprocess
from collections.abc import Iterator, Mapping
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import Any

from raters.corpora import Corpus
from raters.journal import write_atomically
from raters.records import ConfigError

MANIFEST = "manifest.json"
LOCK = ".lock"
_VERSIONED = ("judgeseye", "numpy", "jinja2", "openai", "torch", "transformers", "peft")


class RunFolder:
    """The output folder of one stage. Nothing is made on disk before `create`.

    Args:
        path: Where the run is, or will be.
        stage: The stage's name.
        identity: What decides the meaning of the records: plain values by name.

    Attributes:
        previous: The manifest of the run to be continued; empty for a new one.

    Raises:
        ConfigError: If the folder holds something else, another stage, or a run of another identity, or
            cannot be written, or another process is writing it.
    """

    def __init__(self, path: Path, stage: str, identity: Mapping[str, Any], *, new: bool = False) -> None:
        """Check the folder; with `new`, a run that stands there is kept under another name."""
        self.path = path
        self.stage = stage
        self.identity = json.loads(json.dumps(identity))
        self.previous: dict[str, Any] = {}
        self._set_aside = False
        self._lock: int | None = None
        self._check_writable()
        # A run that was killed while it wrote its first manifest has left nothing but that.
        leftovers = {LOCK, f"{MANIFEST}.partial"}
        if path.exists() and any(entry.name not in leftovers for entry in path.iterdir()):
            manifest = self._read_manifest()
            if new:
                self._set_aside = True
            else:
                self._check_same(manifest)
                self.previous = manifest
            self._take_lock()

    def create(self, manifest: Mapping[str, Any]) -> None:
        """Make the folder, with the manifest of a run that has begun; an earlier run is moved aside."""
        if self._set_aside:
            set_aside(self.path)
            self.release()
            self._set_aside = False
        self.path.mkdir(parents=True, exist_ok=True)
        self._take_lock()
        if not self.previous and (self.path / MANIFEST).exists():
            raise ConfigError(f"--out {self.path}: another process has made a run there; give the same command again")
        self.write_manifest(manifest)

    def write_manifest(self, manifest: Mapping[str, Any]) -> None:
        """Write `manifest.json`: stage, identity, and what the stage adds."""
        record = {"stage": self.stage, "identity": self.identity, **manifest}
        write_atomically(self.path / MANIFEST, json.dumps(record, indent=2, ensure_ascii=False) + "\n")

    def release(self) -> None:
        """Let other processes write the folder."""
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None

    def _take_lock(self) -> None:
        """Hold the folder until `release`, or the end of the process, however it comes."""
        if self._lock is not None:
            return
        lock = _locked(self.path / LOCK, f"--out {self.path}")
        self._lock = lock

    def _check_writable(self) -> None:
        place = self.path
        try:
            str(place).encode()
            while not place.exists() and place != place.parent:
                place = place.parent
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else "not a name in UTF-8"
            raise ConfigError(f"--out {str(self.path)[:80]}: {reason}; give another --out") from error
        if not place.is_dir():
            raise ConfigError(f"--out {self.path}: {place} is a file, not a folder; give another --out")
        if not os.access(place, os.W_OK | os.X_OK):
            raise ConfigError(f"--out {self.path}: {place} cannot be written; give another --out")

    def _read_manifest(self) -> dict[str, Any]:
        try:
            manifest = json.loads((self.path / MANIFEST).read_text(encoding="utf-8"))
            if isinstance(manifest["identity"], dict) and manifest["stage"]:
                return dict(manifest)
        except (OSError, ValueError, KeyError, TypeError):
            pass
        raise ConfigError(f"--out {self.path}: holds files but no run (no {MANIFEST}); give another --out")

    def _check_same(self, manifest: Mapping[str, Any]) -> None:
        if manifest["stage"] != self.stage:
            raise ConfigError(
                f"--out {self.path}: belongs to a run of {manifest['stage']}, not {self.stage}; give another --out"
            )
        differences = list(_differences("", manifest["identity"], self.identity))
        if differences:
            raise ConfigError(
                f"--out {self.path}: belongs to another run ({'; '.join(differences)}); "
                "give another --out, or --new to start over (the old run is kept beside it)"
            )


def set_aside(folder: Path) -> None:
    """Give a folder a name beside its own that nothing has yet."""
    number = 1
    while (aside := folder.with_name(f"{folder.name}.old-{number}")).exists():
        number += 1
    folder.rename(aside)


def _locked(path: Path, what: str) -> int:
    """Return the descriptor of a lock file that this process holds until it is closed.

    Raises:
        ConfigError: If another process holds it.
    """
    lock = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(lock)
        raise ConfigError(f"{what}: another process is writing it; wait for it, or give another --out") from error
    return lock


@contextlib.contextmanager
def hold(path: Path, what: str) -> Iterator[None]:
    """Hold a lock file during a block.

    Raises:
        ConfigError: If another process holds it; `what` is it that it writes.
    """
    lock = _locked(path, what)
    try:
        yield
    finally:
        os.close(lock)


def _differences(where: str, then: Mapping[str, Any], now: Mapping[str, Any]) -> Iterator[str]:
    """Yield what differs between two records; of a value too long to show, those of its own that differ."""
    for name in dict.fromkeys([*now, *then]):
        before, after = then.get(name), now.get(name)
        if before == after:
            continue
        cut = _short(before).endswith("…") or _short(after).endswith("…")
        if cut and isinstance(before, Mapping) and isinstance(after, Mapping):
            yield from _differences(f"{where}{name} ", before, after)
        else:
            yield f"{where}{name} was {_short(before)}, now {_short(after)}"


def run_name(corpus: Corpus, dimension: str) -> str:
    """Return the name of the folder of runs over a dimension of a corpus, safe as a file's name."""
    name = corpus.name if len(corpus.dimensions) == 1 else f"{corpus.name}-{dimension}"
    return re.sub(r"[^\w.-]+", "_", name).strip(".") or "corpus"


def stage_folder(given: str | None, corpus: Corpus, dimension: str, stage: str) -> Path:
    """Return the folder of a stage's run: the one that was asked for, or runs/<corpus>[-<dimension>]/<stage>."""
    return Path(given) if given else Path("runs") / run_name(corpus, dimension) / stage


@cache
def _installed() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run, as far as installed."""
    found = {"python": platform.python_version()}
    for name in _VERSIONED:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that decide a run, as far as installed."""
    return dict(_installed())


@cache
def git_revision() -> str | None:
    """Return the commit of this checkout, with `+changes` if files differ; None outside a checkout.

    That of the first call, which is nearest to the code that this process has loaded.
    """
    here = Path(__file__).resolve().parent.parent
    if not (here / ".git").exists():
        return None
    try:
        commit = _git(here, "rev-parse", "HEAD")
        return commit + ("+changes" if _git(here, "status", "--porcelain", "--untracked-files=no") else "")
    except (OSError, subprocess.SubprocessError):
        return None


def _git(folder: Path, *arguments: str) -> str:
    command = ["git", "-C", str(folder), *arguments]
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()


def _short(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=False)
    is_hash = isinstance(value, str) and len(value) == 64
    return f"{value[:12]}…" if is_hash else text if len(text) <= 80 else text[:79] + "…"
