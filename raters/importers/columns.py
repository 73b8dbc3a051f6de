"""Which column of a table is what: as the user says, else by names that leave no doubt, and then it is told.

A guess is made only where one column alone could be meant. What is in doubt is asked for, and a column that nothing
speaks for becomes metadata, which no rater sees.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from raters.importers.source_items import in_short, is_missing
from raters.importers.tables import Row
from raters.importers.wide_form import SLOT, LabelColumn, columns_of, guessed
from raters.records import ConfigError, shown

Holds = Literal["both", "texts", "labels"]

_ITEM = ("itemid", ("exampleid", "sampleid", "instanceid", "taskid", "storyid", "essayid", "documentid", "docid",
         "questionid", "pairid", "textid", "responseid", "summaryid", "uid"), "id", "item")  # fmt: skip
_ANNOTATOR = ("annotatorid", ("annotator", "workerid", "raterid", "coderid", "userid", "labelerid", "labellerid",
              "judgeid", "participantid", "assessorid"), ("worker", "rater", "coder", "user", "labeler", "labeller",
              "judge", "participant", "assessor", "username"))  # fmt: skip
_LABEL = (
    "label",
    (
        "rating",
        "score",
        "annotation",
        "judgment",
        "judgement",
        "grade",
        "stars",
        "class",
        "category",
        "winner",
        "preference",
        "preferred",
    ),
)
_DIMENSION = ("dimension", ("criterion", "aspect", "attribute"))
_RATIONALE = ("rationale",)
_REASON = ("rationale", ("reason", "reasons", "reasoning", "explanation", "justification"))
"""The second tier is an item's own text where no other column is one."""
_TEXTS = frozenset(
    "text document content sentence passage prompt question query instruction input context source response reply "
    "answer output completion target translation story essay fulltext summary decoded comment review post tweet "
    "argument premise hypothesis claim statement message title topic reference article conclusion body".split()
)
_ALWAYS_TEXTS = frozenset("text sentence content response".split())
_PAIR_ENDS = (("a", "b"), ("1", "2"), ("left", "right"), ("first", "second"))
_WIDE = re.compile(r"(annotator|rater|worker|coder|judge|label|score|rating|expert|annot|ann)[ _.-]?(\d{1,3}|[a-z])$")
BY_TEXT = "-"
"""As the column of the item's id: there is none, whatever names say."""
_LONG_TEXT = 30
"""Characters on average: from there on a column of texts is one that a rater may need."""
_WORDS = 1.5
"""On average: below that a `document` or a `source` is a name, and no text."""


@dataclass(frozen=True, slots=True)
class Columns:
    """Which column is what; as an option of the user, None and () leave it to be told.

    Attributes:
        item: The item's id.
        texts: What a rater sees.
        annotator: Who labelled.
        labels: Labels, a dimension each (or of the dimension that `dimension` says).
        annotators: In wide form, a column of labels for each annotator.
        several: In wide form of several dimensions, the columns of labels; as an option, patterns in `annotators`.
        dimension: Which question the row's label answers.
        rationale: People's own reasons.
        metadata: What else is kept, unseen by raters; None for all that is left.
        group: What items of one group share.
        pair: The two texts that are compared.
    """

    item: str | None = None
    texts: tuple[str, ...] = ()
    annotator: str | None = None
    labels: tuple[str, ...] = ()
    annotators: tuple[str, ...] = ()
    several: tuple[LabelColumn, ...] = ()
    dimension: str | None = None
    rationale: str | None = None
    metadata: tuple[str, ...] | None = None
    group: str | None = None
    pair: tuple[str, ...] = ()

    def named(self) -> dict[str, str]:
        """Return each column that is named, with the option that names it."""
        single = {"item": self.item, "annotator": self.annotator, "dimension-column": self.dimension,
                  "rationale": self.rationale, "group-by": self.group}  # fmt: skip
        several = {"pair": self.pair, "text": self.texts, "label": self.labels, "annotators": self.annotators,
                   "metadata": self.metadata or ()}  # fmt: skip
        found = {column: f"--{option}" for option, columns in several.items() for column in columns}
        return found | {column: f"--{option}" for option, column in single.items() if column not in (None, BY_TEXT)}


def tell_columns(sample: Sequence[Row], asked: Columns, holds: Holds = "both") -> tuple[Columns, list[str]]:
    """Return which column is what, and a line for each guess; see `table_items.read_table`."""
    asked = _several(sample, asked)
    told = _Columns(sample, asked)
    for name, option in asked.named().items():
        if name not in told.names:
            raise ConfigError(f"{option} {name}: {told.where} has no such column; it has {told.listed}")
    item = None if asked.item == BY_TEXT else asked.item or told.guess("item", _ITEM, "the item's id")
    if item is None and holds != "both":
        raise ConfigError(f"{told.where}: no column is called item_id or id; say with --item what --items is joined by")
    found = replace(asked, item=item)
    if holds != "texts":
        found = told.with_labels(found)
    known = _REASON if holds != "texts" and told.has_texts_besides(_REASON[1]) else _RATIONALE
    rationale = asked.rationale or told.guess("rationale", known, "people's own reasons, which no rater sees")
    found = told.with_texts(replace(found, rationale=rationale), holds)
    if item is None:
        told.notes.append("no column is the item's id: rows with the same texts are one item (--item)")
    if found.annotator is None and not found.annotators and not found.several and holds != "texts":
        told.notes.append("no column says who labelled: all labels are one person's (--annotator)")
    return found, told.notes


