"""Stage: score one or more raters against people, with uncertainty and the human ceiling beside every figure."""

from __future__ import annotations

import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines.command import run_command
from pipelines.options import parse_options
from pipelines.screen import say
from raters.journal import write_atomically
from raters.options import StageOptions
from raters.records import ConfigError, DataError, shown

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from raters.corpora import Corpus
    from raters.corpus_files import Dimension
    from raters.gold import AggregateMethod
    from raters.rater_draws import RaterDraws
    from raters.rater_files import RaterSpec

STAGE = "score_agreement"
DESCRIPTION = """\
Score raters against people on one dimension: agreement with intervals, the human ceiling, how raters agree with each
other, and paired differences between them.

  python -m pipelines.score_agreement --corpus demo --ratings runs/demo/rate_items/ratings.jsonl

Writes to --out: scores.json, certificate.json (or why there is none), certified/<rater>.yaml, report.html,
manifest.json."""


class ScoreAgreementOptions(StageOptions):
    """Options of score_agreement."""

    corpus: str = Field("demo", description="corpus folder, or demo for the simulated one that ships with the project")
    ratings: tuple[str, ...] = Field((), description="ratings.jsonl of rate_items, one or more; needed")
    dimension: str | None = Field(None, description="which question of the corpus (default: the one that was rated)")
    labels: Literal["median", "majority", "mean", "paper"] | None = Field(
        None, description="how several people's labels become one (default: by scale, as in infer_traces)"
    )
    aggregate: Literal["mean", "median", "majority"] | None = Field(
        None, description="how draws become one verdict (default: as each rater.yaml says)"
    )
    split_seed: int = Field(0, description="seed of the split whose train part the floor is fitted on")
    traces: str | None = Field(
        None, description="folder of infer_traces, for its utilisation curve in the report (default: none)"
    )
    partial: bool = Field(False, description="score ratings of a run that is not complete")
    resamples: int = Field(2000, ge=200, le=100_000, description="resamples of the bootstrap")
    seed: int = Field(0, ge=0, description="seed of the bootstrap")
    epsilon: float = Field(
        0.15, ge=0, le=1, description="advantage, from 0 to 1, that the alternative annotator test grants to people"
    )
    out: str | None = Field(
        None, description="folder of this run (default: runs/<corpus>[-<dimension>]/score_agreement)"
    )
    new: bool = Field(False, description="start over; a run that stands in --out is kept beside it")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(ScoreAgreementOptions, STAGE, DESCRIPTION, arguments)
    from raters.certificates import certificate_of
    from raters.corpora import find_corpus, load_corpus
    from raters.floor import floors
    from raters.gold import default_method
    from raters.rater_draws import in_one_line
    from raters.report import report_html
    from raters.runs import RunFolder, git_revision, stage_folder, versions
    from raters.score_text import score_lines
    from raters.scoring import score

    if not options.ratings:
        raise ConfigError("--ratings: missing; give one ratings.jsonl of rate_items, or several")
    corpus = load_corpus(find_corpus(options.corpus))
    utilisation = None if options.traces is None else _summary(Path(options.traces))
    rated = [_Rated.find(Path(path), options.partial) for path in options.ratings]
    dimension = _dimension(rated[0], corpus, options.dimension)
    raters = _read_raters(rated, corpus, dimension, options.aggregate)
    method = options.labels or default_method(dimension.scale)
    scored = f"{len(raters)} rater(s) of {len(raters[0].items):,} items on {dimension.name} ({dimension.scale})"
    say(in_one_line(f"corpus {corpus.name}: {scored}, labels: {method}"))
    out = stage_folder(options.out, corpus, dimension.name, STAGE)
    read = {str(one.path.resolve()): rater.sha256 for one, rater in zip(rated, raters, strict=True)}
    inputs = {**corpus.sha256, **read}
    identity = {
        "inputs": inputs,
        "dimension": dimension.name,
        "labels": method,
        "aggregate": [rater.aggregate for rater in raters],
        **{name: getattr(options, name) for name in ("resamples", "seed", "split_seed", "epsilon")},
    }
    folder = RunFolder(out, STAGE, identity, new=options.new)
    try:
        scores = score(
            corpus,
            dimension,
            method,
            raters,
            floors=floors(corpus, dimension, method, raters[0].items, _training(corpus, options.split_seed)),
            resamples=options.resamples,
            seed=options.seed,
            epsilon=options.epsilon,
        )
        scores["partial"] = [one.progress(rater) for one, rater in zip(rated, raters, strict=True) if not one.complete]
        certificates = [
            certificate_of(rater.name, one.spec, corpus, rater, scores, one.manifest)
            for rater, one in zip(raters, rated, strict=True)
        ]
        manifest = {
            "options": options.model_dump(mode="json"),
            "inputs_sha256": inputs,
            "versions": versions(),
            "git_revision": git_revision(),
        }
        folder.create({"status": "running", **manifest})
        write_atomically(out / "scores.json", _strict_json(scores))
        write_atomically(out / "certificate.json", _strict_json(certificates))
        page = report_html(scores, utilisation=utilisation, certificates=certificates)
        write_atomically(out / "report.html", page)
        _write_certified(out / "certified", rated, certificates)
        folder.write_manifest({"status": "complete", **manifest})
    finally:
        folder.release()
    print("\n".join(score_lines(scores)))
    print()
    for certificate in certificates:
        verdict = "certified" if certificate["certified"] else f"no certificate: {certificate['reason']}"
        print(in_one_line(f"{certificate['rater']}: {verdict}"))
    print()
    print(in_one_line(f"Written to {out}: scores.json, certificate.json, report.html"))
    return 0


