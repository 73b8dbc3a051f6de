"""What an edited guideline must not say: examples written by hand, each with what it has to be called."""

from __future__ import annotations

import os
import random
import re
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from raters.corpora import Corpus, load_corpus
from raters.guideline_lint import Finding, GuidelineLint
from raters.scales import AnyScale, IntervalScale, NominalScale, OrdinalScale, PairwiseScale

FIVE = OrdinalScale(labels=(1, 2, 3, 4, 5))
PRESENT = NominalScale(labels=("present", "not_present"))
PAIR = PairwiseScale(labels=("A", "B", "tie"), fields=("argument_a", "argument_b"))
PERCENT = IntervalScale(min=0, max=100)
WORDS = OrdinalScale(labels=("low", "medium", "high"))
SIGNED = OrdinalScale(labels=(-2, -1, 0, 1, 2))

ORIGINALS: dict[str, str] = {
    str(FIVE): "Read it.\n\n- `1`: poor\n- `5`: good\n",
    str(PRESENT): "Decide.\n\n- `present`: there\n- `not_present`: absent\n",
    str(PAIR): "Decide.\n\n- `A`: the first\n- `B`: the second\n",
}
DEMO = Path(__file__).resolve().parents[1] / "data" / "demo"
CORPORA = Path(os.environ.get("JUDGESEYE_CORPORA", Path(__file__).parents[2] / "shared" / "data"))


def lint(original: str, scale: AnyScale = FIVE, others: Sequence[str] = (), items: Sequence[str] = ()) -> GuidelineLint:
    return GuidelineLint(original, "helpfulness", scale, others, items)


def checks(scale: AnyScale, added: str) -> set[str]:
    """Return what is found after some lines were added, each of them on one clear line of its own."""
    original = ORIGINALS.get(str(scale), "Read it.\n")
    found = lint(original, scale).findings(f"{original}\n{added}\n")
    for finding in found:
        assert "\n" not in str(finding)
        assert str(finding).startswith(f"guideline line {finding.line}: ")
        assert finding.line > original.count("\n")
    return {finding.check for finding in found}


def examples(text: str) -> list[str]:
    return [line.strip() for line in text.strip().splitlines()]


# --- frequencies ---------------------------------------------------------------------------------------------

