"""What the project adds to a request: infer_traces against a server of fixed latency, beside bare clients and peers.

    pytest -m benchmark -s tests/benchmarks/test_client_overhead.py

runs it with few draws; DRAWS=20000 in the environment makes it the full size, and PEERS=<bin/python of an environment
with inspect_ai and litellm> adds these two. The ideal is one draw a second for each request in flight.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from math import nan
from pathlib import Path

import pytest

from tests.benchmarks import bare_clients
from tests.benchmarks.latency_server import serving
from tests.places import CHECKOUT

pytestmark = pytest.mark.benchmark

IN_FLIGHT = 512
LATENCY_SECONDS = 1.0
DRAWS = int(os.environ.get("DRAWS", 5_120))
LEAST_SHARE_OF_BARE_AIOHTTP = 0.7
"""Of its draws a second; opening 512 connections takes most of a second, which is a tenth of a short run."""
TRIES = 3
"""A busy neighbour only ever adds: the best of so many runs counts, and a run that passes is the last."""
MOST_CPU_OF_BARE_AIOHTTP = 4.0
"""CPU time of a draw over that of a bare request in the same minute, which no busy neighbour changes much."""
BARE_ROUNDS = {"aiohttp": 16, "openai over aiohttp": 10}
LEAST_BARE_ROUNDS = 4
"""The bare clients ask for so many windows of requests: the slow ones would take many minutes for more."""
MOST_MEMORY_GROWTH_A_DRAW = 1024
"""Bytes of peak memory for each draw above a quarter of them: far less than the 3 kB of its text."""
STAGE = """
import json, re, resource, sys, threading, time
from pipelines import session
marks = {}
real = session.run_loop
def timed(work):
    usage = lambda: (lambda used: used.ru_utime + used.ru_stime)(resource.getrusage(resource.RUSAGE_SELF))
    began, cpu = time.monotonic(), usage()
    outcome = real(work)
    marks.update(seconds=time.monotonic() - began, cpu_seconds=usage() - cpu)
    return outcome
session.run_loop = timed
import raters.models.transport  # openai takes a second to import, whatever is done with it
from pipelines.infer_traces import main
status = main(sys.argv[1:])
marks["peak"] = 1024 * int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print("\\n" + json.dumps(marks))
sys.exit(status)
"""


def write_corpus(folder: Path, items: int) -> Path:
    """Write a corpus whose items are labelled 5, which the server never answers, so that each gets all its draws."""
    folder.mkdir(parents=True)
    (folder / "guideline.md").write_text("Say what the text argues, then rate how well it argues.\n")
    settings = "name: fixed\ndimensions:\n  quality:\n    scale: {type: ordinal, labels: [1, 2, 3, 4, 5]}\n"
    (folder / "corpus.yaml").write_text(settings + "    guideline: guideline.md\n")
    with (folder / "items.jsonl").open("w") as texts, (folder / "annotations.jsonl").open("w") as labels:
        for number in range(items):
            text = f"{number}. " + "The reason is given, and with it an example. " * 30
            texts.write(json.dumps({"item_id": f"i{number}", "inputs": {"text": text}, "metadata": {}}) + "\n")
            label = {"item_id": f"i{number}", "annotator_id": "a", "dimension": "quality", "label": 5}
            labels.write(json.dumps(label) + "\n")
    return folder


def run_stage(tmp_path: Path, base_url: str, draws: int) -> dict[str, float]:
    """Run the stage in a process of its own; return what it took from the first draw to the last."""
    out = tmp_path / f"run{draws}"
    arguments = [
        "--corpus",
        write_corpus(tmp_path / f"corpus{draws}", draws // 4),
        "--split",
        "all",
        "--k",
        4,
        "--strategy",
        "fixed",
    ]
    arguments += ["--model", "openai/fixed", "--base-url", base_url, "--concurrency", IN_FLIGHT, "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", STAGE, *map(str, arguments)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(CHECKOUT)},
    )
    assert done.returncode == 0, done.stderr[-2000:]
    marks: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    journal = (out / "candidates.jsonl").read_bytes().splitlines()
    assert len(journal) == draws // 4 * 4
    assert all(json.loads(line)["verdict"] == 3 for line in journal)
    return marks


def run_bare(client: str, base_url: str) -> tuple[str, float, float]:
    """Return what a bare client manages: a line to print, requests a second, CPU milliseconds a request."""
    is_peer = client in ("inspect_ai", "litellm")
    python = os.environ.get("PEERS") if is_peer else sys.executable
    if python is None:
        return f"{client:>24}: not measured; PEERS names no environment that has it", nan, nan
    count = str(BARE_ROUNDS.get(client, LEAST_BARE_ROUNDS) * IN_FLIGHT)
    command = [python, bare_clients.__file__, client, base_url, count, str(IN_FLIGHT)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=280)
    if done.returncode:
        return f"{client:>24}: not measured; {(done.stderr.strip().splitlines() or ['failed'])[-1][:90]}", nan, nan
    found = json.loads(done.stdout.splitlines()[-1])
    return line(client, found["per_second"], found["cpu_ms"]), found["per_second"], found["cpu_ms"]


def line(name: str, per_second: float, cpu_ms: float) -> str:
    share = 100 * per_second * LATENCY_SECONDS / IN_FLIGHT
    return f"{name:>24}: {per_second:4.0f}/s, {share:5.1f} % of the ideal rate, {cpu_ms:5.2f} ms of CPU each"


@pytest.mark.timeout(1800)
def test_draws_come_as_fast_as_the_server_answers(tmp_path: Path) -> None:
    with serving(LATENCY_SECONDS) as base_url:
        others = [client for client in bare_clients.CLIENTS if client != "aiohttp"]
        for turn in range(TRIES):
            small = run_stage(tmp_path / f"small{turn}", base_url, DRAWS // 4)
            whole = run_stage(tmp_path / f"whole{turn}", base_url, DRAWS)
            told, aiohttp_rate, aiohttp_cpu = run_bare("aiohttp", base_url)
            rate, cpu = DRAWS / whole["seconds"], 1000 * whole["cpu_seconds"] / DRAWS
            growth = (whole["peak"] - small["peak"]) / (DRAWS - DRAWS // 4)
            print(f"\n{DRAWS:,} draws, {IN_FLIGHT} in flight, {LATENCY_SECONDS:g} s of latency:")
            print(line("infer_traces, with all", rate, cpu), end="")
            print(f"; peak {whole['peak'] / 2**20:.0f} MiB, {growth:.0f} bytes more a draw")
            print(told)
            fast = rate >= LEAST_SHARE_OF_BARE_AIOHTTP * aiohttp_rate
            lean = cpu <= MOST_CPU_OF_BARE_AIOHTTP * aiohttp_cpu
            if fast and lean:
                break
        print(*(run_bare(client, base_url)[0] for client in others), sep="\n")
    assert fast
    assert lean
    assert growth <= MOST_MEMORY_GROWTH_A_DRAW
