"""How long work will still take, told from how long it has taken."""

from __future__ import annotations


def time_left(done: float, total: float, seconds: float) -> str:
    """Return how long the rest will take at the pace so far, in words; empty if nothing tells, or nothing is left.

    Args:
        done: Of the work, in the time given.
        total: Of the work, in the same unit.
        seconds: That it took.
    """
    if done <= 0 or done >= total or seconds <= 0:
        return ""
    return f"about {in_words(seconds * (total - done) / done)} left"


def in_words(seconds: float) -> str:
    """Return a time as a person says it: seconds, minutes, or hours and minutes."""
    if seconds < 60:
        return f"{max(1, round(seconds))} s"
    minutes = round(seconds / 60)
    return f"{minutes} min" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"