def _write_certified(folder: Path, rated: Sequence[_Rated], certificates: Sequence[Mapping[str, Any]]) -> None:
    """Write a rater.yaml for each certificate that is given, and remove what an earlier run certified."""
    from raters.rater_draws import file_name

    for stale in folder.glob("*.yaml"):
        stale.unlink()
    for one, certificate in zip(rated, certificates, strict=True):
        if one.spec is not None and certificate["certified"]:
            folder.mkdir(exist_ok=True)
            one.spec.certified(certificate).write(folder / f"{file_name(certificate['rater'])}.yaml")


def _strict_json(record: object) -> str:
    return json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"


def _summary(folder: Path) -> Mapping[str, Any]:
    """Return the summary of a run of infer_traces."""
    path = folder / "summary.json"
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        if summary["utilisation"]:
            return dict(summary)
    except (OSError, ValueError, KeyError, TypeError):
        pass
    raise DataError(f"--traces {folder}: holds no summary.json of infer_traces; give the folder of a complete run")


def _training(corpus: Corpus, split_seed: int) -> NDArray[np.int64]:
    """Return the train part of a split; all items if the corpus has too few groups for one."""
    import numpy as np

    from raters.splits import split_corpus

    try:
        return split_corpus(corpus, split_seed).indices("train")
    except ConfigError:
        return np.arange(len(corpus.item_ids))


@dataclass(frozen=True)
class _Rated:
    """A ratings file, and what stands beside it.

    Attributes:
        path: The file.
        spec: What its rater.yaml says; None if there is none.
        manifest: Of its run; None if there is none.
    """

    path: Path
    spec: RaterSpec | None
    manifest: Mapping[str, Any] | None

    @property
    def complete(self) -> bool:
        """False if a manifest says that the run is not done; ratings from elsewhere say nothing of it."""
        return self.manifest is None or self.manifest["status"] == "complete"

    @classmethod
    def find(cls, path: Path, partial: bool) -> _Rated:
        """Return what stands beside a ratings file; the file itself is read later.

        Raises:
            DataError: If that cannot be read, or the run is not complete and `partial` is False.
        """
        from raters.rater_files import read_rater

        one = cls(path, None, _manifest(path.parent))
        if not one.complete and not partial:
            raise DataError(
                f"{path}: its run is not complete; finish it with the same rate_items command, or give --partial to "
                "score what is there"
            )
        beside = path.parent / "rater.yaml"
        return replace(one, spec=read_rater(beside)) if beside.exists() else one

    def progress(self, rater: RaterDraws) -> dict[str, Any]:
        """Return how much of a run that is not complete is there; None for what its manifest does not say."""
        counts = [(self.manifest or {}).get(name) for name in ("items", "draws_per_item")]
        items, draws = (count if type(count) is int else None for count in counts)
        return {
            "rater": rater.name,
            "items": len(rater.items),
            "of_items": items,
            "draws": int(rater.drawn.sum()),
            "of_draws": None if items is None or draws is None else items * draws,
        }


def _dimension(one: _Rated, corpus: Corpus, asked: str | None) -> Dimension:
    """Return the dimension that was asked for, or the one that a ratings file is of."""
    from raters.rater_draws import rated_dimension

    name = asked or rated_dimension(one.path, complete=one.complete)
    if asked is None and name not in corpus.dimensions:
        known = ", ".join(corpus.dimensions)
        raise DataError(
            f"{one.path} line 1: dimension {shown(name)} is not in corpus {corpus.name} ({known}); give --corpus, the "
            "one that was rated"
        )
    return corpus.dimension(name)


def _manifest(folder: Path) -> Mapping[str, Any] | None:
    """Return the manifest of the run that a folder holds; None if there is none."""
    path = folder / "manifest.json"
    try:
        manifest = json.loads(path.read_text(encoding="utf-8"))
        return dict(manifest) if manifest["status"] else None
    except FileNotFoundError:
        return None
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise DataError(f"{path}: cannot be read ({shown(str(error))}); finish the run of rate_items") from error


def _read_raters(
    rated: Sequence[_Rated], corpus: Corpus, dimension: Dimension, aggregate: AggregateMethod | None
) -> list[RaterDraws]:
    import numpy as np

    from raters.gold import aggregate_draws
    from raters.rater_draws import rater_names, read_draws
    from raters.rater_files import default_aggregate

    raters: list[RaterDraws] = []
    for one, name in zip(rated, rater_names([one.path for one in rated]), strict=True):
        how = aggregate or (one.spec.aggregate if one.spec else default_aggregate(dimension.scale))
        aggregate_draws(np.array([]), how, dimension.scale)  # raises if the scale lacks the order
        raters.append(read_draws(one.path, name, corpus, dimension, how, complete=one.complete))
    return raters


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