FREQUENCIES = {
    FIVE: """
        usually rate 3
        Usually, rate 3.
        You should usually give a 3.
        most items are 2
        Most of the replies are rated 3.
        about 40 % of replies get a 4
        About 40% of the items receive a score of 4.
        Forty per cent is wrong, but 40 percent of replies get 4.
        rarely give 5
        Give 5 sparingly.
        Use 5 only rarely.
        when in doubt choose 3
        When in doubt, 3.
        In doubt, choose 3.
        If you are unsure, give a 3.
        If unsure between 3 and 4, choose 3.
        If you can't decide, give it a 3.
        In case of doubt, rate it 3.
        Rate 4 if not sure.
        Default to 3.
        The default is 3.
        The default rating is 3.
        By default, give 3.
        Treat 3 as the default rating.
        A rating of 3 should be your default.
        the majority of replies are 3
        The majority gets a 3.
        The most common label is 3.
        3 is the most common rating.
        In this data set, 2 and 3 are the most frequent labels.
        A 5 is rare.
        5s are rare.
        Ratings of 5 should be rare.
        Few replies deserve a 5.
        Very few get 5.
        Only about one in ten replies earns a 5.
        The average rating is 3.2.
        Items are usually rated 3.
        Ratings are usually 3.
        Ratings tend to be around 3.
        Ratings average 3.
        The answer is usually 3.
        Most often, the right answer is 4.
        It is mostly a 2 or 3.
        4: usually polite. Most replies get 3.
        Nine out of ten replies get a 4.
        Half of the replies are rated 4 or 5.
        Two thirds of the items are 3.
        Give 3 to most replies.
        Give a 5 to about 10 % of the replies.
        Rate 20 % of replies 5.
        4 occurs in 30% of cases.
        Reserve 5 for the top 5 % of replies.
        3 (40 %)
        3: 40 % of the ratings
        Always rate 3.
        Never give a 5.
        Do not give 5.
        Avoid 1 and 5.
        Use all labels equally often.
        Ratings should follow a bell curve.
        Choose the majority label.
        3 is a safe choice.
        Lean towards 3.
        Assume 3 unless there is a reason not to.
        Annotators usually choose 3.
        Annotators tend to give 3.
        People mostly gave 4.
        A typical reply gets 3.
        - **Usually** rate `3`
        ## Usually rate 3
        Most replies are **3** (somewhat helpful).
        Note that most items are 2.
        Remember to usually rate three.
        Expect most ratings to be 3.
        4 is given to 40 % of replies.
        A rating of 5 is rarely given.
        The top rating should be given sparingly.
        Use the middle rating most of the time.
        Rate 3 most of the time.
        Most customers would give it a 4.
        Usually rate it \uff13.
        Usu\u00adally rate 3.
    """,
    PRESENT: """
        Most statements are present.
        Usually answer `present`.
        When in doubt, choose not_present.
        The majority of facts are `not_present`.
        Usually choose not present.
        present is the most common label.
        60 % of statements are present.
    """,
    PAIR: """
        tie is rare.
        Ties are rare.
        Most pairs are ties.
        Rarely choose tie.
        When in doubt, choose tie.
        Usually choose A.
        A wins in most cases.
        Never choose tie.
    """,
    WORDS: """
        Usually rate low.
        Most arguments are medium.
        Rarely give high.
        The default is medium.
    """,
    PERCENT: """
        Usually rate around 50.
        Most items are between 40 and 60.
        The mean score is 62.5.
        When in doubt, give 50.
    """,
    SIGNED: """
        Most items are -1.
        Usually rate 0.
    """,
}
NO_FREQUENCIES = {
    FIVE: """
        4: usually polite
        | 4 | usually polite and often complete |
        **4**: Helpful. Most customers would be content with it.
        most customers would be content
        A good reply usually names a price.
        Replies usually give 3 reasons.
        Most replies give 2 or more reasons.
        Most replies have 3 sentences.
        Often the customer asks 2 questions.
        5: rarely leaves a question open
        Rate 3 if the reply answers one of two questions.
        Rate 2 when no reason is given.
        Rate 5 if 90 % of the points are covered.
        4: at least 80 % of the questions are answered
        Please use the whole scale.
        Use the full range of labels from 1 to 5.
        Give 1 to an empty reply.
        Never give 5 to a reply without a reason.
        Never rate above 3 if the question is not answered.
        If the reply is empty, never give 5.
        For an empty reply, usually give 1.
        An empty reply usually gets 1.
        Usually give 2 if no reason is given.
        Replies rated 3 often lack a price.
        Reserve 5 for replies that answer everything.
        When two labels seem to fit, choose the lower one.
        When in doubt, read the reply again.
        When in doubt between two labels, weigh the reasons.
        When unsure whether the price is right, do not check.
        If the reply leaves the customer in doubt, rate 2.
        If the author seems unsure, rate 2.
        The price is usually about 3 euros.
        Repairs mostly take 2 or 3 days.
        3 is halfway: some questions are answered, but most are not.
        Most of what the customer asked is answered: 4.
        A reply gets 4 when most questions are answered.
        If it answers half of the questions, give 3.
        Usually a reply names three reasons; count them.
        Rate 1 if most of the text is off topic.
        The average customer should understand the reply.
        Most importantly, rate the reply itself.
        A score of 3 means that something is missing.
        The majority of the customer's questions are answered.
        Generally, 4 requires a clear answer.
        Typically 3 paragraphs are enough.
        In general, a polite reply gets 4.
        A reply with 2 or 3 grammar errors is often still clear.
        1 = not helpful, 5 = very helpful
        Use common sense.
        Give 4 unless something is missing.
        Give 5 only if nothing is missing.
        Start with 3 and go up one for each reason.
        Subtract one level for each mistake.
        Do not give 5 only because the reply is long.
        Avoid giving 5 for politeness alone.
        Always rate the reply, not the question.
        At least 3 of the 5 questions must be answered.
        A 4 is not perfect.
        A reply scoring 3 usually misses one thing.
        Typical replies of level 4 name a date.
    """,
    PRESENT: """
        - `present`: the statement's meaning is in the text.
        If the fact is usually stated in another way, it still counts.
        Most names are shortened; this is fine.
        Answer `present` if the meaning is in the text.
        Say not_present when a name differs.
        The most common mistake is to use general knowledge.
    """,
    PAIR: """
        A good argument usually names a source.
        Most arguments give a reason.
        Usually a concrete example is more convincing.
        Choose A if argument A gives more reasons.
        Choose tie if the two arguments are equally convincing.
        A longer argument is often better.
        An argument often has a better example.
    """,
    WORDS: """
        Quality is usually high when sources are named.
        The tone is often low-key.
    """,
    PERCENT: """
        Most texts have 50 words.
        A score of 50 means average quality.
        100: perfect
    """,
}


