"""What tokens cost: the table that ships with the project, and files of the same form that users add to it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from raters.records import ConfigError, shown
from raters.resources import resource_folder
from raters.yaml_files import read_yaml

_SHIPPED = "prices.yaml"


@dataclass(frozen=True, slots=True)
class Price:
    """What a model's tokens cost.

    Attributes:
        input: USD for a million tokens read.
        output: USD for a million tokens written.
        as_of: Day on which that was so, as in ISO 8601; empty if nobody said.
        source: Where it stands; empty if nobody said.
    """

    input: float
    output: float
    as_of: str = ""
    source: str = ""

    def usd(self, read: int, written: int) -> float:
        """Return what so many tokens cost in USD."""
        return (read * self.input + written * self.output) / 1e6

    def as_record(self) -> dict[str, Any]:
        """Return the price as plain values."""
        return {"input": self.input, "output": self.output, "as_of": self.as_of, "source": self.source}


FREE = Price(0.0, 0.0)


def dearer(first: Price, second: Price) -> Price:
    """Return a price that is no less than either, for tokens of which nobody knows whose they are."""
    return Price(max(first.input, second.input), max(first.output, second.output))


class _Entry(BaseModel):
    """An entry of a table, as the file has it."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False, strict=True)

    input: float = Field(ge=0)
    output: float = Field(ge=0)
    as_of: datetime.date
    source: str = ""


def read_prices(path: Path, where: str) -> dict[str, Price]:
    """Return the prices of a file, by `provider/name`.

    Args:
        path: A YAML file; data/prices.yaml says how it is written.
        where: For the error: who names it.

    Raises:
        ConfigError: If it cannot be read, or an entry is not a price with the day on which it held.
    """
    table = read_yaml(path, where, "check the name")
    form = "write `openai/name: {input: 1.0, output: 4.0, as_of: 2025-01-31}`, in USD for a million tokens"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{where}: holds no prices; {form}")
    prices = {}
    for name, entry in table.items():
        try:
            read = _Entry.model_validate(entry)
        except ValidationError as error:
            detail = error.errors()[0]
            place = ".".join(map(str, (name, *detail["loc"])))
            raise ConfigError(f"{where}: {shown(place)}: {detail['msg'].lower()}; {form}") from error
        prices[str(name)] = Price(read.input, read.output, read.as_of.isoformat(), read.source)
    return prices


def price_table(path: Path | None) -> dict[str, Price]:
    """Return the prices that ship with the project, with those of a user's file before them.

    Raises:
        ConfigError: If the file is not a table of prices.
    """
    shipped = resource_folder("data") / _SHIPPED
    return {**read_prices(shipped, str(shipped)), **({} if path is None else read_prices(path, f"--prices {path}"))}
