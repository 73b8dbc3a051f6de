"""A scripted server that answers like a writer: it tells the prompts of prompts/writer/ apart, and can misbehave."""

from __future__ import annotations

import re
import threading
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from tests.scripted_server import Answer, Fault, ScriptedServer

Reply = Answer | Fault | str
Say = Reply | Sequence[Reply] | Callable[[str, int], Reply]
"""What is answered: the same every time, one after the other (the last one again), or by the prompt and its number."""
PURPOSES = {
    "Write the procedure": "instructions",
    "List the points": "critiques",
    "Write criteria": "criteria",
    "Propose one small edit": "edit",
}
GOOD = {
    "instructions": "<instructions>\n1. Read it.\n2. Weigh the reasons.\n3. Choose a label.\n</instructions>",
    "critiques": "<critiques>\n- It gives reasons.\n- It is hard to follow.\n</critiques>",
    "criteria": "<criteria>\n- LOW: no reason is given.\n- HIGH: every claim has a reason.\n</criteria>",
    "edit": "<edit></edit>",
}
BAD: Mapping[str, Callable[[str], Reply]] = {
    "no tags": lambda purpose: "I would weigh the reasons first and then choose.",
    "two blocks": lambda purpose: f"{filled(purpose)}\nOr rather:\n{filled(purpose)}",
    "one block in another": lambda purpose: f"<{purpose}>{filled(purpose)}</{purpose}>",
    "another part": lambda purpose: filled("criteria" if purpose != "criteria" else "instructions"),
    "a whole guideline": lambda purpose: "<guideline>\nRate it.\n</guideline>",
    "unclosed": lambda purpose: filled(purpose).replace(f"</{purpose}>", ""),
    "empty answer": lambda purpose: "",
    "blank answer": lambda purpose: " \n ",
    "null answer": lambda purpose: Answer(None),
    "endless": lambda purpose: Answer(filled(purpose), finish_reason="length", completion_tokens=4096),
    "cut off": lambda purpose: Answer(filled(purpose)[:-9], finish_reason="length", completion_tokens=4096),
    "content filter": lambda purpose: Answer(None, finish_reason="content_filter"),
    "content filter half way": lambda purpose: Answer(filled(purpose), finish_reason="content_filter"),
    "refusal": lambda purpose: Answer(None, refusal="I'm sorry, I can't help with that."),
    "HTTP 400": lambda purpose: Fault(
        400, "The response was filtered.", "invalid_request_error", "content_filter", "prompt"
    ),
}
"""Answers to each purpose that are none."""


def filled(purpose: str) -> str:
    """Return a block that could be used."""
    return edit_block("add", 1, "- Reasons count.") if purpose == "edit" else GOOD[purpose]


def edit_block(action: str, line: object, text: str = "", *, to: object = None, why: str = "It helps.") -> str:
    """Return an edit as a writer answers it."""
    fields = {"action": action, "line": line, "to": to, "text": text or None, "why": why}
    inner = "\n".join(f"<{name}>{value}</{name}>" for name, value in fields.items() if value is not None)
    return f"Let me see.\n\n<edit>\n{inner}\n</edit>"


class ScriptedWriter(ScriptedServer):
    """A server that writes.

    Args:
        says: By purpose, what is answered in place of `GOOD`; `rate` answers whoever asks for a rating.

    Attributes:
        prompts: By purpose, what was asked, in the order of arrival.
    """

    def __init__(self, says: Mapping[str, Say] | None = None, **options: Any) -> None:
        self.says: dict[str, Say] = {**GOOD, "rate": "<rating>3</rating>", **(says or {})}
        self.prompts: dict[str, list[str]] = defaultdict(list)
        self._entering = threading.Lock()
        super().__init__(self._script, **options)

    @property
    def counts(self) -> dict[str, int]:
        """How many requests came for each purpose."""
        return dict(Counter({purpose: len(prompts) for purpose, prompts in self.prompts.items()}))

    def _script(self, body: dict[str, Any], count: int) -> Answer | Fault:
        prompt = body["messages"][-1]["content"]
        purpose = next((purpose for words, purpose in PURPOSES.items() if words in prompt), "rate")
        with self._entering:
            number = len(self.prompts[purpose])
            self.prompts[purpose].append(prompt)
        says = self.says[purpose]
        if callable(says):
            says = says(prompt, number)
        elif not isinstance(says, Answer | Fault | str):
            says = says[min(number, len(says) - 1)]
        return Answer(says) if isinstance(says, str) else says


def numbered_lines(prompt: str) -> list[str]:
    """Return the lines of the guideline that an edit prompt shows, by their numbers from 1."""
    shown = re.search(r"<guideline>\n(.*?)\n</guideline>", prompt, re.DOTALL)
    assert shown is not None
    lines = [re.fullmatch(r"\[(\d+)\] ?(.*)", line) for line in shown[1].split("\n")]
    assert all(lines)
    assert [int(line[1]) for line in lines if line] == list(range(1, len(lines) + 1))
    return [line[2] for line in lines if line]
