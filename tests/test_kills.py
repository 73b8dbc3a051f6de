"""kill -9 at random moments: no draw is lost, none stands twice, and none is paid for twice but those in flight."""

from __future__ import annotations

import random
import signal
import time
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.scripted_server import Answer, ScriptedServer
from tests.small_corpora import ORDINAL_5, rating, varied_texts, write_corpus
from tests.stage_runs import Outcome, Record, read, run_alone, run_here, started, strict, timeless, wait_until

ITEMS, CONCURRENCY = 40, 4
GIVEN_UP_ITEMS = 100  # the first 50 never are
DELAY_SECONDS = 0.005


def answer(body: Record, count: int) -> Answer:
    """Return an answer that the draw's seed alone decides; every tenth cannot be read."""
    verdict = "I cannot say." if body["seed"] % 10 == 0 else rating(1 + body["seed"] % 5)
    reasoning = f"It is number {body['seed']} of its kind."
    return Answer(verdict, reasoning=reasoning, delay_seconds=DELAY_SECONDS * (body["seed"] % 3))


@pytest.fixture(scope="module")
def corpus(tmp_path_factory: pytest.TempPathFactory) -> Path:
    texts = varied_texts(ITEMS)
    labels = {item_id: {"ann": 1 + n % 5, "bob": 1 + n // 5 % 5} for n, item_id in enumerate(texts)}
    return write_corpus(tmp_path_factory.mktemp("corpus") / "small", labels, ORDINAL_5, inputs=texts)


@dataclass
class Job:
    """A command whose run is killed and given again until it comes to its end.

    Which draws are made ahead depends on what comes back when, so two such runs only have the same results.
    """

    stage: str
    arguments: Sequence[object]
    server: ScriptedServer
    journal: str
    results: Sequence[str]
    same_draws: bool = True
    known: set[int] = field(default_factory=set)
    lives: int = 0

    def command(self, folder: Path) -> list[object]:
        where = ["--base-url", self.server.base_url, "--concurrency", CONCURRENCY, "--out", folder]
        return [*self.arguments, "--model", "openai/scripted", *where]

    def outcome(self, folder: Path) -> dict[str, Any]:
        """Return what a finished run has written, without times and without the order in which draws arrived."""
        assert strict(folder / "manifest.json")["status"] == "complete"
        found = {name: timeless(folder / name) for name in self.results}
        draws = {self.journal: sorted(map(repr, timeless(folder / self.journal)))} if self.same_draws else {}
        return {**found, **draws}

    def live(self, folder: Path, end: Callable[[Any], None] | None, run: Callable[..., Outcome] = run_alone) -> bool:
        """Run once; return True if it came to its end.

        Args:
            folder: Of the run.
            end: Takes the process and returns when it is to be killed; None if it is not.
            run: What runs the stage then.
        """
        asked = len(self.server.requests)
        if end is None:
            done = run(self.stage, *self.command(folder))
            assert done.status == 0, done.err
            finished = True
        else:
            with started(self.stage, *self.command(folder)) as process:
                end(process)
                process.kill()  # it may end by itself until the very last moment
                finished = process.wait() != -signal.SIGKILL
                assert not finished or process.returncode == 0, process.communicate()[1]
        self.lives += 1
        self._check(folder, asked, finished)
        return finished

    def _check(self, folder: Path, asked: int, finished: bool) -> None:
        path = folder / self.journal
        content = path.read_bytes() if path.exists() else b""
        whole = content[: content.rfind(b"\n") + 1]
        (folder.parent / "whole.jsonl").write_bytes(whole)
        lines = read(folder.parent / "whole.jsonl")
        keys = Counter((line["item_id"], line.get("annotator_id"), line.get("chance"), line["draw"]) for line in lines)
        assert not keys or max(keys.values()) == 1, "a draw stands twice"
        recorded = {line["seed"] for line in lines}
        assert self.known <= recorded, "a draw was lost"
        paid = [body["seed"] for body in self.server.requests[asked:]]
        assert len(set(paid)) == len(paid)
        assert not self.known & set(paid), "a draw that was there already was paid for again"
        # What a kill may cost is what was in flight.
        assert len(set(paid) - recorded) <= (0 if finished else CONCURRENCY)
        assert not finished or whole == content
        for name in self.results:  # there as a whole or not at all
            if (folder / name).exists():
                read(folder / name)
        self.known = recorded


def infer_traces(corpus: Path, server: ScriptedServer, *more: object) -> Job:
    ahead = "--ahead" in more
    arguments = ("--corpus", corpus, "--split", "all", "--k", 8, "--null-items", 5, *([] if ahead else ["--no-ahead"]))
    results = ("traces.jsonl", "unmatched.jsonl")
    return Job("infer_traces", (*arguments, *more), server, "candidates.jsonl", results, same_draws=not ahead)


def rate_items(corpus: Path, server: ScriptedServer) -> Job:
    arguments = ("--corpus", corpus, "--split", "all", "--draws", 5)
    return Job("rate_items", arguments, server, "ratings.jsonl", ("verdicts.jsonl",))


def give_up(corpus: Path, server: ScriptedServer) -> Job:
    texts = varied_texts(GIVEN_UP_ITEMS)
    labels = {item_id: {"ann": 1 + n % 5} for n, item_id in enumerate(texts)}
    larger = write_corpus(corpus.parent / "larger", labels, ORDINAL_5, inputs=texts)
    return infer_traces(larger, server, "--give-up", 0.75)


JOBS: dict[str, Callable[[Path, ScriptedServer], Job]] = {
    "infer_traces": infer_traces,
    "per annotator": lambda corpus, server: infer_traces(corpus, server, "--labels", "per-annotator"),
    "ahead": lambda corpus, server: infer_traces(corpus, server, "--ahead"),
    "give up": give_up,
    "rate_items": rate_items,
}


@pytest.mark.parametrize("name", ["per annotator", "ahead", "give up", "rate_items"])
def test_a_run_that_is_killed_while_it_draws_is_the_run(name: str, corpus: Path, tmp_path: Path) -> None:
    chance = random.Random(name)
    with ScriptedServer(answer) as server:
        job = JOBS[name](corpus, server)
        job.live(tmp_path / "undisturbed", None, run_here)
        wanted, asked = job.outcome(tmp_path / "undisturbed"), len(server.requests)
        job.known = set()
        for _ in range(2):
            wait_for = len(server.requests) + chance.randint(1, asked // 4)

            def end(process: Any, wait_for: int = wait_for) -> None:
                wait_until(lambda: len(server.requests) >= wait_for, process)

            assert not job.live(tmp_path / "killed", end)
        assert job.live(tmp_path / "killed", None, run_here)
    assert job.outcome(tmp_path / "killed") == wanted


@pytest.mark.slow
@pytest.mark.timeout(1500)
@pytest.mark.parametrize(
    ("name", "kills"),
    [("infer_traces", 100), ("per annotator", 30), ("ahead", 30), ("give up", 30), ("rate_items", 30)],
)
def test_runs_that_are_killed_at_random_moments_are_the_run(
    name: str, kills: int, corpus: Path, tmp_path: Path
) -> None:
    """Moments from the start of the process to its end, so while it reads, begins, draws, and writes its results."""
    chance = random.Random(kills)
    with ScriptedServer(answer) as server:
        job = JOBS[name](corpus, server)
        began = time.monotonic()
        job.live(tmp_path / "undisturbed", None)
        seconds = time.monotonic() - began
        wanted = job.outcome(tmp_path / "undisturbed")
        done, runs, with_draws = 0, 0, 0
        while done < kills:
            runs, job.known = runs + 1, set()
            folder = tmp_path / f"killed{runs}"
            while True:
                began, asked = time.monotonic(), len(server.requests)
                # Half of them any time, half of them after so many answers: a busy machine takes long to begin.
                after, answers = chance.choice([(chance.uniform(0, seconds), 0), (0, chance.randint(1, 40))])

                def end(process: Any, until: float = began + after, requests: int = asked + answers) -> None:
                    while (time.monotonic() < until or len(server.requests) < requests) and process.poll() is None:
                        time.sleep(0.001)

                before = len(job.known)
                if job.live(folder, end if done < kills else None):
                    break
                done += 1
                with_draws += len(job.known) > before
            assert job.outcome(folder) == wanted
    print(f"\n{name}: {done} kills, {with_draws} of them after new draws, over {runs} runs")
    assert with_draws >= kills / 4
