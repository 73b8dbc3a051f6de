"""Words of a text in any script, and the n-grams that tell whether one text quotes another."""

from __future__ import annotations

import unicodedata
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

LONGEST_TOKEN = 40  # characters; what is longer is no word
_SLICE = 2**20  # characters of a text whose words are in memory at once
_BATCH = 2**18  # words whose n-grams are sorted at once
_MULTIPLIER = np.uint64(0x9E3779B97F4A7C15)  # 2^64 / golden ratio; odd, so that no word's bits are lost

_UNSPACED = (
    (0x0E00, 0x0EFF),  # Thai, Lao
    (0x1000, 0x109F),  # Myanmar
    (0x1780, 0x17FF),  # Khmer
    (0x3040, 0x30FF),  # Hiragana, Katakana
    (0x3400, 0x9FFF),  # Han
    (0xF900, 0xFAFF),
    (0x20000, 0x3FFFF),
)
APOSTROPHES = "'’ʼ"


def is_unspaced(char: str) -> bool:
    """True for a character of a script that does not part words by blanks."""
    code = ord(char)
    return code >= _UNSPACED[0][0] and any(first <= code <= last for first, last in _UNSPACED)


class _Folding(dict[int, str]):
    """Table for str.translate: small letters without accents, a blank for all that is neither letter nor digit.

    One character at a time, since normalising a whole text takes quadratic time where accents pile up.
    """

    def __missing__(self, code: int) -> str:
        self[code] = folded = self.fold(chr(code))
        return folded

    def fold(self, char: str) -> str:
        if char in APOSTROPHES or unicodedata.category(char) in ("Mn", "Mc", "Me", "Cf"):
            return ""
        parts = unicodedata.normalize("NFKD", unicodedata.normalize("NFKD", char).casefold())
        plain = "".join(
            part if part.isalnum() else " " for part in parts if not unicodedata.category(part).startswith("M")
        )
        return f" {plain} " if is_unspaced(char) else plain


class _Plain(_Folding):
    """Table for str.translate: characters in their compatible form; case and punctuation stay."""

    def fold(self, char: str) -> str:
        if char.isspace():
            return " "
        return "" if unicodedata.category(char) in ("Mn", "Me", "Cf") else unicodedata.normalize("NFKC", char)


_FOLDING, PLAIN = _Folding(), _Plain()


def word_lists(text: str) -> Iterator[list[str]]:
    """Yield the words of a text in lists of bounded size; a word without end is cut."""
    start = 0
    while start < len(text):
        end = start + _SLICE
        if end < len(text):
            blank = text.rfind(" ", start, end)
            end = blank if blank > start else end
        yield text[start:end].translate(_FOLDING).split()
        start = end


def words_with_lines(text: str) -> tuple[list[str], list[int]]:
    """Return (words, the line of each, from 1) of a text."""
    words: list[str] = []
    lines: list[int] = []
    for number, line in enumerate(text.splitlines(), start=1):
        for part in word_lists(line):
            words += part
            lines += [number] * len(part)
    return words, lines


def _word_length(word: str) -> float:
    return 0.5 if len(word) == 1 and is_unspaced(word) else 1.0 + len(word) // LONGEST_TOKEN


def count_words(words: Iterable[str]) -> int:
    """Return the length in words; two characters are one where writing does not part words, an endless one many."""
    return round(sum(map(_word_length, words)))


def line_of_word(words: Sequence[str], lines: Sequence[int], count: int) -> int:
    """Return the line of the first word that is one too many."""
    total = 0.0
    for word, line in zip(words, lines, strict=True):
        total += _word_length(word)
        if total > count:
            return line
    return lines[-1]


def names_to_find(
    dimension: str, others: Sequence[str], original: Sequence[str]
) -> dict[str, list[tuple[tuple[str, ...], str | None]]]:
    """Return (words of a name, name) by first word, longest first; the name is None where it may be said.

    The rated dimension may be named, and with it a shorter name inside its own. So may every name that the original
    has, since its edits go on speaking of it.
    """
    own = tuple(word for part in word_lists(dimension) for word in part)
    said = f" {' '.join(original)} "
    names: dict[tuple[str, ...], str | None] = {}
    for other in others:
        name = tuple(word for part in word_lists(other.replace("_", " ")) for word in part)
        if name and name != own and len("".join(name)) > 2:
            pattern = " ".join(name)
            named = any(f" {form} " in said for form in (pattern, pattern.rstrip("s"), f"{pattern}s"))
            names[name] = None if named else pattern
    names[own] = None
    found = defaultdict(list)
    for name in sorted(filter(None, names), key=len, reverse=True):
        found[name[0].rstrip("s")].append((name, names[name]))
    return dict(found)


