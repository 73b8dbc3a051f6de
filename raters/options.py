"""What stages and the library can be asked for, as pydantic models: checked values, whose descriptions are help texts.

A stage gets its flags and the keys of `--config` from such a model (`pipelines.options`), the library its keyword
arguments.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, model_validator
from pydantic_core import PydanticCustomError

from raters.records import ConfigError

if TYPE_CHECKING:
    from raters.budgets import Budget, Estimate
    from raters.models.pacing import EndpointLimits
    from raters.prices import Price

_OURS = ("model", "tokenizer", "trust_remote_code", "enable_lora", "max_loras")


BatchSizeOption = Literal["auto"] | Annotated[int, Field(ge=1)]
BATCH_SIZE: Any = Field(
    "auto",
    description="most rows that hf/<path or id> generates at once, of those that --concurrency lets wait; auto: what "
    "the GPU's memory holds, or 16 without a GPU (default: auto)",
)


class StageOptions(BaseModel):
    """Base of every stage's options. A field's description is its help text."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    @model_validator(mode="before")
    @classmethod
    def _no_booleans_for_numbers(cls, data: dict[str, Any]) -> dict[str, Any]:
        for name, value in data.items():
            if (
                isinstance(value, bool)
                and name in cls.model_fields
                and not is_switch(cls.model_fields[name].annotation)
            ):
                raise PydanticCustomError("boolean", "{name}", {"name": name, "value": value})
        return data


class EndpointOptions(StageOptions):
    """Base of the options of stages that may ask a model over HTTP: how openai/<name> may be asked."""

    requests_per_minute: int | None = Field(
        None, ge=1, description="most requests to openai/<name> in any 60 seconds (default: no limit)"
    )
    tokens_per_minute: int | None = Field(
        None, ge=1, description="most tokens, read and written, of openai/<name> in any 60 seconds (default: no limit)"
    )
    max_retries: int = Field(10, ge=0, le=100, description="tries of a request to openai/<name> after the first")
    request_timeout: float = Field(600.0, gt=0, description="seconds of silence after which a request is sent again")
    connect_timeout: float = Field(10.0, gt=0, description="seconds to wait for a connection to openai/<name>")

    @property
    def endpoint_limits(self) -> EndpointLimits:
        """How a served model may be asked."""
        from raters.models.pacing import EndpointLimits

        return EndpointLimits(
            requests_per_minute=self.requests_per_minute,
            tokens_per_minute=self.tokens_per_minute,
            max_retries=self.max_retries,
            request_timeout_seconds=self.request_timeout,
            connect_timeout_seconds=self.connect_timeout,
        )

    def check_endpoint(self, specs: Iterable[str | None]) -> None:
        """Refuse limits of a served model if none of the models asked for is one, and keys in an address.

        Raises:
            ConfigError: If so.
        """
        for name in ("base_url", "writer_base_url"):
            # A run writes its options down, and a key may stand in no file.
            if re.search(r"//[^/]*@|[?#]", getattr(self, name, None) or ""):
                raise ConfigError(
                    f"{flag(name)}: holds a user, password or query, which the run would write down; set it as "
                    "OPENAI_BASE_URL, and a key as OPENAI_API_KEY"
                )
        if any((spec or "").startswith("openai/") for spec in specs):
            return
        for name, field in EndpointOptions.model_fields.items():
            if (value := getattr(self, name)) != field.default:
                raise ConfigError(f"{flag(name)} {value}: is for openai/<name>, and no such model is asked for")