def cases(table: dict[AnyScale, str]) -> list[tuple[AnyScale, str]]:
    return [(scale, line) for scale, text in table.items() for line in examples(text)]


@pytest.mark.parametrize(("scale", "line"), cases(FREQUENCIES), ids=str)
def test_a_label_s_frequency_is_found(scale: AnyScale, line: str) -> None:
    assert "states_frequency" in checks(scale, line)


@pytest.mark.parametrize(("scale", "line"), cases(NO_FREQUENCIES), ids=str)
def test_a_rule_about_items_states_no_frequency(scale: AnyScale, line: str) -> None:
    assert checks(scale, line) == set()


def test_a_frequency_over_two_lines_is_found_on_the_first() -> None:
    (found,) = lint("Read it.\n").findings("Read it.\n\nMost of the\nreplies get a 3.\n")
    assert (found.line, found.check) == (3, "states_frequency")
    assert str(found) == (
        'guideline line 3: says how often a label is given, "Most of the replies get a 3."; '
        "say what earns a label, not how often it is given"
    )


def test_lines_without_full_stops_are_read_one_by_one() -> None:
    found = lint("Read it.\n").findings("Read it.\n\nusually rate 3\nmost items are 2\n- x\nrate it 6\nbe fair\n")
    assert [(finding.line, finding.check) for finding in found] == [
        (3, "states_frequency"), (4, "states_frequency"), (6, "contradicts_scale")
    ]  # fmt: skip


def test_what_the_original_says_in_wrapped_lines_may_be_wrapped_in_another_way() -> None:
    original = "Read it. Most replies get 3\nbecause customers are kind, and few deserve 5\nor want it.\n"
    made = lint(original)
    assert made.findings(original) == []
    assert (
        made.findings("Read it.\nMost replies get 3 because\ncustomers are kind, and few deserve 5 or\nwant it.\n")
        == []
    )


@pytest.mark.parametrize(
    "labels", [("1,000", "3s"), ("+", "-"), ("½", "very good"), ("3", "4"), ("*", "_x"), ("好", "坏")]
)
def test_labels_of_any_form(labels: tuple[str, ...]) -> None:
    scale = NominalScale(labels=labels)
    original = f"Read it.\n\n- `{labels[0]}`: one\n- `{labels[1]}`: other\n"
    assert lint(original, scale).findings(original) == []
    lint("Read it.", scale).findings(original)


def test_labels_that_are_numbers_in_quotes_are_labels() -> None:
    scale = NominalScale(labels=("1", "2"))
    assert checks(scale, "Usually rate 2.") == {"states_frequency"}
    assert checks(scale, "Rate it 3.") == {"contradicts_scale"}


def test_what_the_original_says_of_frequencies_may_stay() -> None:
    original = "Read it.\n\nMost replies get a 3. Be fair.\n"
    assert lint(original).findings("# New\n\nRead it.\n\n- Most replies get a 3.\n- Be fair.\n") == []


# --- the scale -----------------------------------------------------------------------------------------------

