"""Stage: score one or more raters against people, with uncertainty and the human ceiling beside every figure."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from pydantic import Field

from pipelines.command import run_command
from pipelines.options import StageOptions, parse_options
from pipelines.screen import percent, printable, row, say
from raters.journal import write_atomically
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

Writes to --out: scores.json, certificate.json (or why there is none), certified/<rater>.yaml, report.html,
manifest.json."""


class ScoreAgreementOptions(StageOptions):
    """Options of score_agreement."""

    corpus: str = Field("demo", description="corpus folder, or demo for the simulated one that ships with the project")
    ratings: tuple[str, ...] = Field((), description="ratings.jsonl of rate_items, one or more")
    dimension: str | None = Field(None, description="which question of the corpus (default: the one that was rated)")
    labels: Literal["median", "majority", "mean", "paper"] | None = Field(
        None, description="how several people's labels become one (default: by scale, as in infer_traces)"
    )
    aggregate: Literal["mean", "median", "majority"] | None = Field(
        None, description="how draws become one verdict (default: as each rater.yaml says)"
    )
    split_seed: int = Field(0, description="seed of the split whose train part the floor is fitted on")
    traces: str | None = Field(None, description="folder of infer_traces, for its utilisation curve in the report")
    partial: bool = Field(False, description="score ratings of a run that is not complete")
    resamples: int = Field(2000, ge=200, le=100_000, description="of the bootstrap")
    seed: int = Field(0, description="of the bootstrap")
    epsilon: float = Field(
        0.15, ge=0, le=1, description="advantage that the alternative annotator test grants to people"
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
    from raters.report import report_html
    from raters.runs import RunFolder, git_revision, run_name, versions
    from raters.scoring import score

    if not options.ratings:
        raise ConfigError("--ratings: missing; give one ratings.jsonl of rate_items, or several")
    corpus = load_corpus(find_corpus(options.corpus))
    utilisation = None if options.traces is None else _summary(Path(options.traces))
    rated = [_Rated.read(Path(path), options.partial) for path in options.ratings]
    dimension = corpus.dimension(options.dimension or rated[0].dimension)
    raters = _read_raters(rated, corpus, dimension, options.aggregate)
    method = options.labels or default_method(dimension.scale)
    say(
        f"corpus {corpus.name}: {len(raters)} rater(s) of {len(raters[0].items):,} items on {dimension.name} "
        f"({dimension.scale}), labels: {method}"
    )
    out = Path(options.out) if options.out else Path("runs") / run_name(corpus, dimension.name) / STAGE
    inputs = {**corpus.sha256, **{str(one.path): one.sha256 for one in rated}}
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
        scores["partial"] = [one.name for one in rated if not one.complete]
        certificates = [
            certificate_of(rater.name, one.spec, corpus, rater, one.made_by, scores, one.manifest)
            for rater, one in zip(raters, rated, strict=True)
        ]
        manifest = {"status": "complete", "options": options.model_dump(mode="json"), "inputs_sha256": inputs}
        folder.create({**manifest, "versions": versions(), "git_revision": git_revision()})
        write_atomically(out / "scores.json", _strict_json(scores))
        write_atomically(out / "certificate.json", _strict_json(certificates))
        page = report_html(scores, utilisation=utilisation, certificates=certificates)
        write_atomically(out / "report.html", page)
        for rater, one, certificate in zip(raters, rated, certificates, strict=True):
            if one.spec is not None and certificate["certified"]:
                (out / "certified").mkdir(exist_ok=True)
                name = re.sub(r"[^\w.-]+", "_", rater.name)
                one.spec.certified(certificate).write(out / "certified" / f"{name}.yaml")
    finally:
        folder.release()
    print("\n".join(map(printable, score_lines(scores))))
    print()
    for certificate in certificates:
        verdict = "certified" if certificate["certified"] else f"no certificate: {certificate['reason']}"
        print(printable(f"{certificate['rater']}: {verdict}"))
    print(printable(f"\nWritten to {out}: scores.json, certificate.json, report.html"))
    return 0


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
        sha256: Its hash.
        name: Of the rater, for tables: the folder's name.
        dimension: What its first line rates.
        spec: What its rater.yaml says; None if there is none.
        manifest: Of its run; None if there is none.
        made_by: Hashes of the raters that made the ratings, as their lines say.
    """

    path: Path
    sha256: str
    name: str
    dimension: str
    spec: RaterSpec | None
    manifest: Mapping[str, Any] | None
    made_by: frozenset[str]

    @property
    def complete(self) -> bool:
        """False if a manifest says that the run is not done; ratings from elsewhere say nothing of it."""
        return self.manifest is None or self.manifest["status"] == "complete"

    @classmethod
    def read(cls, path: Path, partial: bool) -> _Rated:
        import hashlib

        from raters.journal import read_lines
        from raters.rater_files import read_rater

        digest = hashlib.sha256()
        lines = read_lines(path, digest)
        _, _, first = next(lines)
        made_by = frozenset(
            [str(first.get("rater_sha256")), *(str(record.get("rater_sha256")) for _, _, record in lines)]
        )
        beside = path.parent / "rater.yaml"
        spec = read_rater(beside) if beside.exists() else None
        one = cls(
            path,
            digest.hexdigest(),
            path.parent.name,
            str(first.get("dimension")),
            spec,
            _manifest(path.parent),
            made_by,
        )
        if not one.complete and not partial:
            raise DataError(
                f"{path}: its run is not complete; finish it with the same rate_items command, or give --partial to "
                "score what is there"
            )
        return one


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
    from raters.rater_draws import read_draws
    from raters.rater_files import default_aggregate

    raters: list[RaterDraws] = []
    for one in rated:
        how = aggregate or (one.spec.aggregate if one.spec else default_aggregate(dimension.scale))
        aggregate_draws(np.array([]), how, dimension.scale)  # raises if the scale lacks the order
        taken = [rater.name for rater in raters]
        name = one.name if one.name not in taken else f"{one.name} {len(taken) + 1}"
        raters.append(read_draws(one.path, name, corpus, dimension, how))
    return raters


def score_lines(scores: Mapping[str, Any]) -> Iterable[str]:
    """Yield the scores for a reader."""
    from raters.report import FIGURE_NAMES

    human = scores["human"]
    yield f"{scores['corpus']}, {scores['dimension']} ({scores['scale']}), labels: {scores['label_method']}"
    yield (
        f"  {scores['items']:,} rated items, {scores['items_with_label']:,} with a label; {scores['annotators']:,} "
        f"annotators, alpha among them {_cell(human['alpha'])}"
    )
    count = f"{scores['resampled_count']:,} {scores['resampled']}"
    few = "" if scores["resampled"] == "groups" else ", there being fewer than 20 groups"
    yield f"  95 % intervals: {scores['resamples']:,} resamples of {count}{few}"
    if scores["partial"]:
        yield f"  not complete: {', '.join(scores['partial'])}"
    ceiling = "people, one table" if human["ceiling_pooled"] else "people, each"
    names = list(human["ceiling"])
    yield ""
    yield "Agreement with people's gold label; in the last column, of one person with the gold label of the others"
    columns = [*scores["raters"], *scores["floors"]]
    yield _line("figure", [rater["rater"] for rater in columns] + [ceiling])
    for name in names:
        cells = [_cell(rater["agreement"][name]) for rater in columns]
        yield _line(FIGURE_NAMES[name], [*cells, _cell(human["ceiling"][name])])
    yield _line("readable items", [percent(rater["coverage"]) for rater in columns])
    yield _line("alpha, worst case", [_cell(rater["worst_case"]["krippendorff_alpha"]) for rater in columns])
    yield _line("draws agree", [percent(rater["self_agreement"]) for rater in columns])
    yield _line("rho with length", [_rho(rater["length_correlation"]) for rater in columns])
    yield _line("replaces people", [_verdict(rater["alternative_annotator_test"]) for rater in columns])
    if any(rater["position"] for rater in columns):
        shares = [rater["position"] for rater in columns]
        yield _line("chose first shown", [percent(share and share["chose_first_shown"]) for share in shares])
        yield _line("same in both orders", [percent(share and share["consistent"]) for share in shares])
    labels = list(columns[0]["label_shares"])
    yield ""
    yield row("share of", labels)
    yield row("people's labels", [percent(columns[0]["label_shares"][label]) for label in labels])
    for rater in columns:
        yield row(rater["rater"][:18], [percent(rater["verdict_shares"][label]) for label in labels])
    reasons = sorted({f"{FIGURE_NAMES[name]}: {found['reason']}" for rater in scores["raters"]
                      for name, found in rater["agreement"].items() if found["reason"]})  # fmt: skip
    for reason in reasons:
        yield f"  no figure or interval: {reason}"
    if between := scores["between_raters"]:
        yield ""
        yield f"Raters among each other: alpha {_cell(between['krippendorff_alpha'])}" + (
            f", ICC(3,1) {_cell(between['icc3_1'])}" if "icc3_1" in between else ""
        )
        for difference in scores["differences"]:
            if difference["figure"] in ("kendall_tau_b", "krippendorff_alpha"):
                p = difference.get("p_holm")
                name, pair = FIGURE_NAMES[difference["figure"]], " minus ".join(difference["raters"])
                yield f"  {name}: {pair} = {_cell(difference)}, p {'-' if p is None else f'{p:.3f}'} (Holm)"


def _line(name: str, cells: list[str]) -> str:
    return f"  {name:<20}" + "".join(f"{cell[:27]:>28}" for cell in cells)


def _cell(figure: Mapping[str, Any]) -> str:
    if figure["value"] is None:
        return "-"
    interval = "" if figure["low"] is None else f" [{figure['low']:.3f}, {figure['high']:.3f}]"
    return f"{figure['value']:.3f}{interval}"


def _rho(found: Mapping[str, Any] | None) -> str:
    return "-" if found is None or found["spearman_rho"] is None else f"{found['spearman_rho']:.3f}"


def _verdict(test: Mapping[str, Any]) -> str:
    if test["winning_rate"] is None:
        return "cannot be tested"
    return f"{'yes' if test['passed'] else 'no'} (wins against {percent(test['winning_rate'], 0)})"


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
