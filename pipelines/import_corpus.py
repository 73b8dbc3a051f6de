"""Stage: people's labels from a table, an annotation tool or a published data set, as a corpus."""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from pydantic import Field

from pipelines.command import run_command
from pipelines.options import parse_options, positional
from pipelines.screen import say
from raters.options import StageOptions
from raters.records import ConfigError

STAGE = "import_corpus"
DESCRIPTION = """\
Make a corpus of people's labels. SOURCE is a CSV, TSV, JSON, JSONL or Parquet file (packed as .gz, .bz2, .xz or .zip
too), a folder of them, an export of Label Studio, Argilla, doccano, Potato or Prodigy, a data set of Hugging Face (its
id, or a folder that `datasets` has saved), or a file of HANNA, SummEval, AES 2.0, WMT20 SQM or HelpSteer2.

  python -m pipelines.import_corpus labels.csv --dry-run
  python -m pipelines.import_corpus labels.csv --text question reply --annotator who --label helpfulness --out my_corpus

Writes to --out: corpus.yaml, items.jsonl, annotations.jsonl, guidelines/, report.html (how good the labels are),
summary.json, manifest.json."""


class ImportCorpusOptions(StageOptions):
    """Options of import_corpus."""

    source: str | None = positional("file, folder, or id of a data set; needed")
    out: str | None = Field(None, description="folder of the new corpus; needed, or --dry-run")
    new: bool = Field(False, description="another corpus that stands in --out is kept beside it")
    dry_run: bool = Field(False, description="say what was understood, and write nothing")
    format: Literal["auto", "table", "label-studio", "argilla", "potato", "prodigy", "doccano", "hanna", "summeval",
                    "aes2", "wmt20-sqm", "helpsteer2"] = Field(
        "auto", description="what the source is; told from its first record by itself"
    )  # fmt: skip
    name: str | None = Field(None, description="of the corpus (default: that of --out, or of the source)")
    item: str | None = Field(
        None,
        description="column of the item's id; - for none, so that the same texts are one item (default: by its name)",
    )
    text: tuple[str, ...] = Field((), description="columns or fields that a rater sees (default: by their names)")
    annotator: str | None = Field(None, description="column of who labelled (default: by its name)")
    label: tuple[str, ...] = Field(
        (), description="column of the label, or several, a dimension each (default: by its name)"
    )
    annotators: tuple[str, ...] = Field(
        (), description="in wide form: a column of labels for each annotator; with several dimensions {} stands for "
        "theirs, as in {}_rater1 {}_rater2"
    )  # fmt: skip
    dimension_column: str | None = Field(None, description="column that says which dimension the label is of")
    rationale: str | None = Field(None, description="column of people's own reasons, which no rater ever sees")
    metadata: tuple[str, ...] = Field((), description="other columns to keep, unseen by raters (default: all)")
    group_by: str | None = Field(None, description="column or field whose items stay on one side of every split")
    items: str | None = Field(None, description="file with the items' texts, if SOURCE has ids and labels alone")
    dimension: tuple[str, ...] = Field(
        (), description="name of the only dimension, or which of several are wanted (default: all)"
    )
    scale: tuple[str, ...] = Field(
        (), description="1..5, ordinal:low,medium,high, nominal:spam,ham, interval:0..100 or pairwise:A,B,tie; "
        "DIMENSION=1..5 for one of several (default: guessed, and told)"
    )  # fmt: skip
    pair: tuple[str, ...] = Field((), description="the two texts that are compared, in the order of the labels")
    missing: tuple[str, ...] = Field(
        ("na", "n/a", "nan", "null"), description="texts that mean no label, besides blank (default: na n/a nan null)"
    )
    duplicates: Literal["refuse", "first", "last"] = Field(
        "refuse", description="which label counts where one person gave an item several that differ"
    )
    guideline: tuple[str, ...] = Field((), description="Markdown file of what annotators were told; DIMENSION=FILE")
    gold: Literal["per-annotator", "median", "mean", "majority", "paper", "dawid-skene"] = Field(
        "per-annotator", description="keep every person's label, as later stages want them, or one for each item: "
        "paper drops items with a standard deviation above 1.0, then takes the median"
    )  # fmt: skip
    encoding: str | None = Field(None, description="of CSV and TSV (default: UTF-8, or UTF-16 if it begins so)")
    delimiter: str | None = Field(None, description="between cells of CSV and TSV (default: told from the header)")
    quotes: bool = Field(True, description="cells of CSV and TSV may stand in quotes")
    subset: str | None = Field(None, description="configuration of a data set of Hugging Face")
    split: str | None = Field(None, description="part of a data set of Hugging Face (default: all)")
    max_megabytes: int = Field(4096, ge=1, description="megabytes that a file may unpack to, at most")
    max_line_megabytes: int = Field(64, ge=1, description="megabytes of a line, at most")


