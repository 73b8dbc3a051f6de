"""Whether a sentence says how often a label is given, in English."""

from __future__ import annotations

import re

# Patterns over a sentence's tokens, each with one blank around it. V is a label or a number.

L, V = r"[LW]=\S+", r"[LWN]=\S+"
RATING = r"(?:(?:gold |human )?(?:rating|score|label|grade|mark|verdict|level|value)s?)"
_CHOICE = r"(?:rating|score|label|grade|verdict|level|choice|option|answer|one|case|bet|class|category)s?"
ITEM = (
    r"(?:replies|reply|summaries|summary|people|everyone|(?:item|text|response|answer|argument|essay|review|comment|post"
    r"|message|pair|case|document|conversation|dialogue|output|completion|example|translation|article|submission"
    r"|annotator|rater|judge)s?)"
)
_ADVERB = (
    r"(?:usually|generally|normally|typically|mostly|most often|more often than not|often|commonly|frequently|rarely"
    r"|seldom|hardly(?: ever)?|scarcely|sparingly|infrequently|(?:almost|nearly) (?:always|never)|mainly|largely"
    r"|predominantly|in most cases|most of the time|in general|as a rule|in the majority of cases|on average)"
)
_GIVE = (
    r"(?:rate[sd]?|rating|scor(?:es?|ed|ing)|giv(?:es?|en|ing)|gave|assign(?:s|ed|ing)?|award(?:s|ed|ing)?"
    r"|cho(?:oses?|osing|se|sen)|pick(?:s|ed|ing)?|select(?:s|ed|ing)?|label(?:s|l?ed|l?ing)?|mark(?:s|ed)?|grade[sd]?"
    r"|gets?|got|receive[sd]?|deserve[sd]?|earn(?:s|ed)?|us(?:es?|ed|ing)|answers?|go(?:es)? (?:for|with)|opt for|say"
    r"|settle (?:on|for)|prefer|take|put|need|expect(?:ed)?|falls?|lands?|ends? up|stick (?:to|with)|keep to)"
)
_BE = r"(?:is|are|was|were|be|been|being)"
_AUX = r"(?:you|we|i|they|it|should|would|will|can|may|must|might|do|does|tends? to|have|has|been|be|is|are|to|please)"
FILL = (
    rf"(?:an?|the|it|them|this|that|these|each|every|any|all|{RATING}|{ITEM}|of|with|as|at|to|by|for|in|on|only|just"
    r"|about|around|roughly|nearly|either|below|above|under|over|least|most|out|=|:)"
)
UNIT = rf"(?: (?:stars?|points?|{RATING}))?"
_MORE = rf"(?: s)?(?: (?:, )?(?:or|and|to|/|-|–|,) (?:an? )?{V}){{0,4}}{UNIT}"
_EXTREME = rf"(?:top|highest|lowest|bottom|middle|extreme) {RATING}"
_LABELS = rf"(?:{V}|{_EXTREME}){_MORE}"
_ANY_ITEM = rf"(?:(?:the|an?|all|any|most|these|each|every|this|our|about|only) ){{0,3}}{ITEM}"
_CLOSE = r"(?:$|[.,;:!?()\]|–—-] )"
END = (  # what follows a label that stands for itself, not for a number of things
    rf"(?= (?:{_CLOSE}|(?:because|since|as|but|while|unless|except|overall|here|then|anyway|instead|rather|if|when"
    r"|whenever|where|even|so|too|by default|and (?!more |[LWN]=)|or (?!more |fewer |less |[LWN]=)"
    rf"|(?:to|for|in) {_ANY_ITEM} {_CLOSE}|to {_BE} ) ?))"
)
_SOME = (
    rf"(?:P%|(?:{V}|one) (?:in|out of) {V}|half|(?:an?|one|{V}) (?:third|quarter|fifth|tenth)s?"
    r"|(?:the )?(?:(?:vast|great|large|overwhelming) )?majority|most|few|hardly any|many|the bulk|a minority|a handful"
    r"|(?:almost|nearly|virtually) (?:all|every|no|none)|no|none)"
)
_START = (
    r"(?:(?<=^ )|(?<=[,;:(|–—-] )|(?<= and )|(?<= so )|(?<= but )|(?<= then )|(?<= thus )|(?<= hence )|(?<= please )"
    r"|(?<= you )|(?<= we )|(?<= that )|(?<= to ))"
)
_FREQUENT = (
    r"(?:rare|uncommon|unusual|common|frequent|infrequent|most (?:common|frequent|usual|typical|popular|likely)"
    r"|commonest|likeliest|norm|rule|exception|default|majority|modal|mode|usual|safe(?:st)?)"
)
_SUBJECT = rf"(?:(?:the|an?|most|right|correct|these|{ITEM}|{RATING}|{_AUX}) ){{0,4}}"
_DOUBT = (
    r"(?:(?:when|if|whenever|while|where) (?:(?:you|youre|are|still|really|feel|remain|completely|ever) ){0,3}"
    r"(?:in doubt|unsure|uncertain|not sure|undecided|torn|hesitating|you hesitate|do not know|dont know"
    r"|(?:cannot|can not|cant|could not) (?:decide|tell|say|choose))"
    rf"(?= (?:{_CLOSE}|between |about (?:the|which|what|a) |which |whether to |how to |then |always |just "
    rf"|{_GIVE} |[LWN]=))"
    r"|(?<=^ )in doubt|in (?:any )?case of doubt|in (?:all )?(?:unclear|doubtful|ambiguous|borderline|uncertain) cases)"
)


