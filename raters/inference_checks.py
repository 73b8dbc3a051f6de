"""What a run of infer_traces refuses: options that do not go together, and going on with a run that was another one."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from raters.records import ConfigError

if TYPE_CHECKING:
    from raters.corpus_files import Dimension
    from raters.inference import Plan
    from raters.inference_options import InferTracesOptions
    from raters.runs import RunFolder


def check_options(options: InferTracesOptions, dimension: Dimension) -> None:
    """Refuse combinations that cannot mean what they say.

    Raises:
        ConfigError: If there are any.
    """
    from raters.sampling import strategy_for

    unit = dimension.scale.tolerance_unit
    if options.tolerance and unit is None:
        raise ConfigError(f"--tolerance {options.tolerance}: labels {dimension.scale} have no distance; leave it out")
    if options.tolerance is None and dimension.scale.type == "interval":
        raise ConfigError(
            f"--tolerance is missing: on scale {dimension.scale} of {dimension.name} say how near is near enough"
        )
    if isinstance(options.keep, int) and options.keep < 1:
        raise ConfigError(f"--keep {options.keep}: must be first, all, or a number of at least 1")
    if options.keep != "first" and options.strategy == "adaptive":
        raise ConfigError(
            f"--keep {options.keep} --strategy adaptive: adaptive stops at the first; give --strategy fixed"
        )
    specs = (options.model, options.escalate, options.rationalize, options.recover)
    options.check_endpoint(specs)
    if options.base_url and not any((spec or "").startswith("openai/") for spec in specs):
        raise ConfigError(f"--base-url {options.base_url}: is for openai/<name>, and no such model is asked for")
    different = 2 if dimension.scale.type == "pairwise" else 1
    if options.temperature == 0 and options.k > different:
        raise ConfigError(
            f"--temperature 0 --k {options.k}: at temperature 0 all draws of an item are the same; give --k {different}"
        )
    if options.give_up and strategy_for(options.strategy, options.keep) == "fixed":
        raise ConfigError(
            f"--give-up {options.give_up:g}: is for adaptive draws, and fixed ones are all made; leave it out"
        )
    if options.give_up and (options.engine != "local" or (options.workers or 1) > 1):
        raise ConfigError(
            f"--give-up {options.give_up:g}: is decided from the acceptances of the whole run, and each of several "
            "workers sees its own share; leave out --workers and --engine, or give 0"
        )
    if options.samples_per_request > 1 and not any((spec or "").startswith("openai/") for spec in specs):
        raise ConfigError(
            f"--samples-per-request {options.samples_per_request}: is for openai/<name>, and no such model is asked "
            "for; leave it out"
        )
    _check_batch(options)
    if options.recover and not options.rationalize:
        raise ConfigError(f"--recover {options.recover}: is for --rationalize, which is not given; add it")


def _check_batch(options: InferTracesOptions) -> None:
    """Refuse what does not go together with, or without, a batch API."""
    for name, value in (("batch-file", options.batch_file),):
        if value is not None and options.batch is None:
            raise ConfigError(f"--{name} {value}: is for --batch submit or --batch collect; add one")
    if options.batch is None:
        return
    if not options.model.startswith("openai/"):
        raise ConfigError(f"--batch {options.batch}: is for openai/<name>, and --model is {options.model}")
    for name, value in (("escalate", options.escalate), ("rationalize", options.rationalize)):
        if value:
            raise ConfigError(
                f"--batch {options.batch} --{name} {value}: a second chance comes after all rounds; give it without "
                "--batch once they are collected"
            )
    for name in ("give_up", "samples_per_request", "max_cost", "max_total_tokens"):
        if (value := getattr(options, name)) != type(options).model_fields[name].default:
            raise ConfigError(
                f"--batch {options.batch} --{name.replace('_', '-')} {value}: is for draws that are made one after "
                "another, and a round is sent as a whole; leave it out"
            )
    if options.engine != "local" or (options.workers or 1) > 1:
        raise ConfigError(f"--batch {options.batch}: the provider does the work; leave --engine and --workers out")


def check_continuation(plan: Plan, folder: RunFolder) -> None:
    """Refuse to continue a run under options that would leave paid draws out or mix models.

    Raises:
        ConfigError: If they would.
    """
    from raters.batch_rounds import Book

    options = plan.options
    if folder.previous and options.batch is None and (under_way := Book(folder.path).under_way):
        raise ConfigError(
            f"--out {folder.path}: {under_way[0].name} is under way, and its draws would be paid for twice; give "
            "--batch collect first, or --new to start over"
        )
    before = {"k": folder.previous.get("options", {}).get("k"), **folder.previous.get("second_chance", {})}
    for name in ("k", "second_k"):
        if (then := before.get(name)) is not None and getattr(options, name) < then:
            raise ConfigError(
                f"--out {folder.path}: was run with {name.replace('_', '-')} {then}, now {getattr(options, name)}, "
                "which would leave draws out; give at least as many, another --out, or --new to start over"
            )
    if (then := folder.previous.get("items", 0)) > len(plan.order):
        raise ConfigError(
            f"--out {folder.path}: was run on {then} items, now {len(plan.order)}, which would leave draws out; "
            "give a --limit at least as large, another --out, or --new to start over"
        )
    for name in ("escalate", "rationalize", "recover", "prompts"):
        then, now = before.get(name), _second_chance_now(plan)[name]
        if name == "prompts" and then and now:
            then = {purpose: sha256 for purpose, sha256 in then.items() if purpose in now}
            now = {purpose: sha256 for purpose, sha256 in now.items() if purpose in then}
        if then is not None and now is not None and then != now:
            raise ConfigError(
                f"--out {folder.path}: belongs to another run ({name} was {then}, now {now}); "
                "give another --out, or --new to start over"
            )


def _second_chance_now(plan: Plan) -> dict[str, Any]:
    """Return the models and prompts of the second chances that are asked for now; None for those that are not."""
    options = plan.options
    recover = plan.model_spec("recovered") if options.rationalize else None
    prompts = {purpose: question.prompt.sha256 for purpose, question in plan.questions.items() if purpose != "first"}
    used = {name: getattr(options, name) for name in ("escalate", "rationalize")}
    return {**used, "recover": recover, "prompts": prompts or None, "second_k": options.second_k if prompts else None}


def second_chance(plan: Plan, folder: RunFolder) -> dict[str, Any]:
    """Return which models and prompts second chances have had, in this session or an earlier one."""
    earlier, now = folder.previous.get("second_chance", {}), _second_chance_now(plan)
    merged = {name: value if value is not None else earlier.get(name) for name, value in now.items()}
    return {**merged, "prompts": {**(earlier.get("prompts") or {}), **(now["prompts"] or {})} or None}
