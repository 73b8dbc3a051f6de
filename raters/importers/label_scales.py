"""From labels as they stand in a source to a scale, and to labels on it.

A scale that is given decides. Otherwise it is guessed from what was seen, and the guess is told: whole numbers are
ordinal, many numbers an interval, texts nominal unless they are the words of a known order.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from decimal import Decimal
from typing import Any

import yaml
from pydantic import ValidationError

from raters.corpus_files import first_problem
from raters.importers.source_items import Place, is_formula
from raters.records import ConfigError, DataError, Label, shown
from raters.scales import SCALE_ADAPTER, AnyScale

Labelled = tuple[object, Place]
"""A label as it stands in the source, and where."""

_NUMBER = re.compile(r"[+-]?(\d+(\.\d*)?|\.\d+)(e[+-]?\d+)?", re.IGNORECASE)
_DECIMAL_COMMA = re.compile(r"[+-]?\d+,\d+")
_LEADING_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?")
_WORDED_NUMBER = re.compile(r"[+-]?\d+(\.\d+)?[\s:=().\u2013\u2014-]+[^\W\d_].*")
_BETWEEN_LABELS = re.compile(r"\s*[,;|]\s*")
_LIST_IN_TEXT = re.compile(r"""[\[{]\s*["'].*[\]}]""", re.DOTALL)
_SEVERAL = (
    "holds several labels, and a person gives an item one on a dimension; make each choice a dimension of its own (a "
    "column of yes and no), or leave such items out"
)
_RANGE = re.compile(r"([+-]?\d+)\.\.([+-]?\d+)")
_LARGEST = 2**53
"""Up to there every whole number is a float of its own."""
_MOST_STEPS = 20
_MOST_LISTED = 11
_MOST_NOMINAL = 50
_ORDERS = tuple(
    tuple(order.split("<"))
    for order in (
        "very low<low<medium<high<very high",
        "low<average<high",
        "very poor<poor<fair<good<very good<excellent",
        "very bad<bad<poor<ok<okay<good<very good<excellent",
        "bad<neutral<good",
        "worst<worse<same<better<best",
        "strongly disagree<disagree<somewhat disagree<neutral<neither agree nor disagree<somewhat agree<agree"
        "<strongly agree",
        "never<rarely<sometimes<often<always",
        "not at all<a little<slightly<somewhat<moderately<very<extremely",
        "none<minor<moderate<major<severe",
        "very negative<negative<neutral<positive<very positive",
        "no<partly<yes",
        "no<partially<yes",
        "no<maybe<yes",
        "incorrect<partially correct<correct",
    )
)
_PAIRS: tuple[tuple[str, str], ...] = (
    ("a", "b"), ("1", "2"), ("left", "right"), ("first", "second"), ("model_a", "model_b"),
    ("response_a", "response_b"), ("response_1", "response_2"),
)  # fmt: skip
_TIES = frozenset({*"tie equal same both neither draw none = c".split(), "tie (bothbad)", "both bad", "both good"})


def parse_scale(text: str) -> dict[str, Any]:
    """Return what `--scale` says, as corpus.yaml has it.

    `1..5`, `ordinal:low,medium,high`, `nominal:spam,ham`, `interval:0..100`, `pairwise:A,B,tie`, or a scale as in
    corpus.yaml, in braces.

    Raises:
        ConfigError: If it is none of them.
    """
    kind, colon, rest = text.partition(":")
    if text.lstrip().startswith("{"):
        try:
            found = yaml.safe_load(text)
        except yaml.YAMLError as error:
            raise ConfigError(f"--scale {text}: is no YAML ({' '.join(str(error).split())}); mend it") from error
        if isinstance(found, dict):
            return found
    elif match := _RANGE.fullmatch(text.removeprefix("ordinal:")):
        low, high = int(match[1]), int(match[2])
        if not 0 < high - low <= 1000:
            raise ConfigError(
                f"--scale {text}: goes from {low} to {high}; give the lower end first, at most 1000 steps"
            )
        return {"type": "ordinal", "labels": list(range(low, high + 1))}
    elif kind == "interval" and (ends := re.fullmatch(r"\s*(\S+?)\.\.(\S+?)\s*", rest)):
        low_end, high_end = _number(ends[1]), _number(ends[2])
        if low_end is not None and high_end is not None:
            return {"type": "interval", "min": low_end, "max": high_end}
    elif colon and kind in ("ordinal", "nominal", "pairwise"):
        names = [name.strip() for name in rest.split(",")]
        numbers = [_number(name) for name in names]
        return {"type": kind, "labels": names if None in numbers else numbers}
    raise ConfigError(
        f"--scale {text}: must be such as 1..5, ordinal:low,medium,high, nominal:spam,ham, interval:0..100, "
        "pairwise:A,B,tie, each behind DIMENSION= if it is for one of several"
    )


def scale_of(
    dimension: str,
    labels: Sequence[Labelled],
    given: Mapping[str, Any] | None,
    pair: tuple[str, str] | None,
) -> tuple[AnyScale, list[Label], str]:
    """Return (scale, each label on it, what was guessed) of a dimension.

    Args:
        dimension: Its name.
        labels: Of all annotators, at least one, none missing.
        given: Scale that the user gives, as `parse_scale` returns it; None to guess.
        pair: Names of two texts that may be what is compared.

    Raises:
        DataError: On a label that is on no scale, with its place.
        ConfigError: If the scale that is given cannot be one.
    """
    values = [_plain(value, dimension, place) for value, place in labels]
    if given is not None:
        record = dict(given)
        if record.get("type") == "pairwise" and "fields" not in record:
            if pair is None:
                raise ConfigError(f"--scale: {dimension} compares two texts; name them with --pair FIRST SECOND")
            record["fields"] = list(pair)
        scale = _validated(record, f"--scale of {dimension}", ConfigError)
        return scale, _on(scale, values, labels, dimension), ""
    numbers = [_number(value) if isinstance(value, str) else value for value in values]
    _no_decimal_comma(numbers, values, labels, dimension)
    if pair is not None and (compared := _pairwise(values, pair)):
        record, ties = compared
        scale = _validated(record, f"labels of {dimension}", DataError)
        first, second = record["labels"][:2]
        note = f"{first} is for {pair[0]}, {second} for {pair[1]}"
        if len(ties) > 1:
            note += f"; {' and '.join(map(shown, ties))} are one tie (--scale nominal:… keeps them apart)"
            folded = {str(tie).casefold() for tie in ties}
            values = [record["labels"][2] if str(value).casefold() in folded else value for value in values]
        return scale, _on(scale, values, labels, dimension), note
    if all(number is not None for number in numbers):
        found = [number for number in numbers if number is not None]
        record, note = _of_numbers(found, dimension, labels[0][1])
    else:
        if not _are_worded_ends(values):
            _no_mixture(numbers, values, labels, dimension)
        values = _one_spelling([str(value) for value in values])
        _no_joined_labels(values, labels, dimension)
        record, note = _of_texts([str(value) for value in values], dimension, labels[0][1])
    scale = _validated(record, f"labels of {dimension}", DataError)
    return scale, _on(scale, values, labels, dimension), note


def _plain(value: object, dimension: str, place: Place) -> int | float | str:
    """Return a label as a number or a stripped text."""
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float | Decimal):
        if not -_LARGEST <= value <= _LARGEST:
            raise DataError(f"{place}: label {shown(value)} of {dimension} is too large for a scale; mend it")
        return int(value) if value == int(value) else float(value)
    if isinstance(value, str):
        text = " ".join(value.split())
        if is_formula(text):
            raise DataError(
                f"{place}: label {shown(text)} of {dimension} is a formula of a spreadsheet; export values instead"
            )
        if _LIST_IN_TEXT.fullmatch(text):
            raise DataError(f"{place}: label {shown(text)} of {dimension} is a list in a text; write the label alone")
        if "<" in text or ">" in text:
            raise DataError(
                f"{place}: label {shown(text)} of {dimension} holds < or >, which mark verdicts in answers; rename it"
            )
        return text
    what = _SEVERAL if isinstance(value, list) else "is neither text nor number; export one label for each dimension"
    raise DataError(f"{place}: label {shown(value)} of {dimension} {what}")


def _number(text: str) -> int | float | None:
    if not _NUMBER.fullmatch(text.strip()):
        return None
    number = float(text)
    if abs(number) > _LARGEST:
        return None
    return int(number) if number.is_integer() else number


def _no_decimal_comma(
    numbers: Sequence[object], values: Sequence[object], labels: Sequence[Labelled], dimension: str
) -> None:
    """Refuse numbers with a comma, which would be texts without an order."""
    commas = [isinstance(value, str) and bool(_DECIMAL_COMMA.fullmatch(value)) for value in values]
    if True in commas and all(comma or number is not None for comma, number in zip(commas, numbers, strict=True)):
        value, place = values[commas.index(True)], labels[commas.index(True)][1]
        point = str(value).replace(",", ".")
        raise DataError(
            f"{place}: label {shown(value)} of {dimension} has a comma where a number has a point; write {point}, or "
            "one label if these are two"
        )


def _no_joined_labels(values: Sequence[int | float | str], labels: Sequence[Labelled], dimension: str) -> None:
    """Refuse `joy, anger` where joy and anger are labels themselves: as a text it would be a third label."""
    known = set(values)
    for value, (_, place) in zip(values, labels, strict=True):
        parts = _BETWEEN_LABELS.split(str(value))
        if len(parts) > 1 and known.issuperset(parts):
            raise DataError(f"{place}: label {shown(value)} of {dimension} {_SEVERAL}")


def _by_leading_number(distinct: Sequence[str]) -> list[str]:
    """Return texts in the order of the numbers they begin with; none if one has no number of its own."""
    begin = {float(match[0]): text for text in distinct if (match := _LEADING_NUMBER.match(text))}
    return [begin[number] for number in sorted(begin)] if len(begin) == len(distinct) else []


def _are_worded_ends(values: Sequence[int | float | str]) -> bool:
    """Return True for labels of a survey that words the ends of its scale alone: `1 - never`, 2, 3, `4 - always`."""
    ordered = _by_leading_number(sorted({str(value) for value in values}))
    worded = [_number(text) is None for text in ordered]
    of_words = all(_WORDED_NUMBER.fullmatch(text) for text, is_text in zip(ordered, worded, strict=True) if is_text)
    return len(ordered) > 2 and of_words and not any(worded[1:-1])


def _no_mixture(
    numbers: Sequence[object], values: Sequence[object], labels: Sequence[Labelled], dimension: str
) -> None:
    """Refuse labels of which some are numbers and some are texts."""
    is_number = [number is not None for number in numbers]
    if True not in is_number:
        return
    rare = sum(is_number) * 2 < len(is_number)
    odd = is_number.index(rare)
    usual = is_number.index(not rare)
    kinds = ("a number, others are texts", "text, others are numbers")
    raise DataError(
        f"{labels[odd][1]}: label {shown(values[odd])} of {dimension} is {kinds[not rare]} ({shown(values[usual])} in "
        f"{labels[usual][1].unit} {labels[usual][1].number}); mend it, or list it in --missing if it means none"
    )


def _of_numbers(numbers: Sequence[int | float], dimension: str, place: Place) -> tuple[dict[str, Any], str]:
    distinct = sorted(set(numbers))
    low, high = distinct[0], distinct[-1]
    if low == high:
        raise DataError(
            f"{place.file}: all labels of {dimension} are {low}, which tells no scale; give one, such as --scale 1..5"
        )
    whole = all(isinstance(number, int) for number in distinct)
    if whole and high - low <= _MOST_STEPS:
        labels = list(range(int(low), int(high) + 1))
        unseen = [str(label) for label in labels if label not in distinct]
        more = f"; nobody gave {', '.join(unseen)}" if unseen else ""
        return {"type": "ordinal", "labels": labels}, f"guessed from the labels seen{more}; --scale if it is wider"
    if len(distinct) <= _MOST_LISTED and len(numbers) >= 3 * len(distinct):
        return {"type": "ordinal", "labels": distinct}, "guessed: the labels seen, in order; --scale if there are more"
    for ends in ((0, 1), (-1, 1), (0, 10), (0, 100)):
        if ends[0] <= low and high <= ends[1]:
            return {"type": "interval", "min": ends[0], "max": ends[1]}, "guessed from the labels seen (--scale)"
    return {"type": "interval", "min": low, "max": high}, "guessed: from the lowest label seen to the highest (--scale)"


def _of_texts(texts: Sequence[str], dimension: str, place: Place) -> tuple[dict[str, Any], str]:
    counts = Counter(texts)
    distinct = sorted(counts, key=lambda text: (text.casefold(), text))
    if len(distinct) < 2:
        raise DataError(
            f"{place.file}: all labels of {dimension} are {shown(distinct[0])}, which tells no scale; give one, such "
            "as --scale nominal:yes,no"
        )
    if len(distinct) > _MOST_NOMINAL or (len(distinct) > _MOST_STEPS and 5 * len(distinct) > len(texts)):
        raise DataError(
            f"{place.file}: {dimension} has {len(distinct)} different texts as labels, such as {shown(distinct[0])}; "
            "that is no scale: give another --label or --dimension, or the --scale"
        )
    folded = {" ".join(re.split(r"[\s_-]+", text.casefold())): text for text in distinct}
    for order in _ORDERS:
        if len(folded) > 2 and set(folded) <= set(order):
            labels = [folded[word] for word in order if word in folded]
            return {"type": "ordinal", "labels": labels}, "guessed: words of a known order (--scale if it is another)"
    if labels := _by_leading_number(distinct):
        return {
            "type": "ordinal",
            "labels": labels,
        }, "guessed: by the numbers they begin with (--scale nominal:… if not)"
    return {
        "type": "nominal",
        "labels": distinct,
    }, "guessed: texts without an order (--scale ordinal:… if they have one)"


def _pairwise(
    values: Sequence[int | float | str], pair: tuple[str, str]
) -> tuple[dict[str, Any], list[int | float | str]] | None:
    """Return (a pairwise scale, the labels for neither) if the labels are words for one of two texts, or for neither.

    Words for neither are one label of the scale: `tie` and `tie (bothbad)` of an arena prefer nothing.
    """
    by_fold: dict[str, int | float | str] = {}
    for value in values:
        by_fold.setdefault(str(value).casefold(), value)
    for names in ((pair[0].casefold(), pair[1].casefold()), *_PAIRS):
        rest = set(by_fold) - set(names)
        if rest <= _TIES - set(names) and set(by_fold) & set(names):
            first, second = (by_fold.get(name, _unseen(name, by_fold)) for name in names)
            ties = [by_fold[name] for name in sorted(rest, key=lambda name: (name != "tie", name))]
            labels = [str(label) for label in (first, second, ties[0])] if ties else [first, second]
            return {"type": "pairwise", "labels": labels, "fields": list(pair)}, ties
    return None


def _unseen(name: str, by_fold: Mapping[str, object]) -> int | str:
    """Return a label that nobody gave, written as the other is."""
    other = next(value for key, value in by_fold.items() if key not in _TIES or len(by_fold) == 1)
    if isinstance(other, int) or str(other).isdigit():
        return int(name)
    return name.upper() if str(other).isupper() else name


def _one_spelling(texts: Sequence[str]) -> list[int | float | str]:
    """Return texts with those that differ in case alone in the most frequent spelling."""
    by_fold: dict[str, Counter[str]] = {}
    for text in texts:
        by_fold.setdefault(text.casefold(), Counter())[text] += 1
    spelling = {fold: counts.most_common(1)[0][0] for fold, counts in by_fold.items()}
    return [spelling[text.casefold()] for text in texts]


def _validated(record: dict[str, Any], where: str, kind: type[ConfigError] | type[DataError]) -> AnyScale:
    try:
        return SCALE_ADAPTER.validate_python(record)
    except ValidationError as error:
        raise kind(f"{where}: {first_problem(error)}; give --scale") from error


def _on(scale: AnyScale, values: Sequence[object], labels: Sequence[Labelled], dimension: str) -> list[Label]:
    """Return labels on a scale."""
    found: list[Label] = []
    cache: dict[object, Label] = {}
    for value, (_, place) in zip(values, labels, strict=True):
        key = (type(value), value)
        if key not in cache:
            label = scale.parse(str(value))
            if label is None:
                number = _number(value) if isinstance(value, str) else None
                said = shown(value if number is None else number)
                raise DataError(
                    f"{place}: label {said} is not on scale {scale} of {dimension}; mend it, give a wider --scale, or "
                    "list it in --missing"
                )
            cache[key] = label
        found.append(cache[key])
    return found