def patterns(*texts: str) -> tuple[re.Pattern[str], ...]:
    """Return patterns that begin at a token."""
    return tuple(re.compile(rf"(?<= )(?:{text})") for text in texts)


_FREQUENCIES = patterns(
    # about 40 % of replies get a 4; rate 20 % of replies 5; give 4 to 40 % of replies; 3 (40 %)
    rf"(?:P%|(?:{V}|one) (?:in|out of) {V}) (?:of )?(?:[a-z]+ ){{0,4}}(?:{_GIVE}|{_BE}) (?:{FILL} ){{0,4}}"
    rf"{_LABELS}{END}",
    rf"{_GIVE} (?:{FILL} ){{0,2}}{_SOME} (?:of )?{_ANY_ITEM} (?:(?:as|with|an?|at) ){{0,2}}{_LABELS}{END}",
    rf"{L} (?:(?:ratings?|labels?|is|are|was|given|assigned|used|chosen|occurs?|appears?|comes?|applies|to|in|for"
    rf"|by|at|up|the|top|about|around|roughly|nearly|only|makes?|accounts?|covers?) ){{1,6}}"
    rf"(?:P%|{V} (?:in|out of) {V}) (?:of )?(?:(?:the|all|these|our) ){{0,2}}(?:{ITEM}|{RATING}|time)",
    rf"{L} (?:[:=|(] ){{1,2}}(?:(?:about|around|roughly|~|≈) ){{0,2}}P% (?:of (?:(?:the|all) ){{0,2}}"
    rf"(?:{ITEM}|{RATING}) )?{_CLOSE}",
    # 3 is the most common label; 5 is rare; 5 is rarely given; the most common label is 3; choose the majority label
    rf"(?:{L}|{_EXTREME}) (?:{RATING} )?(?:is|are|was|were|(?:will|should|must|would) (?:be|remain)) "
    r"(?:(?:by|far|quite|very|rather|fairly|also|an?|the|your) ){0,3}"
    rf"(?:{_ADVERB} (?:given|used|chosen|assigned|right|correct|the (?:right|correct) {_CHOICE})"
    rf"|(?:given|used|chosen|assigned) (?:only |very ){{0,2}}{_ADVERB}|{_FREQUENT}(?: {_CHOICE})?){END}",
    rf"(?:{_FREQUENT}|typical|average|mean|median|expected) (?:(?:human|given|assigned|observed) )?{_CHOICE} "
    rf"(?:(?:is|are|was|be|of|:|=|should|will|about|around|close|to|an?|the) ){{0,4}}{V}",
    r"(?:majority|modal|most (?:common|frequent|popular)) (?:(?:human|given) )?(?:rating|score|label|verdict|class)",
    rf"(?:default|mode|mean|median|average) (?:is|=|:|of) (?:(?:an?|the|about|around|roughly) ){{0,2}}{V}{END}",
    r"(?:label|rating|score|verdict|grade|level)s? (?:[a-z]+ ){0,4}(?:(?:equally|about as) often|evenly|bell curve"
    r"|normally distributed|uniformly|skewed|normal distribution|equally distributed)",
    # a default: default to 3; 3 is a safe choice; when in doubt, choose 3; give 3 if unsure
    rf"(?:defaults? to|defaulting to|fall(?:s|ing)? back (?:to|on)|by default ,?|by default) ?(?:{_GIVE} )?"
    rf"(?:{FILL} ){{0,4}}{_LABELS}{END}",
    rf"{L} (?:by default|as (?:the|an?|your) default)",
    rf"safe(?:st)? (?:choice|option|bet|answer) (?:(?:is|:|would|be|an?|the) ){{0,3}}{_LABELS}{END}",
    rf"{_DOUBT} (?:\S+ ){{0,10}}{_GIVE} (?:{FILL} ){{0,4}}{_LABELS}{END}",
    rf"{_DOUBT} (?:[,:–—-] )?(?:{FILL} ){{0,3}}{_LABELS}{END}",
    rf"(?:{_GIVE} (?:{FILL} ){{0,4}}|(?<=^ )){_LABELS} (?:, )?(?:\S+ )?{_DOUBT}",
)
_UNCONDITIONAL_FREQUENCIES = patterns(
    # usually rate it 3; items are usually rated 3; you should rarely give 5; the answer is usually 3; usually a 3
    rf"{_START}{_SUBJECT}{_ADVERB} (?:, )?{_SUBJECT}(?:{_GIVE}|{_BE})"
    rf" (?:(?:{FILL}|between|from) ){{0,4}}{_LABELS}{END}",
    rf"{_START}{_SUBJECT}{_ADVERB} (?:, )?(?:{FILL} ){{0,4}}L=\S+{_MORE}{END}",
    rf"(?:{ITEM}|{RATING}|it|they) {_BE} {_ADVERB} {_LABELS}{END}",
    rf"{RATING} (?:(?:should|will|would|tend|tends|to|are|is|be) ){{0,3}}(?:be|cluster(?:ed)?|cent(?:re|er)|hover|lie"
    rf"|concentrated?|average|skewed) (?:{FILL} |near |towards? ){{0,4}}{_LABELS}{END}",
    # most items are 2; the majority gets a 3; few deserve 5
    rf"{_SOME} (?:of )?(?:(?:the|these|those|all|our|your|them) ){{0,2}}(?:[a-z]+ )?(?:{_AUX} ){{0,3}}(?:{_GIVE}|{_BE})"
    rf" (?:(?:{FILL}|between|from) ){{0,4}}{_LABELS}{END}",
    rf"(?:typical|average|ordinary|usual) {ITEM} (?:{_AUX} ){{0,2}}(?:{_GIVE}|{_BE}) (?:{FILL} ){{0,4}}{_LABELS}{END}",
    rf"{ITEM} tends? to (?:{_GIVE}|be) (?:{FILL} ){{0,4}}{_LABELS}{END}",
    # give 5 rarely; use 3 most of the time; give 3 to most replies; lean towards 3
    rf"{_GIVE} (?:{FILL} ){{0,4}}{_LABELS} (?:(?:only|very|too|quite|as|more|less|fairly) ){{0,2}}(?:rarely|sparingly"
    r"|seldom|often|usually|frequently|most often|most of the time|exceptionally"
    r"|in (?:the )?(?:most|majority of|few|rare) cases)"
    rf"(?= (?:{_CLOSE}|(?:and|but|or|because|since|than) ))",
    rf"{_GIVE} (?:{FILL} ){{0,4}}{_LABELS} (?:to|for|in) (?:(?:about|around|roughly|only) ){{0,2}}{_SOME} (?:of )?"
    rf"(?:{_ANY_ITEM} {_CLOSE}|{_CLOSE})",
    rf"{L} wins? (?:{_ADVERB}|more often)",
    rf"(?:lean(?:ing)? to(?:wards?)?|stick (?:to|with)|assume) (?:{FILL} ){{0,3}}{_LABELS}{END}",
    # always rate 3; never give 5; avoid 1 and 5
    rf"(?<=^ )(?:(?:please|and|but|so|you|should|must) ){{0,3}}(?:always|never|do not|dont|avoid) (?:(?:ever|just) )?"
    rf"(?:{_GIVE} )?(?:{FILL} ){{0,3}}{_LABELS}(?= (?:[.!;)] |$))",
)
_CONDITION = re.compile(
    r" (?:if|when|whenever|where|once|provided|in case)(?! (?:you )?(?:rat|judg|scor|label|annotat))"
)
_CONDITION_BEFORE = re.compile(r" (?:without|lacking|unlike|with|for(?! (?:most|all|the most) )|who|whose|which) ")


def tells_frequency(text: str) -> bool:
    """True if a sentence says how often a label occurs or is to be given, or which one to give in doubt.

    A default counts: it moves ratings to a label whatever the item says. A rule that makes a label depend on the item
    ("usually 2 if no reason is given", "never give 5 to an empty reply") does not, nor does what items of a label are
    like ("4: usually polite").
    """
    if not any(mark in text for mark in (" L=", " W=", " N=", "label", "rating", "score", "grade", "verdict", "level")):
        return False
    if any(pattern.search(text) for pattern in _FREQUENCIES):
        return True
    if _CONDITION.search(text):
        return False
    matches = (pattern.search(text) for pattern in _UNCONDITIONAL_FREQUENCIES)
    return any(match and not _CONDITION_BEFORE.search(text[: match.start()]) for match in matches)
