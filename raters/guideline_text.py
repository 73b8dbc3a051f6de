"""A guideline as lines that remember where they come from, and the small edits that change it.

Every line is the original's own, or was written by a numbered proposal. So each line of a refined guideline can be
shown beside the evidence it was kept for, and a rule of the original cannot get lost unseen.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from raters.prompts import harmless

Action = Literal["add", "sharpen", "remove", "move"]
MOST_LINE_CHARACTERS = 600
MOST_EDIT_LINES = 12
MOST_SECTION_LINES = 48
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202a-\u202e\u2066-\u2069]")


class UnusableEditError(ValueError):
    """An edit that does not fit the guideline. The message says why, for the log and for the writer."""


@dataclass(frozen=True, slots=True)
class Line:
    """One line of a guideline.

    Attributes:
        text: Without its line break.
        original: Number, from 1, of the original's line that it is or replaces; None if it is new.
        proposal: Number of the proposal that wrote it or moved it; None if it stands as in the original.
    """

    text: str
    original: int | None
    proposal: int | None

    @property
    def is_heading(self) -> bool:
        """True for a Markdown heading."""
        return self.text.startswith("#")


@dataclass(frozen=True, slots=True)
class Edit:
    """One small change.

    Attributes:
        action: `add` puts text after a line, `sharpen` replaces a line, `remove` takes one out, `move` puts one
            elsewhere.
        line: The line it concerns, from 1; for `add` 0 is the top.
        text: New line or lines, for `add` and `sharpen`.
        to: For `move`: the line after which it goes, counted before the move.
    """

    action: Action
    line: int
    text: str = ""
    to: int = 0


@dataclass(frozen=True, slots=True)
class Guideline:
    """A guideline, line by line.

    Attributes:
        lines: From top to bottom.
    """

    lines: tuple[Line, ...]

    @classmethod
    def of(cls, text: str) -> Guideline:
        """Return an original guideline."""
        return cls(tuple(Line(line, number, None) for number, line in enumerate(text.rstrip().splitlines(), start=1)))

    @property
    def text(self) -> str:
        """The guideline as a file holds it."""
        return "".join(f"{line.text}\n" for line in self.lines)

    def numbered(self) -> str:
        """Return the guideline with its line numbers, for a writer."""
        return "\n".join(f"[{number}] {line.text}" for number, line in enumerate(self.lines, start=1))

    def apply(self, edit: Edit, proposal: int) -> Guideline:
        """Return the guideline with an edit made.

        Raises:
            UnusableEditError: If the edit does not fit.
        """
        lines = list(self.lines)
        least = 0 if edit.action == "add" else 1
        if not least <= edit.line <= len(lines):
            raise UnusableEditError(f"line {edit.line} is not one of the guideline's {len(lines)} lines")
        if edit.action == "add":
            lines[edit.line : edit.line] = [Line(text, None, proposal) for text in _new_lines(edit.text)]
            return Guideline(tuple(lines))
        old = lines[edit.line - 1]
        if old.is_heading or not old.text.strip():
            raise UnusableEditError(f"line {edit.line} is a heading or blank; an edit is of a rule or a criterion")
        if edit.action == "sharpen":
            first, *more = _new_lines(edit.text)
            if [first, *more] == [old.text]:
                raise UnusableEditError(f"line {edit.line} would stay as it is")
            new = [replace(old, text=first, proposal=proposal), *(Line(text, None, proposal) for text in more)]
            lines[edit.line - 1 : edit.line] = new
        elif edit.action == "remove":
            del lines[edit.line - 1]
        else:
            if not 0 <= edit.to <= len(lines) or edit.to in (edit.line, edit.line - 1):
                raise UnusableEditError(f"line {edit.line} cannot go after line {edit.to}")
            lines.insert(edit.to, replace(old, proposal=proposal))
            del lines[edit.line - 1 if edit.to > edit.line else edit.line]
        return Guideline(tuple(lines))

    def with_section(self, heading: str, texts: Sequence[str], proposal: int) -> Guideline:
        """Return the guideline with a section of its own: in place of the one under that heading, or at the end.

        Lines that stood in the section before stay what they were.

        Raises:
            UnusableEditError: If there is no text, or too much.
        """
        lines = list(self.lines)
        start, stop = self.section(heading)
        known = {line.text: line for line in reversed(lines[start:stop])}
        body = _new_lines("\n".join(texts), most=MOST_SECTION_LINES)
        new = [known.pop(text, Line(text, None, proposal)) for text in (heading, "", *body)]
        blank = Line("", None, proposal)
        if start < stop:
            return Guideline((*lines[:start], *new, *([blank] if stop < len(lines) else []), *lines[stop:]))
        return Guideline((*lines, *([blank] if lines and lines[-1].text.strip() else []), *new))

    def section(self, heading: str) -> tuple[int, int]:
        """Return the places (start, stop) of the lines of a section, its heading among them; equal if there is none."""
        for start, line in enumerate(self.lines):
            if line.text == heading:
                rest = range(start + 1, len(self.lines))
                return start, next((place for place in rest if self.lines[place].is_heading), len(self.lines))
        return len(self.lines), len(self.lines)

    def replaced(self, original: Guideline) -> Mapping[str, str]:
        """Return which lines of the original stand in other words now, and in which."""
        changed = {}
        for line in self.lines:
            if line.original is not None and line.text != (old := original.lines[line.original - 1].text):
                changed[old] = line.text
        return changed


def _new_lines(text: str, most: int = MOST_EDIT_LINES) -> list[str]:
    """Return a writer's text as lines that can stand in a guideline."""
    lines = [_CONTROL.sub("", harmless(line)).rstrip() for line in text.strip("\r\n").splitlines()]
    if not any(line.strip() for line in lines):
        raise UnusableEditError("it has no text")
    if len(lines) > most:
        raise UnusableEditError(f"it has {len(lines)} lines, and at most {most} may change at once")
    if longest := max((line for line in lines if len(line) > MOST_LINE_CHARACTERS), default=""):
        raise UnusableEditError(f"it has a line of {len(longest):,} characters; at most {MOST_LINE_CHARACTERS}")
    return lines


def diff_markdown(original: str, refined: str, title: str) -> str:
    """Return the difference of two guidelines as a Markdown page."""
    if original.rstrip() == refined.rstrip():
        return f"# {title}\n\nNothing was changed.\n"
    lines = difflib.unified_diff(
        original.rstrip().splitlines(), refined.rstrip().splitlines(), "original", "refined", lineterm="", n=3
    )
    body = "\n".join(lines)
    fence = "`" * max(3, 1 + max((len(run) for run in re.findall(r"`+", body)), default=0))
    return f"# {title}\n\n{fence}diff\n{body}\n{fence}\n"