class _Columns:
    """The columns of a table while they are told apart: which are taken, and what was guessed.

    Args:
        sample: First rows.
        asked: What the user says.
    """

    def __init__(self, sample: Sequence[Row], asked: Columns) -> None:
        self.sample = sample
        self.asked = asked
        self.where = sample[0][0].file
        self.names = list(dict.fromkeys(name for _, values in sample for name in values))
        self.notes: list[str] = []
        self._taken = {name for name, option in asked.named().items() if option not in ("--group-by", "--pair")}
        self._taken |= {one.column for one in asked.several}
        if "" in self.names:
            self.notes.append("the column without a name is left out")

    @property
    def listed(self) -> str:
        """All columns in a line."""
        return in_short([shown(name) for name in self.names if name])

    @property
    def _rest(self) -> list[str]:
        return [name for name in self.names if name and name not in self._taken]

    def guess(self, option: str, tiers: Sequence[str | tuple[str, ...]], what: str) -> str | None:
        """Return the column whose name is of the first tier that any name is of; None if none is.

        Raises:
            ConfigError: If several are.
        """
        for tier in tiers:
            wanted = (tier,) if isinstance(tier, str) else tier
            found = [name for name in self._rest if _folded(name) in wanted]
            if len(found) > 1:
                both = " and ".join(shown(name) for name in found)
                raise ConfigError(f"{self.where}: both {both} could be {what}; say which with --{option}")
            if found:
                self._taken.add(found[0])
                self.notes.append(f"column {shown(found[0])} is {what} (--{option})")
                return found[0]
        return None

    def has_texts_besides(self, names: Sequence[str]) -> bool:
        """Return True if items have texts, here or elsewhere, without the columns of some names."""
        if self.asked.texts:
            return True
        return any(is_text(self.sample, name) for name in self._rest if _folded(name) not in names)

    def with_labels(self, columns: Columns) -> Columns:
        """Return columns with who labelled, and where labels and what they are of stand.

        Raises:
            ConfigError: If that cannot be told.
        """
        if columns.annotators or columns.several:
            if columns.annotator:
                raise ConfigError(
                    "--annotators: is for a column of labels each, so nobody else labels; leave out --annotator"
                )
            return columns
        annotator = columns.annotator or self.guess("annotator", _ANNOTATOR, "who labelled")
        labels = columns.labels
        if not labels and annotator is None and (wide := _wide(self._rest)):
            self._taken |= set(wide)
            self.notes.append(f"columns {', '.join(map(shown, wide))} are annotators' labels (--annotators)")
            return replace(columns, annotators=wide)
        if not labels and annotator is None and (several := self._guessed_several()):
            return replace(columns, several=several)
        if not labels:
            found = self.guess("label", _LABEL, "the label")
            if found is None:
                raise self._no_label()
            labels = (found,)
        dimension = columns.dimension
        if len(labels) == 1:
            dimension = dimension or self.guess("dimension-column", _DIMENSION, "which dimension the label is of")
        return replace(columns, annotator=annotator, labels=labels, dimension=dimension)

    def _guessed_several(self) -> tuple[LabelColumn, ...]:
        """Return columns of several annotators on several dimensions, and leave out the texts among them."""
        texts = [name for name in self._rest if is_text(self.sample, name)]
        several = guessed([name for name in self._rest if name not in texts])
        if several:
            people, dimensions = (list(dict.fromkeys(part)) for part in list(zip(*several, strict=True))[1:])
            self._taken |= {one.column for one in several}
            named = f"the labels of {in_short(people)} on {in_short(dimensions)}"
            self.notes.append(f"columns such as {shown(several[0].column)} are {named} (--annotators)")
            if comments := [name for name in texts if any(person in name for person in people)]:
                self._taken |= set(comments)
                self.notes.append(f"left out, since annotators wrote them: {', '.join(map(shown, comments))}")
        return several

    def _no_label(self) -> ConfigError:
        if len(self.names) == 1:
            return ConfigError(
                f"{self.where}: has one column, {self.listed}; say with --delimiter what stands between its cells"
            )
        few = [shown(name) for name in self._rest if _few_values(self.sample, name)]
        hint = f"; these hold few distinct values: {in_short(few)}" if few else ""
        return ConfigError(
            f"{self.where}: no column is called label, rating or score{hint}; name labels with --label (a dimension "
            f"each), or with --annotators (a column each). Columns: {self.listed}"
        )

    def with_texts(self, columns: Columns, holds: Holds) -> Columns:
        """Return columns with those that a rater sees, and what is left as metadata.

        Raises:
            ConfigError: If no column looks like a text, and none is named.
        """
        varying = _varying(self.sample, columns.item, self._rest)
        if varying:
            ignored = ", ".join(shown(name) for name in self._rest if name in varying)
            self.notes.append(f"left out, since they differ between rows of one item: {ignored}")
        rest = [name for name in self._rest if name not in varying]
        texts = columns.texts
        if not texts and holds != "labels":
            texts = tuple(name for name in rest if name in columns.pair or is_text(self.sample, name))
            if not texts:
                raise ConfigError(
                    f"{self.where}: no column looks like an item's text; name those that a rater sees with --text, or "
                    f"give the file that holds them as --items. Columns: {self.listed}"
                )
            self.notes.append(f"a rater sees {', '.join(map(shown, texts))} (--text)")
        metadata = columns.metadata
        if metadata is None:
            metadata = tuple(name for name in rest if name not in texts)
            if metadata:
                self.notes.append(f"metadata, which no rater sees: {', '.join(map(shown, metadata))} (--metadata)")
        return replace(columns, texts=texts, metadata=metadata)