def main(arguments: Sequence[str]) -> int:
    """Run the stage and return its exit status."""
    options = parse_options(ImportCorpusOptions, STAGE, DESCRIPTION, arguments)
    if options.source is None:
        raise ConfigError("SOURCE: missing; give a file, a folder or the id of a data set, or see --help")
    if options.out is None and not options.dry_run:
        raise ConfigError("--out: missing; give the folder of the new corpus, or --dry-run to see what is understood")
    from pipelines.importing import build, next_command, sha256_of_files, summary_lines
    from raters.importers.corpus_folder import check_out, move_into_place, scratch_folder
    from raters.journal import write_atomically
    from raters.quality_report import quality_report_html
    from raters.runs import git_revision, versions

    out = None if options.out is None else Path(options.out)
    if out is not None:
        check_out(out)
    understood = _understood(options)
    with scratch_folder(None if options.dry_run else out) as folder:
        _, summary = build(folder, understood, options.gold)
        summary["source"] = options.source
        page = quality_report_html(summary)
        if not options.dry_run:
            assert out is not None
            manifest = {
                "stage": STAGE,
                "options": options.model_dump(mode="json"),
                "inputs_sha256": sha256_of_files(understood.reading.paths),
                "versions": versions(),
                "git_revision": git_revision(),
            }
            write_atomically(folder / "report.html", page)
            for name, record in (("summary.json", summary), ("manifest.json", manifest)):
                text = json.dumps(record, indent=2, ensure_ascii=False, allow_nan=False) + "\n"
                write_atomically(folder / name, text)
            moved = move_into_place(folder, out, new=options.new)
    print("\n".join(summary_lines(summary)))
    if options.dry_run:
        print("Nothing was written (--dry-run).")
    elif moved:
        print(f"Written to {out}: corpus.yaml, items.jsonl, annotations.jsonl, guidelines/, report.html")
        say(f"next: {next_command(str(out), understood)}")
    else:
        print(f"{out} holds this very corpus already; nothing was written.")
    return 0


def _understood(options: ImportCorpusOptions) -> Any:
    """Read the source and return it as it is understood; only its items and labels stay in memory."""
    from pipelines.importing import counted, understand
    from raters.importers.columns import Columns
    from raters.importers.draft import collect
    from raters.importers.formats import Source, read_source
    from raters.importers.label_scales import parse_scale
    from raters.importers.source_files import Limits

    if len(options.pair) not in (0, 2):
        raise ConfigError(f"--pair {' '.join(options.pair)}: must be two texts, in the order of the labels")
    if options.delimiter is not None and len(options.delimiter.replace("\\t", "\t")) != 1:
        raise ConfigError(f"--delimiter {options.delimiter}: must be one character")
    if options.encoding is not None:
        _check_encoding(options.encoding)
    assert options.source is not None
    scales = {name: parse_scale(text) for name, text in _by_dimension(options.scale, "--scale").items()}
    reading = read_source(
        Source(
            options.source,
            None if options.format == "auto" else options.format,
            Columns(
                options.item,
                options.text,
                options.annotator,
                options.label,
                options.annotators,
                (),
                options.dimension_column,
                options.rationale,
                options.metadata or None,
                options.group_by,
                options.pair,
            ),
            options.dimension[0] if len(options.dimension) == 1 else None,
            options.items,
            options.encoding,
            None if options.delimiter is None else options.delimiter.replace("\\t", "\t"),
            options.quotes,
            options.subset,
            options.split,
            Limits(options.max_line_megabytes << 20, options.max_megabytes << 20),
        )
    )
    draft = collect(
        counted(reading.items),
        reading.texts,
        missing=frozenset(value.strip().casefold() for value in options.missing),
        duplicates=options.duplicates,
        dimensions=options.dimension,
    )
    return understand(
        reading,
        draft,
        name=options.name or _name(options),
        scales=scales,
        guidelines=_guidelines(options.guideline),
        pair=(options.pair[0], options.pair[1]) if options.pair else None,
        group_by=options.group_by,
    )


def _name(options: ImportCorpusOptions) -> str:
    place = Path(options.out or options.source or "")
    return re.sub(r"[^\w.-]+", "_", place.name.split(".")[0] or place.resolve().name) or "corpus"


def _by_dimension(given: Sequence[str], option: str) -> dict[str | None, str]:
    """Return values by the dimension that stands before `=`; None where none does."""
    found: dict[str | None, str] = {}
    for text in given:
        name, equals, value = text.partition("=")
        key = name if equals else None
        if key in found:
            raise ConfigError(f"{option} {text}: is given twice; write DIMENSION=… for each")
        found[key] = value if equals else text
    return found


def _guidelines(given: Sequence[str]) -> Mapping[str | None, str]:
    from raters.corpus_files import read_guideline_file

    files = _by_dimension(given, "--guideline")
    return {name: read_guideline_file(Path(path), "--guideline") for name, path in files.items()}


def _check_encoding(name: str) -> None:
    try:
        "a".encode(name)
    except LookupError as error:
        raise ConfigError(f"--encoding {name}: is unknown; give such as utf-8, utf-16, cp1252, latin-1") from error


if __name__ == "__main__":
    sys.exit(run_command(STAGE, main))
