"""Stage: a rater as a folder that an evaluation harness runs."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

from pydantic import Field

from pipelines.command import run_command
from pipelines.options import parse_options, positional
from pipelines.screen import say
from raters.journal import write_atomically
from raters.options import StageOptions
from raters.records import ConfigError, DataError

if TYPE_CHECKING:
    from raters.corpora import Corpus
    from raters.exports.folders import Files, Rated
    from raters.rater_files import RaterSpec

STAGE = "export_rater"
DESCRIPTION = """\
Take a rater to an evaluation harness.

  python -m pipelines.export_rater rater.yaml --to inspect --corpus demo --out exports/inspect

Writes to --out what the harness loads, with rater.yaml, certificate.json, guideline.md, and one file that builds the
rater's messages and reads its verdicts with nothing but Python; README.md says in three lines how to run it."""


class ExportRaterOptions(StageOptions):
    """Options of export_rater."""

    rater: str | None = positional("rater.yaml of a run; needed")
    to: Literal["inspect", "lm-eval", "promptfoo", "deepeval", "mlflow", "openai-batch", "python"] | None = Field(
        None, description="harness; needed"
    )
    corpus: str | None = Field(
        None,
        description="corpus folder, or demo: its items and people's labels go along (default: none; lm-eval and "
        "openai-batch need one)",
    )
    split: Literal["train", "dev", "test", "all"] = Field("test", description="which of them")
    split_seed: int = Field(0, description="seed of the split")
    limit: int | None = Field(None, ge=1, description="items, at most (default: all)")
    fields: tuple[str, ...] = Field(
        (), description="text fields of an item in the order the rater sees them (default: those of --corpus)"
    )
    output_field: str | None = Field(
        None, description="the one that an evaluated system writes (default: what the rater observes, else the last)"
    )
    name: str | None = Field(None, description="of scores, metrics and packages (default: the dimension)")
    served_model: str | None = Field(None, description="the model's name on your server (default: its own)")
    out: str | None = Field(None, description="folder of the export; needed")
    new: bool = Field(False, description="start over; an export that stands in --out is kept beside it")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(ExportRaterOptions, STAGE, DESCRIPTION, arguments)
    from raters.corpora import find_corpus, load_corpus
    from raters.exports.folders import Export
    from raters.exports.portable import naming_of
    from raters.exports.targets import export_files
    from raters.rater_files import read_rater
    from raters.runs import RunFolder, git_revision, versions

    if options.rater is None or options.to is None or options.out is None:
        name = "RATER" if options.rater is None else "--to" if options.to is None else "--out"
        raise ConfigError(f"{name}: missing; give a rater.yaml, --to and --out")
    spec = read_rater(Path(options.rater))
    corpus = None if options.corpus is None else load_corpus(find_corpus(options.corpus))
    items = [] if corpus is None else _rated(options, spec, corpus)
    naming = naming_of(
        spec,
        tuple(items[0].inputs) if items else (),
        name=options.name,
        fields=options.fields,
        output=options.output_field,
        served_model=options.served_model,
    )
    for one in items:
        if lacking := [field for field in naming.fields if field not in one.inputs]:
            raise DataError(f"--corpus {options.corpus}: item {one.item_id} has no field {lacking[0]}; give --fields")
    export = Export(spec, naming, items, Path(options.out))
    files = export_files(options.to, export)
    identity = {
        "to": options.to,
        "rater": spec.sha256,
        "certificate": bool(export.record["certified"]),
        "items": None
        if corpus is None
        else [corpus.sha256["items.jsonl"], options.split, options.split_seed, len(items)],
        **{name: getattr(options, name) for name in ("fields", "output_field", "name", "served_model")},
    }
    folder = RunFolder(export.folder, STAGE, identity, new=options.new)
    manifest = {"options": options.model_dump(mode="json"), "versions": versions(), "git_revision": git_revision()}
    try:
        folder.create({"status": "running", **manifest})
        _write(folder.path, files)
        folder.write_manifest({"status": "complete", **manifest})
    finally:
        folder.release()
    if not export.record["certified"]:
        unmeasured = (
            "score_agreement has not measured this rater (one that it has is in its --out, as certified/….yaml)"
        )
        say(f"not certified: {(spec.certificate or {}).get('reason', unmeasured)}; certificate.json says so")
    print(f"Written to {folder.path}: {', '.join(sorted(files))}")
    print()
    print(str(files["README.md"]).rstrip())
    return 0


def _rated(options: ExportRaterOptions, spec: RaterSpec, corpus: Corpus) -> list[Rated]:
    """Return the items of a split that the rater has not seen, with people's labels."""
    import numpy as np

    from raters.exports.folders import Rated
    from raters.gold import default_method, gold_labels
    from raters.rating import check_fields
    from raters.splits import split_corpus

    chosen = np.arange(len(corpus.item_ids))
    if options.split != "all":
        chosen = split_corpus(corpus, options.split_seed).indices(options.split)
    seen = spec.seen.touched(corpus, chosen)
    if len(seen):
        raise DataError(
            f"--corpus {options.corpus}: {len(seen)} of the {len(chosen)} items of the {options.split} split, or items "
            "of their group, were seen in making the rater; give --split or --split-seed of those that it has not seen"
        )
    labels: dict[int, int | float | str] = {}
    name, scale = spec.dimension.name, spec.dimension.scale
    if name in corpus.dimensions and corpus.dimensions[name].scale == scale:
        table = gold_labels(corpus, name, default_method(scale), chosen)
        labels = {
            int(item): scale.label(float(number)) for item, number in zip(table.items, table.numbers, strict=True)
        }
    else:
        say(f"corpus {corpus.name}: has no labels of {name} on {scale}; its items go without")
    rated = []
    for index in chosen[: options.limit].tolist():
        item = corpus.item(index)
        check_fields(item.inputs, spec, f"--corpus {options.corpus}: item {item.item_id}")
        rated.append(Rated(item.item_id, dict(item.inputs), labels.get(index)))
    return rated


def _write(folder: Path, files: Files) -> None:
    for name, content in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(path, content.read_bytes() if isinstance(content, Path) else content)


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