CONTRADICTIONS = {
    FIVE: """
        rate it 6
        Rate it a 0.
        a score of 0
        Give a score of 7 to the best replies.
        Rate the reply from 1 to 10.
        on a scale from 1 to 10
        Use a scale of 1-10.
        Rate each reply on a 1–10 scale.
        Rate from 0 to 5.
        Scores run from 0 to 5.
        **7**: excellent
        - `6`: superb
        | 6 | superb |
        0 = useless
        Level 6: beyond expectations
        Use a 10-point scale.
        This is a three-point scale.
        Choose one of three labels.
        The scale has seven levels.
        There are four levels.
        1 is the best and 5 the worst.
        1 = best
        1 is the highest rating.
        5 (worst)
        Lower is better.
        The higher the number, the worse the reply.
        Rate on a scale from 1 to 3.
        Give a 3 out of 10.
        Scores of 8 or 9 are for excellent replies.
        If perfect, rate it 10.
        Make a binary decision.
        Give 2.5 to such a reply, a rating of 2.5.
        <rating>6</rating>
        Answer with a rating between 0 and 100.
        Rate it six.
        Rate it -1.
        Assign 0 if the reply is empty.
        A reply deserves 10 points if it is perfect.
        Choose 1, 2, 3, 4, 5 or 6.
        Your rating must be one of 1, 2, 3, 4.5.
        A value of 0 means no help.
        - `1`: good
    """,
    PRESENT: """
        Rate it 3.
        Rate the text from 1 to 5.
        Choose one of three labels.
        **1**: it is there
        - `present`: absent
    """,
    PAIR: """
        Choose one of two labels.
        Score each from 1 to 10.
    """,
    WORDS: """
        low is the best.
        high: worst
    """,
    PERCENT: """
        Rate it 120.
        From -5 to 5, rate the text.
        Use a 5-point scale.
        0 is the best.
        Rate on a scale from 1 to 10.
    """,
    SIGNED: """
        Rate it -3.
        Rate on a scale from 1 to 5.
        -2 is the best.
    """,
}
NO_CONTRADICTIONS = {
    FIVE: """
        Look for three reasons.
        In 2024 the rules changed.
        2 sentences are enough.
        The reply should have 6 to 10 sentences.
        Replies with 10 or more errors are hard to read.
        Give six reasons.
        The reply gives 10 reasons.
        Rate 3 if the reply has 7 errors.
        6. Judge the tone.
        7) Do not be strict.
        Step 6: read again.
        Rate it 5 if it is perfect.
        Use the whole scale from 1 to 5.
        Scores from 1 to 3 are for replies with gaps.
        If you are torn between two labels, read again.
        1: the best part of the reply is missing
        5 is the best rating.
        1 is the worst.
        Higher is better.
        Rate replies of 10 sentences lower.
        The shop opens at 9:30.
        10:30 is early.
        6-8 sentences are enough.
        Each of the five levels is described below.
        A 5-point scale is used.
        Two levels apart is a lot.
        It costs from 10 to 20 euros; rate the tone only.
        Rate replies about the years from 1990 to 2005 alike.
        Answer 2 questions: is it polite, and is it clear?
        If 0 reasons are given, rate 1.
        The rating is `5` at most.
        Score: 4
        - **Tone**: friendly
        - `reply`: what we wrote
        Use 24-hour time as a sign of care.
        Version 1.2.3 of the rules.
        1,000 words are too many.
        - `5`: very good
    """,
    PRESENT: """
        1. Judge meaning.
        A name of 6 letters is fine.
        Take numbers approximately: 100 for 99.
        Choose one of two labels.
        Is the fact in the text? Make a binary decision.
    """,
    PERCENT: """
        Rate it 37.5.
        Use the scale from 0 to 100.
        A 100-point scale.
        0-20: poor
        100 is the best.
        Rate from 0 to 100.
    """,
    SIGNED: """
        Rate it -2.
        2 is the best.
    """,
}


@pytest.mark.parametrize(("scale", "line"), cases(CONTRADICTIONS), ids=str)
def test_a_contradiction_of_the_scale_is_found(scale: AnyScale, line: str) -> None:
    assert "contradicts_scale" in checks(scale, line)


@pytest.mark.parametrize(("scale", "line"), cases(NO_CONTRADICTIONS), ids=str)
def test_other_numbers_contradict_no_scale(scale: AnyScale, line: str) -> None:
    assert checks(scale, line) == set()


@pytest.mark.parametrize(
    ("scale", "label", "new"),
    [(PRESENT, "- `present`: there", "- `partly`: some of it"), (PAIR, "- `B`: the second", "- `C`: neither")],
)
def test_a_label_as_code_among_the_labels_is_off_the_scale(scale: AnyScale, label: str, new: str) -> None:
    original = ORIGINALS[str(scale)]
    (found,) = lint(original, scale).findings(original.replace(label, f"{label}\n{new}"))
    assert found.check == "contradicts_scale"
    assert found.line == original.splitlines().index(label) + 2


def test_an_order_that_the_original_turns_round_may_be_turned_round() -> None:
    original = "1 is the best, 5 is the worst.\n"
    assert lint(original).findings(f"{original}\nRemember: 1 is the best rating.\n") == []


def test_the_value_stands_in_the_finding() -> None:
    (found,) = lint("Read it.\n").findings("Read it.\n\nRate it 6.\n")
    assert str(found) == (
        'guideline line 3: names 6, which is not on the scale, "Rate it 6."; '
        "keep to the scale 1..5 as the original describes it"
    )


# --- other dimensions ----------------------------------------------------------------------------------------

