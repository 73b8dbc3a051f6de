"""Text without characters that control what stands around it unseen."""

from __future__ import annotations

import unicodedata

_KEPT_UNPRINTABLE = "\n\t\u200c\u200d"
"""Of what is not printable, what scripts need to join letters and what separates lines and words."""


def visible(page: str) -> str:
    """Return a page without characters that control it unseen; spaces of all widths and joiners stay."""
    return "".join(
        character
        if character.isprintable() or character in _KEPT_UNPRINTABLE or unicodedata.category(character) == "Zs"
        else "\N{REPLACEMENT CHARACTER}"
        for character in page.replace("\r\n", "\n")
    )
