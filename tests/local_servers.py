"""Real servers of a model on this machine, for tests."""

from __future__ import annotations

import contextlib
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path


def free_port() -> int:
    """Return a port on which nothing listens now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextlib.contextmanager
def serving_transformers(model: Path, log: Path) -> Iterator[str]:
    """Run `transformers serve` on a model's folder; the value is its base URL."""
    port = free_port()
    command = [str(Path(sys.executable).parent / "transformers"), "serve", str(model)]
    command += ["--device", "cpu", "--dtype", "float32", "--host", "127.0.0.1", "--port", str(port)]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    with log.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, env=environment, start_new_session=True)
    try:
        for _ in range(600):
            with contextlib.suppress(OSError), urllib.request.urlopen(f"http://127.0.0.1:{port}/health"):
                break
            assert process.poll() is None, log.read_text(errors="replace")
            time.sleep(0.2)
        else:
            raise AssertionError(f"transformers serve did not get ready: {log.read_text(errors='replace')}")
        yield f"http://127.0.0.1:{port}/v1"
    finally:
        process.send_signal(signal.SIGINT)
        try:
            process.wait(timeout=3)
        except subprocess.TimeoutExpired:  # it may ignore SIGINT
            os.killpg(process.pid, signal.SIGKILL)
            process.wait()