OTHERS = ("local_acceptability", "global_acceptability", "emotional_appeal", "clarity", "credibility", "arrangement")


@pytest.mark.parametrize(
    ("line", "name"),
    [
        ("Rate local_acceptability.", "local acceptability"),
        ("Weigh the Global Acceptability of it.", "global acceptability"),
        ("An emotional-appeal counts.", "emotional appeal"),
        ("Emotional appeals count.", "emotional appeal"),
        ("**Clarity** of the reasons.", "clarity"),
        ("The reply's clarity's limits.", "clarity"),
        ("CREDIBILITY first", "credibility"),
        ("Look at its arrangement.", "arrangement"),
        ("Judge the emotional\nappeal.", "emotional appeal"),
        ("Rate \uff23\uff4c\uff41\uff52\uff49\uff54\uff59.", "clarity"),
    ],
)
def test_another_dimension_is_found(line: str, name: str) -> None:
    (found,) = lint("Read it.\n", others=OTHERS).findings(f"Read it.\n\n{line}\n")
    assert str(found) == f'guideline line 3: names another dimension, "{name}"; speak of helpfulness alone'


@pytest.mark.parametrize(
    "line",
    [
        "Is it clear?",
        "Clarify this.",
        "A credible author.",
        "Acceptable reasons, locally.",
        "It appeals to emotion.",
        "Arrange your notes.",
        "Think of acceptability.",
        "local reasons, acceptability aside",
    ],
)
def test_words_like_a_dimension_s_are_no_dimension(line: str) -> None:
    assert lint("Read it.\n", others=OTHERS).findings(f"Read it.\n\n{line}\n") == []


def test_a_dimension_that_the_original_names_may_be_named() -> None:
    original = "Rate helpfulness, not Clarity.\n"
    assert lint(original, others=OTHERS).findings(f"{original}\nClarity is rated elsewhere.\n") == []


def test_the_rated_dimension_may_be_named_with_another_s_name_inside() -> None:
    others = ("acceptability", "local_acceptability", "global_acceptability")
    made = GuidelineLint("Read it.\n", "local_acceptability", FIVE, others, [])
    assert made.findings("Read it.\n\nRate local acceptability.\n") == []
    found = made.findings("Read it.\n\nRate acceptability.\n\nRate global acceptability.\n")
    assert [(finding.line, finding.detail.partition('"')[2].partition('"')[0]) for finding in found] == [
        (3, "acceptability"),
        (5, "global acceptability"),
    ]


# --- quotes --------------------------------------------------------------------------------------------------

ITEM = "The derailleur hanger on your touring bike was bent, so we replaced it free of charge."


@pytest.mark.parametrize(
    ("line", "quote"),
    [
        ("Such as: 'the derailleur hanger on your touring bike was' and so on", "on your touring bike was"),
        ("THE DERAILLEUR -- hanger, on your *touring* bike!", "the derailleur hanger on your touring bike"),
        ("Say bent, so we replaced it free of charge.", "bent so we replaced it free of charge"),
        ("Say bent so we replaced\nit free of charge.", "bent so we replaced it free of charge"),
    ],
)
def test_seven_words_of_an_item_are_a_quote(line: str, quote: str) -> None:
    (found,) = lint("Read it.\n", items=["Another text.", ITEM]).findings(f"Read it.\n\n{line}\n")
    assert (found.line, found.check) == (3, "quotes_item")
    assert quote in found.detail


def test_fewer_words_and_words_of_two_items_are_no_quote() -> None:
    made = lint("Read it.\n", items=["one two three four", "five six seven eight nine ten eleven"])
    assert made.findings("Read it.\n\nSay three four five six seven eight nine ten, not ten eleven.\n") == []


def test_words_of_the_original_are_no_quote() -> None:
    original = f"Read it. {ITEM}\n"
    assert lint(original, items=[ITEM]).findings(f"Read it.\n\n{ITEM}\n") == []


def test_each_quote_is_found_once() -> None:
    other = "Please call us on Friday between ten and noon to pick it up."
    found = lint("Read it.\n", items=[ITEM, other]).findings(f"Read it.\n\n- {ITEM}\n- Well.\n- {other}\n")
    assert [(finding.line, finding.check) for finding in found] == [(3, "quotes_item"), (5, "quotes_item")]