def grams(words: Sequence[str], size: int) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return (starts, hashes, lengths) of the n-grams of one text."""
    return _windows(_codes(words), _unspaced_words(words), np.full(len(words), len(words)), size)


def _codes(words: Sequence[str]) -> NDArray[np.uint64]:
    return np.fromiter(map(hash, words), np.int64, len(words)).astype(np.uint64)


def _unspaced_words(words: Sequence[str]) -> NDArray[np.bool_]:
    return np.fromiter((len(word) == 1 and is_unspaced(word) for word in words), np.bool_, len(words))


def _windows(
    codes: NDArray[np.uint64], unspaced: NDArray[np.bool_], ends: NDArray[np.int64], size: int
) -> tuple[NDArray[np.int64], NDArray[np.uint64], NDArray[np.int64]]:
    """Return (starts, hashes, lengths) of all n-grams that lie in one text.

    The hash is a polynomial in the words' 64-bit hashes modulo 2^64: in 15 million n-grams one of a guideline's
    thousand is found by chance once in a billion guidelines.

    Args:
        codes: (words,) hash of each word, of this process alone.
        unspaced: (words,) True for a character of a script that does not part words.
        ends: (words,) place behind the last word of the word's text.
        size: Words of an n-gram; one that begins with such a character is twice as long.
    """
    starts, hashes, lengths = [np.empty(0, np.int64)], [np.empty(0, np.uint64)], [np.empty(0, np.int64)]
    for length, wanted in ((size, ~unspaced), (2 * size, unspaced)):
        count = max(0, len(codes) - length + 1)
        places = np.flatnonzero(wanted[:count] & (np.arange(count) + length <= ends[:count]))
        if len(places):
            mixed = np.zeros(count, np.uint64)
            for offset in range(length):
                mixed *= _MULTIPLIER
                mixed += codes[offset : offset + count]
            starts.append(places)
            hashes.append(mixed[places])
            lengths.append(np.full(len(places), length))
    return np.concatenate(starts), np.concatenate(hashes), np.concatenate(lengths)


def item_grams(texts: Iterable[str], size: int) -> NDArray[np.uint64]:
    """Return the hashes of all different n-grams of the texts, sorted."""
    found = [np.empty(0, np.uint64)]
    codes: list[NDArray[np.uint64]] = []
    unspaced: list[NDArray[np.bool_]] = []
    lengths: list[int] = []

    def hash_waiting() -> None:
        if sum(lengths):
            ends = np.repeat(np.cumsum(lengths), lengths)
            found.append(_sorted(_windows(np.concatenate(codes), np.concatenate(unspaced), ends, size)[1]))
        for waiting in (codes, unspaced, lengths):
            waiting.clear()

    waiting = 0
    for text in texts:
        lengths.append(0)
        for part in word_lists(text):
            codes.append(_codes(part))
            unspaced.append(np.zeros(len(part), np.bool_) if text.isascii() else _unspaced_words(part))
            lengths[-1] += len(part)
        waiting += lengths[-1]
        if waiting >= _BATCH:
            hash_waiting()
            waiting = 0
    hash_waiting()
    return _sorted(np.concatenate(found))


def _sorted(hashes: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return the different hashes in order; np.unique goes through a hash table, which took a minute for 12 million."""
    hashes.sort()
    return hashes[np.concatenate([[True], hashes[1:] != hashes[:-1]])] if len(hashes) else hashes


def among(hashes: NDArray[np.uint64], known: NDArray[np.uint64]) -> NDArray[np.bool_]:
    """Return (hashes,) True for those that stand in the sorted ones."""
    if not len(known):
        return np.zeros(len(hashes), np.bool_)
    places = np.minimum(np.searchsorted(known, hashes), len(known) - 1)
    return np.equal(known[places], hashes)