def _several(sample: Sequence[Row], asked: Columns) -> Columns:
    """Return what the user says with patterns of annotators' columns as the columns that they stand for."""
    if not any(SLOT in name for name in asked.annotators):
        return asked
    names = list(dict.fromkeys(name for _, values in sample for name in values))
    return replace(asked, annotators=(), several=columns_of(asked.annotators, names, sample[0][0].file))


def pair_of(texts: Sequence[str]) -> tuple[str, str] | None:
    """Return the two texts that are compared, if names tell: `argument_a` and `argument_b`; None if they do not."""
    found = []
    for first, second in _PAIR_ENDS:
        for name in texts:
            if not (match := re.fullmatch(rf"(.*?)([ _.-]?)({first})", name, re.IGNORECASE)):
                continue
            other = [text for text in texts if text.casefold() == f"{match[1]}{match[2]}{second}".casefold()]
            if other and (match[1] or first in ("left", "first")):
                found.append((name, other[0]))
    return found[0] if len(found) == 1 else None


def _folded(name: str) -> str:
    return re.sub(r"[^a-z0-9]", "", name.casefold())


def _wide(names: Sequence[str]) -> tuple[str, ...]:
    """Return columns that are numbered labels of one kind: `rater_1`, `rater_2`; none if several kinds are."""
    by_kind: dict[str, list[str]] = {}
    for name in names:
        if match := _WIDE.fullmatch(name.casefold()):
            by_kind.setdefault(match[1], []).append(name)
    found = [columns for columns in by_kind.values() if len(columns) > 1]
    return tuple(found[0]) if len(found) == 1 else ()


def _values(sample: Sequence[Row], name: str) -> list[Any]:
    return [value for _, values in sample if not is_missing(value := values.get(name))]


def _few_values(sample: Sequence[Row], name: str) -> bool:
    values = [str(value) for value in _values(sample, name)]
    return 1 < len(set(values)) <= min(12, len(values) - 1)


def is_text(sample: Sequence[Row], name: str) -> bool:
    """Return True for a column that a rater may need: by its name, or since its values are long."""
    values = [value for value in _values(sample, name) if isinstance(value, str | list)]
    if not values:
        return False
    stem = re.sub(r"[ _.-]?(a|b|1|2|left|right)$", "", name.casefold())
    if _folded(name) in _TEXTS or _folded(stem) in _TEXTS:
        words = sum(len(str(value).split()) for value in values) / len(values)
        return words >= _WORDS or stem != name.casefold() or _folded(name) in _ALWAYS_TEXTS
    return sum(len(str(value)) for value in values) / len(values) >= _LONG_TEXT


def _varying(sample: Sequence[Row], item: str | None, names: Sequence[str]) -> set[str]:
    """Return columns that say something of the row and not of its item: a time, an annotator's comment.

    A text that differs in a row or two is a mistake, to be told as one.
    """
    if item is None:
        return set()
    rows: dict[str, list[Mapping[str, Any]]] = {}
    for _, values in sample:
        rows.setdefault(str(values.get(item)), []).append(values)
    several = [found for found in rows.values() if len(found) > 1]
    varying = set()
    for name in names:
        differing = sum(any(values.get(name) != found[0].get(name) for values in found) for found in several)
        is_text = _folded(name) in _TEXTS
        if differing > (0.5 if is_text else 0.1) * len(several) and (differing > 2 or not is_text):
            varying.add(name)
    return varying - {name for name in names if _folded(name) in _ALWAYS_TEXTS}