def test_a_quote_without_blanks_between_words() -> None:
    item = "我们已经更换了您的自行车后轮并且免费检查了刹车"  # 23 characters; 14 make a quote
    made = lint("Read it.\n", items=[item])
    assert [found.check for found in made.findings(f"Read it.\n\n例如{item[3:17]}等等\n")] == ["quotes_item"]
    assert made.findings(f"Read it.\n\n例如{item[3:16]}等等\n") == []


def test_n_grams_agree_with_a_plain_search() -> None:
    """Random texts of few words: a window of three is found exactly if the joined words stand in an item."""
    random_state = random.Random(0)
    items = [" ".join(random_state.choices("abcdef", k=random_state.randrange(12))) for _ in range(30)]
    for _ in range(200):
        words = random_state.choices("abcdef", k=3)
        made = GuidelineLint("Read it.", "helpfulness", FIVE, [], items, ngram=3)
        quoted = any(finding.check == "quotes_item" for finding in made.findings(f"Read it.\n{' '.join(words)}"))
        assert quoted == any(" ".join(words) in item for item in items)


@pytest.mark.slow
def test_many_items_take_little_memory_and_time() -> None:
    """30,000 items of 300 words: 9 million n-grams, 72 MB of hashes."""
    script = """
import random, re, time
from raters.guideline_lint import GuidelineLint
from raters.scales import OrdinalScale
words = [f"word{number}" for number in range(20000)]
draw = random.Random(0)
def items():
    for _ in range(30000):
        yield " ".join(draw.choices(words, k=300))
start = time.process_time()
for _ in items():
    pass
alone = time.process_time() - start
draw.seed(0)
start = time.process_time()
lint = GuidelineLint("Read it.", "helpfulness", OrdinalScale(labels=(1, 2)), [], items())
# Not ru_maxrss, which begins with what the process that forked this one had.
peak = int(re.search(r"VmHWM:\\s+(\\d+)", open("/proc/self/status").read())[1])
print(time.process_time() - start - alone, peak / 2**20)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    seconds, gigabytes = map(float, done.stdout.split())
    assert seconds < 30  # 5 on an idle machine
    assert gigabytes < 1


# --- lost rules ----------------------------------------------------------------------------------------------

RULES = """# Is the fact in the text?

Read the text first. Decide whether the statement's
meaning is in it.

- `present`: the statement's meaning is in the text.
- `not_present`: it is not.

1. Judge meaning, not wording.
2. Do not use general knowledge or anything outside the text.
3. Take numbers and dates approximately; a sum of money counts without its currency. A different month is a mismatch.