class BudgetOptions(EndpointOptions):
    """Base of the options of stages that draw: what tokens cost, and how much of that is too much."""

    input_price: float | None = Field(
        None, ge=0, description="USD for a million tokens read, whatever the model (default: as --prices says)"
    )
    output_price: float | None = Field(
        None, ge=0, description="USD for a million tokens written (default: as --prices says)"
    )
    prices: str | None = Field(None, description="file of prices by model, as data/prices.yaml is one")
    max_cost: float | None = Field(
        None, ge=0, description="budget: most USD of the run, earlier sessions included (default: no limit)"
    )
    max_total_tokens: int | None = Field(
        None, ge=0, description="budget: most tokens of the run, read and written (default: no limit)"
    )

    def known_prices(self, specs: Iterable[str]) -> dict[str, Price]:
        """Return what models cost, as far as that is known; those of this machine cost nothing.

        Raises:
            ConfigError: If the file of prices cannot be read.
        """
        from raters.prices import FREE, Price, price_table

        specs = list(specs)
        if self.input_price is not None or self.output_price is not None:
            return dict.fromkeys(specs, Price(self.input_price or 0.0, self.output_price or 0.0, source="options"))
        table = price_table(None if self.prices is None else Path(self.prices))
        known = {spec: table.get(spec, None if spec.startswith("openai/") else FREE) for spec in specs}
        return {spec: price for spec, price in known.items() if price is not None}

    def check_budget(self, specs: Iterable[str]) -> None:
        """Refuse a budget that cannot be held.

        Args:
            specs: Models of the run.

        Raises:
            ConfigError: If so, or if the file of prices cannot be read.
        """
        specs = list(specs)
        prices = self.known_prices(specs)
        if self.max_cost is None:
            return
        if unknown := [spec for spec in specs if spec not in prices]:
            raise ConfigError(
                f"--max-cost {self.max_cost}: nobody says what {unknown[0]} costs; give --input-price and "
                "--output-price, or --prices with a file such as data/prices.yaml"
            )
        if not any(price.input or price.output for price in prices.values()):
            raise ConfigError(f"--max-cost {self.max_cost}: no model of the run costs anything; leave it out")

    def budget(self, prices: Iterable[Price], max_tokens: int, draws_of_a_request: int = 1) -> Budget | None:
        """Return the most that a run may use; None if it may use whatever it takes.

        Args:
            prices: Of its models.
            max_tokens: Most tokens of a draw.
            draws_of_a_request: How many.
        """
        from raters.budgets import Budget, Use

        if self.max_cost is None and self.max_total_tokens is None:
            return None
        worst = max((price.usd(0, max_tokens) for price in prices), default=0.0)
        return Budget(self.max_cost, self.max_total_tokens, Use(1, max_tokens, worst), draws_of_a_request)

    def estimate_line(self, first: int, found: Estimate, more: str = "") -> str:
        """Return what a run will use, as a line for the user.

        Args:
            first: How many items it is told from.
            found: The estimate.
            more: What it leaves out.
        """
        over = [
            f"; over {flag(name)} {most}, so the run will end there with all that it has"
            for name, each in (("max_cost", found.usd), ("max_total_tokens", found.tokens))
            if (most := getattr(self, name)) is not None and found.low * (each or 0.0) > most
        ]
        return f"estimate from the first {first} items: {found}{more}{''.join(over[:1])}"


class EngineOptions(EndpointOptions):
    """Base of the options of stages that may run a model in vLLM's engine as well."""

    vllm: tuple[str, ...] = Field(
        (), description="options of the engine of vllm/<path or id>, such as tensor_parallel_size=2 max_model_len=8192"
    )

    @property
    def engine_options(self) -> dict[str, Any]:
        """Options of vLLM's engine by name, each value as YAML reads it.

        Raises:
            ConfigError: If one has no name, or is ours to set.
        """
        found: dict[str, Any] = {}
        for given in self.vllm:
            name, equals, value = given.partition("=")
            if not equals or not name.isidentifier():
                raise ConfigError(f"--vllm {given}: must be NAME=VALUE, such as tensor_parallel_size=2")
            if name in _OURS:
                raise ConfigError(f"--vllm {given}: follows from --model and --adapter; leave it out")
            try:
                found[name] = yaml.safe_load(value)
            except yaml.YAMLError as error:
                raise ConfigError(f"--vllm {given}: must be NAME=VALUE, the value as in YAML") from error
        return found

    def check_endpoint(self, specs: Iterable[str | None]) -> None:
        """Refuse options of models that are not asked for; see `EndpointOptions.check_endpoint`.

        Raises:
            ConfigError: If there are any.
        """
        specs = list(specs)
        super().check_endpoint(specs)
        if self.engine_options and not any((spec or "").startswith("vllm/") for spec in specs):
            raise ConfigError(f"--vllm {self.vllm[0]}: is for vllm/<path or id>, and no such model is asked for")


class WorkerOptions(StageOptions):
    """Base of the options of stages whose draws several workers may make."""

    engine: Literal["local", "ray"] = Field("local", description="where workers are: processes here, or actors of Ray")
    workers: int | None = Field(None, ge=1, le=1024, description="who draw, each for a share of the items (default: 1)")
    ray_address: str | None = Field(None, description="cluster of --engine ray (default: RAY_ADDRESS, or this machine)")

    @property
    def several(self) -> bool:
        """True if others than this process draw."""
        return self.engine != "local" or (self.workers or 1) > 1


class SharedOptions(BudgetOptions, EngineOptions, WorkerOptions):
    """Base of the options of stages that draw, alone or by several workers who share what holds for the run."""

    def whole_limits(self) -> dict[str, int]:
        """Return the limits a minute that are given, by name: they hold for all workers together."""
        given = {name: getattr(self, name) for name in ("requests_per_minute", "tokens_per_minute")}
        return {name: most for name, most in given.items() if most is not None}


def is_switch(annotation: Any) -> bool:
    """Return True for what is on, off, or up to the stage if it is not given."""
    return annotation in (bool, bool | None)


def flag(name: str) -> str:
    """Return an option as the command line has it."""
    return "--" + name.replace("_", "-")
