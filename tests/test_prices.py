"""The table of prices: what ships, what users add, what is refused."""

from __future__ import annotations

from pathlib import Path

import pytest

from raters.prices import Price, dearer, price_table, read_prices
from raters.records import ConfigError


def write(folder: Path, text: str) -> Path:
    path = folder / "prices.yaml"
    path.write_text(text)
    return path


def test_what_tokens_cost() -> None:
    assert Price(1.5, 6.0).usd(2_000_000, 500_000) == pytest.approx(3.0 + 3.0)
    assert dearer(Price(1, 9), Price(2, 3)) == Price(2, 9)


def test_the_table_that_ships_states_no_vendors_price() -> None:
    table = price_table(None)
    assert list(table) == ["openai/example"]
    assert all(price.as_of and price.source for price in table.values())


def test_a_users_file_goes_before_it(tmp_path: Path) -> None:
    path = write(
        tmp_path,
        "openai/example: {input: 2, output: 3, as_of: 2025-06-30}\n"
        "openai/mine: {input: 0.1, output: 0.4, as_of: 2025-06-30, source: my contract}\n",
    )
    table = price_table(path)
    assert table["openai/example"] == Price(2.0, 3.0, "2025-06-30")
    assert table["openai/mine"] == Price(0.1, 0.4, "2025-06-30", "my contract")


@pytest.mark.parametrize(
    ("text", "names"),
    [
        ("", ["holds no prices"]),
        ("- 1\n", ["holds no prices"]),
        ("openai/mine: 3\n", ["openai/mine"]),
        ("openai/mine: {input: 1, output: 2}\n", ["openai/mine.as_of", "required"]),
        ("openai/mine: {input: -1, output: 2, as_of: 2025-01-31}\n", ["openai/mine.input"]),
        ("openai/mine: {input: .nan, output: 2, as_of: 2025-01-31}\n", ["openai/mine.input"]),
        ("openai/mine: {input: true, output: 2, as_of: 2025-01-31}\n", ["openai/mine.input"]),
        ("openai/mine: {input: 1, output: 2, as_of: lately}\n", ["openai/mine.as_of"]),
        ("openai/mine: {input: 1, output: 2, as_of: 2025-01-31, cached: 1}\n", ["openai/mine.cached"]),
        ("openai/mine: {input: 1\n", ["cannot be read"]),
    ],
)
def test_what_is_no_price_is_one_line(tmp_path: Path, text: str, names: list[str]) -> None:
    with pytest.raises(ConfigError) as refused:
        read_prices(write(tmp_path, text), "--prices prices.yaml")
    line = str(refused.value)
    assert "\n" not in line
    assert line.startswith("--prices prices.yaml: ")
    for name in names:
        assert name in line


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="no such file; check the name"):
        price_table(tmp_path / "none.yaml")