| case | what to do |
|---|---|
| slash between names | either one is enough |
"""


def lost(guideline: str, replaced: dict[str, str] | None = None) -> list[int]:
    found = lint(RULES, PRESENT).findings(guideline, replaced or {})
    assert all(finding.check == "lost_rule" for finding in found)
    assert all(str(finding).startswith(f"original line {finding.line}: its rule is lost, ") for finding in found)
    return [finding.line for finding in found]


@pytest.mark.parametrize(
    ("old", "new", "lines"),
    [
        ("Read the text first. ", "", [3]),
        ("Decide whether the statement's\nmeaning is in it.\n", "", [3]),
        ("- `not_present`: it is not.\n", "", [7]),
        ("1. Judge meaning, not wording.\n", "", [9]),
        (" A different month is a mismatch.", "", [11]),
        ("| slash between names | either one is enough |\n", "", [15]),
        # headings, table heads and rules may go
        ("# Is the fact in the text?\n\n", "", []),
        ("| case | what to do |\n|---|---|\n", "", []),
        # the same rule in other words, in another place, or as part of a longer one
        ("1. Judge meaning, not wording.", "1. Judge the meaning and not the wording; names apart.", []),
        ("2. Do not use general knowledge or", "2. Never make use of general knowledge, or of", []),
        ("1. Judge meaning, not wording.", "1. Judge meaning. Wording does not matter.", []),
        ("Read the text first. ", "First, read the text. ", []),
        ("- `present`: the statement's meaning is in", "- **present** – the meaning of the statement is in", []),
        ("A different month is a mismatch.", "- A different month is a mismatch!", []),
        # turned round, or about another label
        ("2. Do not use general knowledge or", "2. Use general knowledge or", [10]),
        ("3. Take numbers", "3. Do not take numbers", [11]),
        ("- `present`: the statement's meaning is in", "- `not_present`: the statement's meaning is not in", [6]),
        ("1. Judge meaning, not wording.", "1. Judge tone, not wording.", [9]),
    ],
)
def test_which_rules_are_lost(old: str, new: str, lines: list[int]) -> None:
    assert old in RULES
    assert lost(RULES.replace(old, new)) == lines


def test_a_replaced_line_is_not_lost_while_its_successor_is_there() -> None:
    old, new = "1. Judge meaning, not wording.", "1. Compare what is claimed."
    edited = RULES.replace(old, new)
    assert lost(edited) == [9]
    assert lost(edited, {old: new}) == []
    assert lost(edited, {f"  {old} ": f"{new}  "}) == []
    assert lost(edited, {"Judge meaning, not wording.": new, old: "gone"}) == []
    assert lost(edited, {old: "Something between.", "Something between.": new}) == []
    assert lost(edited, {old: "gone", "gone": old}) == [9]
    assert lost(edited, {old: ""}) == [9]
    (found,) = lint(RULES, PRESENT).findings(edited, {old: "1. Gone."})
    assert str(found) == (
        'original line 9: its rule is lost, "Judge meaning, not wording.", and what replaces it is not there, '
        '"1. Gone."; put it back, or name the line that replaces it'
    )


def test_a_line_of_several_sentences_is_replaced_as_a_whole() -> None:
    old = RULES.splitlines()[10]
    assert lost(RULES.replace(old, "3. Be lenient."), {old: "3. Be lenient."}) == []


def test_reordered_rules_are_not_lost() -> None:
    blocks = RULES.strip().split("\n\n")
    assert lost("\n\n".join([blocks[0], *reversed(blocks[1:])])) == []


# --- length --------------------------------------------------------------------------------------------------


def too_long(original: str, guideline: str, most_words: int | None = None) -> list[Finding]:
    made = GuidelineLint(original, "helpfulness", FIVE, [], [], most_words=most_words)
    return [finding for finding in made.findings(guideline) if finding.check == "too_long"]


def test_the_limit_is_400_words_or_three_times_the_original() -> None:
    assert too_long("word " * 10, "word " * 400) == []
    assert len(too_long("word " * 10, "word " * 401)) == 1
    assert too_long("word " * 200, "word " * 600) == []
    assert len(too_long("word " * 200, "word " * 601)) == 1


def test_the_finding_names_the_line_that_passes_the_limit() -> None:
    (found,) = too_long("a b", "one two\nthree four five\nsix", most_words=4)
    assert str(found) == "guideline line 2: has 6 words, 4 are the most; shorten it"


def test_text_without_blanks_has_a_length_too() -> None:
    assert too_long("a", "好" * 800) == []
    assert len(too_long("a", "好" * 802)) == 1
    assert len(too_long("a", "x" * 100_000)) == 1


# --- real guidelines -----------------------------------------------------------------------------------------


def corpus_at(folder: Path) -> Corpus:
    return load_corpus(folder)


def hold_originals(folder: Path) -> None:
    """An original has no finding, nor have its lines in a guideline that does not have them."""
    corpus = corpus_at(folder)
    texts = [text for index in range(len(corpus.item_ids)) for text in corpus.item(index).inputs.values()]
    for dimension in corpus.dimensions.values():
        others = list(corpus.dimensions)
        original = dimension.guideline
        made = GuidelineLint(original, dimension.name, dimension.scale, others, texts)
        assert made.findings(original) == []
        foreign = GuidelineLint("Read it.", dimension.name, dimension.scale, others, texts)
        assert [found for found in foreign.findings(f"Read it.\n\n{original}") if found.check != "lost_rule"] == []


def hold_removals(folder: Path) -> int:
    """A line or sentence taken out of an original is missed, whatever the others say; return how many there were."""
    removed = 0
    for dimension in corpus_at(folder).dimensions.values():
        made = GuidelineLint(dimension.guideline, dimension.name, dimension.scale, [], [])
        lines = dimension.guideline.splitlines()
        for place, line in enumerate(lines):
            if not line.strip() or line.startswith("#") or line in ("| label | meaning |", "|---|---|"):
                continue
            parts = [line] if line[0] in "|-" else re.split(r"(?<=\D[.?!]) (?=[A-Z])", line)
            for part in {line, *parts}:
                left = "\n".join([*lines[:place], line.replace(part, ""), *lines[place + 1 :]])
                found = made.findings(left)
                assert {(finding.line, finding.check) for finding in found} == {(place + 1, "lost_rule")}
                removed += 1
    return removed


def test_the_demo_guideline_has_no_finding() -> None:
    hold_originals(DEMO)


def test_rules_taken_out_of_the_demo_guideline_are_missed() -> None:
    assert hold_removals(DEMO) == 13


@pytest.mark.real_corpora
@pytest.mark.parametrize("name", ["argquality_novice", "realsumm", "ukpconvarg1"])
def test_real_guidelines_have_no_finding(name: str) -> None:
    hold_originals(CORPORA / name)


@pytest.mark.real_corpora
@pytest.mark.parametrize(("name", "rules"), [("argquality_novice", 99), ("realsumm", 14), ("ukpconvarg1", 7)])
def test_rules_taken_out_of_real_guidelines_are_missed(name: str, rules: int) -> None:
    assert hold_removals(CORPORA / name) == rules


# --- untrusted text ------------------------------------------------------------------------------------------

UNITS = [
    "usually ", "give 3 , ", "when in doubt ", "9", "1,111", " ", "a\u0300\u0327", "\u0300\u0327", "a", "*", "`", "|",
    "most of the replies get ", "rate it\n", "- 3: x\n", "\n", "scale from 1 to ", "好", "a-", "<rating>", "a'", ". ",
    "40 % of ", "\u2028x", "\ud800", "clarity ", "1. ", "`a`:", "not ", "3 is ", "(", "٣", "²", "½ ", "\x00", "ﷺ",
]  # fmt: skip


def seconds_for(made: GuidelineLint, text: str) -> float:
    start = time.thread_time()
    for finding in made.findings(text):
        assert len(str(finding)) < 500
        assert str(finding).isprintable()
    return time.thread_time() - start


@pytest.mark.parametrize("unit", UNITS, ids=ascii)
def test_time_grows_with_length_alone(unit: str) -> None:
    """Four times the text takes about four times as long, where quadratic time would be sixteen times.

    A hundredth of a second is the least that is told from noise; best of three, since a busy machine charges a process
    for the memory that others take.
    """
    made = GuidelineLint("Read it.\nRate it.\n", "helpfulness", FIVE, ["clarity"], [ITEM], most_words=10**6)
    short, long = (unit * (length // len(unit)) for length in (5_000, 20_000))
    tries = (seconds_for(made, long) < 10 * max(seconds_for(made, short), 0.0125) for _ in range(3))
    assert any(tries)


def test_a_text_far_too_long_is_not_read_further() -> None:
    (found,) = lint("Read it.\n").findings("Rate it 6. " * 10_000)
    assert found.check == "too_long"


@pytest.mark.parametrize(
    "text", ["", "\n", "#", "-", "|", "```", "**", "3", "3:", "`3`", "`", ":", "- ", "1.", "\ufeff"]
)
def test_odd_guidelines_are_read(text: str) -> None:
    assert [finding.check for finding in lint("Read it.\n").findings(text)] == ["lost_rule"]
    assert lint(text).findings(text) == []


def test_the_lint_changes_nothing_between_calls() -> None:
    made = lint("Read it.\n", items=[ITEM], others=OTHERS)
    text = f"Read it.\n\nUsually rate 6. Clarity matters.\n{ITEM}\n"
    assert made.findings(text) == made.findings(text)
    assert [finding.check for finding in made.findings(text)] == [
        "other_dimension", "states_frequency", "contradicts_scale", "quotes_item"
    ]  # fmt: skip


def test_any_text_is_faultless_beside_itself() -> None:
    """Random pieces of a guideline and of Markdown: whatever they come to say, the original says it too."""
    random_state = random.Random(1)
    pieces = (DEMO / "guidelines" / "helpfulness.md").read_text(encoding="utf-8").split(" ")
    pieces += [
        "\n",
        "\n\n",
        "\n- ",
        "\n1. ",
        "\n| ",
        "\n> ",
        "\n===\n",
        "\n---\n",
        "```",
        "`3`",
        "**6**:",
        ":",
        "6",
        "7 labels",
    ]
    pieces += ["usually", "most", "rate", "A", "tie", "1 is the best", "\ud800", "½", "|\n|---|---|\n", "clarity", "\t"]
    for _ in range(400):
        text, item = (" ".join(random_state.choices(pieces, k=random_state.randrange(40))) for _ in range(2))
        scale = random_state.choice([FIVE, PRESENT, PAIR, PERCENT, WORDS])
        made = lint(text, scale, OTHERS, [item, text])
        assert made.findings(text) == []
        assert all(str(finding).isprintable() for finding in made.findings(item))
