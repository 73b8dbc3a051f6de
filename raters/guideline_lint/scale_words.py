"""Whether a sentence speaks of labels that a scale does not have, or of their order turned round, in English."""

from __future__ import annotations

import re
from collections.abc import Iterator

import numpy as np

from raters.guideline_lint.frequencies import END, FILL, ITEM, RATING, UNIT, V, patterns
from raters.scales import AnyScale, IntervalScale, OrdinalScale, listed_labels

_ASKS = r"(?:rate[sd]?|rating|scored?|grade|label(?:l?ed)?|mark|gets|receives|deserves|earns)"
_TELLS = r"(?:give|assign|award|choose|pick|select|answer|use)"
_BEFORE = r"(?:[LW]=\S+ (?:, )?(?:or|and|to|/|-|,) ){0,10}"
_SPEAKS_OF_RATING = re.compile(
    r" (?:rat(?:e|ed|es|ing|ings)|scor(?:e|ed|es|ing)|scale|grades?|labels?|levels?|verdicts?) "
)
_ANY_END = rf"(?:{END}|(?= (?:for|to|on|with) (?![LWN]=)))"
_OFF_SCALE = patterns(
    rf"{_ASKS} (?:{FILL} ){{0,4}}{_BEFORE}N=(\S+){UNIT}{_ANY_END}",
    rf"{_TELLS} (?:(?:it|them|an?|the|this|each|every|{RATING}|{ITEM}|of|as|:|=) ){{0,4}}"
    rf"{_BEFORE}N=(\S+){UNIT}{_ANY_END}",
    rf"(?:ratings?|scores?|labels?|verdicts?)(?: (?:of|is|be|:|=|as|should|must|one|an?|either|or|and|,"
    rf"|[LW]=\S+)){{0,12}} N=(\S+){UNIT}{_ANY_END}",
    r"(?:rating|score|label|verdict)s? of N=(\S+)",
    rf"(?:grade|mark|level|value)s? of N=(\S+){UNIT}(?:{_ANY_END}|(?= means? ))",
    rf"(?<=^ ){RATING} N=(\S+) (?:[:=|–—-] )",
    rf"(?:{_ASKS}|{_TELLS}) (?:{FILL} ){{0,4}}{V} (?:out of|/) N=(\S+){UNIT}{_ANY_END}",
    r"< rating > N=(\S+) <",
)
_RANGES = patterns(
    rf"(?:(?:from|between) )?([LN])=(\S+) (?:to|through|until|and|-|–|—) ([LN])=(\S+){UNIT}(?: scale)?{END}"
)
_SCALE_RANGES = patterns(
    r"scale (?:(?:of|is|runs|goes|from|between|:) ){0,3}([LN])=(\S+) (?:to|through|and|-|–|—) ([LN])=(\S+)",
    r"([LN])=(\S+) (?:to|-|–|—) ([LN])=(\S+) scale",
)
_COUNTS = patterns(
    r"[LN]=(\S+) (?:- )?(?:point|points|level|star|step|label|way) (?:\w+ )?(?:scale|rubric|rating system|likert)",
    r"(?:one of(?: the| these| its)?|all(?: of)?(?: the| these)?|has|have|there are|uses?|using|scale (?:of|with)|these"
    r"|following) [LN]=(\S+) (?:(?:possible|allowed|different|distinct|rating|quality|ordered) ){0,2}"
    r"(?:levels|labels|categories|classes|verdicts)(?! (?:of|apart|away|above|below|higher|lower|up|down) )",
    r"scale (?:of|with) [LN]=(\S+) (?:points|stars|steps|values)",
)
_BEST = r"(?:best|highest|top|strongest|finest|excellent|perfect|outstanding)"
_WORST = r"(?:worst|lowest|bottom|weakest|poorest|terrible|awful|unacceptable)"
_SAYS = r"(?:(?:is|=|:|means|being|for|as|the|very|\(|\|) ){1,3}"
_UPSIDE_DOWN = patterns(
    rf"(?:lower|smaller) (?:(?:{RATING}|numbers?|is|are|means?|always) ){{1,3}}(?:better|best|stronger){END}",
    rf"higher (?:(?:{RATING}|numbers?|is|are|means?|always) ){{1,3}}(?:worse|worst|weaker|poorer){END}",
    r"the lower (?:the )?better",
    rf"the lower the (?:{RATING}|numbers?) , the (?:better|stronger)",
    rf"the higher the (?:{RATING}|numbers?) , the (?:worse|weaker|poorer)",
)


def off_scale(text: str, scale: AnyScale) -> Iterator[str]:
    """Yield how a sentence contradicts the labels of a scale: a label, a range or a number of levels it has not."""
    labels = listed_labels(scale)
    if isinstance(scale, IntervalScale):
        ends = (float(scale.min), float(scale.max))
        counts = {ends[1] - ends[0], ends[1] - ends[0] + 1, ends[1]}
    else:
        numbers = [float(label) for label in labels if not isinstance(label, str)]
        ends = (min(numbers), max(numbers)) if numbers else (np.nan, np.nan)
        # A scale from 0 to 10 is called a 10-point scale as often as an 11-point one.
        counts = {float(len(labels))} | ({ends[1]} if ends[0] == 0 else set())
    for pattern in _OFF_SCALE:
        if match := pattern.search(text):
            yield f"names {match[1]}, which is not on the scale"
            return
    speaks = _SPEAKS_OF_RATING.search(text)
    for pattern, whole in (*((pattern, False) for pattern in _RANGES), *((pattern, True) for pattern in _SCALE_RANGES)):
        for match in pattern.finditer(text):
            pair = (float(match[2]), float(match[4]))
            off = "N" in (match[1], match[3]) and speaks and not all(1800 <= value <= 2100 for value in pair)
            if off or (whole and (min(pair), max(pair)) != ends):
                yield f"names a scale from {match[2]} to {match[4]}"
                return
    for pattern in _COUNTS:
        match = pattern.search(text)
        if match and float(match[1]) not in counts:
            yield f"speaks of {match[1]} labels"
            return
    if len(labels) != 2 and re.search(r" binary (?:scale|label|rating|choice|decision|verdict) ", text):
        yield "speaks of 2 labels"


def inverts(text: str, scale: AnyScale) -> bool:
    """True if a sentence calls the lowest label of an ordered scale the best, or the highest the worst."""
    if isinstance(scale, IntervalScale):
        low, high = f"L={float(scale.min):.12g}", f"L={float(scale.max):.12g}"
    elif isinstance(scale, OrdinalScale):
        numeric = not isinstance(scale.labels[0], str)
        values = [f"L={float(label):.12g}" if numeric else f"[LW]=#{place}" for place, label in enumerate(scale.labels)]
        low, high = values[0].replace(".", r"\."), values[-1].replace(".", r"\.")
    else:
        return False
    suffix = rf"(?: (?:possible|{RATING})){{0,2}}{END}"
    return any(pattern.search(text) for pattern in _UPSIDE_DOWN) or bool(
        re.search(
            rf" (?:{low} {_SAYS}{_BEST}|{high} {_SAYS}{_WORST}|{_BEST} \( {low}|{_WORST} \( {high}){suffix}", text
        )
    )
