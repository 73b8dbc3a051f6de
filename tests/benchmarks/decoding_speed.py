"""How fast the transformers backend writes on a GPU: tokens a second, and the share of what its memory could deliver.

    python -m tests.benchmarks.decoding_speed              # an 8B Qwen3 with random weights
    python -m tests.benchmarks.decoding_speed --size 1.7b
    python -m tests.benchmarks.decoding_speed --size tiny --device cpu

Every token that a batch writes takes one pass, which reads each weight once (but for the embedding, of which it reads
a row for each row of the batch) and the keys and values of all that its rows have read and written so far. A device
that did nothing else would take those bytes over its bandwidth, which is that of a large copy measured in the same run
(bytes read and bytes written). Draws go through `HFModel` with a batch found automatically, as those of a run do; the
model has no end of text, so all are equally long. The share is told of everything, prompts included, and of writing
alone, for which the time of one token of the same draws is taken off.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import random
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import raters.models.hf as hf_module
from raters.models import generation
from raters.models.batch_size import BatchSize
from raters.models.generation import LoadedModel, Prompt
from raters.models.hf import HFModel
from raters.models.protocol import SamplingSettings
from tests.benchmarks.training_speed import SIZES as TRAINED
from tests.benchmarks.training_speed import Size, build


@dataclass(frozen=True)
class Work:
    """Draws to be made: of how many prompts, how long, and how many tokens each."""

    prompts: int
    draws: int
    prompt_tokens: int
    written: int
    copied_bytes: int


SIZES = {
    "8b": TRAINED["8b"],
    "1.7b": Size(2048, 28, 6144, 16, 8, 128, 151_936, 2048, 1, 1),
    "tiny": TRAINED["tiny"],
}
WORK = {
    "8b": Work(64, 8, 1024, 256, 2**33),
    "1.7b": Work(64, 8, 1024, 256, 2**33),
    "tiny": Work(4, 4, 48, 24, 2**24),
}


@dataclass
class Batches:
    """What was written, batch by batch: lengths of prompts, tokens of each row, seconds."""

    prompts: list[list[int]] = field(default_factory=list)
    written: list[int] = field(default_factory=list)
    seconds: list[float] = field(default_factory=list)

    @property
    def tokens(self) -> int:
        return sum(len(rows) * written for rows, written in zip(self.prompts, self.written, strict=True))


def wait_for(device: str) -> None:
    """Wait until a device has done what it was asked for."""
    if device == "cuda":
        import torch

        torch.cuda.synchronize()


@contextmanager
def watched(device: str) -> Iterator[Batches]:
    """Note every batch that is written."""
    found, real = Batches(), generation.generate

    def timed(loaded: Any, prompts: Sequence[Prompt], *rest: Any) -> Any:
        wait_for(device)
        began = time.perf_counter()
        completions = real(loaded, prompts, *rest)
        wait_for(device)
        found.seconds.append(time.perf_counter() - began)
        found.prompts.append([len(prompt.token_ids) for prompt in prompts])
        (written,) = {one.completion_tokens for one in completions}
        found.written.append(written or 0)
        return completions

    hf_module.generate = timed  # type: ignore[attr-defined]
    try:
        yield found
    finally:
        hf_module.generate = real  # type: ignore[attr-defined]


def loaded_model(size: Size, device: str) -> LoadedModel:
    """Return a model of a size with random weights that never ends a text."""
    import transformers

    library: Any = transformers
    loaded = build(size, device, "bfloat16" if device == "cuda" else "float32")
    silent = library.GenerationConfig(pad_token_id=0)
    return replace(loaded, model=loaded.model.eval(), generation=silent, end_ids=frozenset())


def texts(loaded: LoadedModel, work: Work, *, mixed: bool) -> list[list[dict[str, str]]]:
    """Return conversations of about so many tokens, or of a quarter to all of them."""
    chance = random.Random(0)
    words = ["reason", "example", "low", "argument", "summary", "call", "convincing", "point"]
    found = []
    for place in range(work.prompts):
        most = work.prompt_tokens if not mixed else work.prompt_tokens * (1 + place % 4) // 4
        text = f"{place:04}"
        while len(loaded.tokenizer(text, add_special_tokens=False).input_ids) < most - 12:
            text += " " + " ".join(chance.choices(words, k=max(1, most // 64)))
        found.append([{"role": "user", "content": text}])
    return found


def draw_all(
    loaded: LoadedModel, work: Work, device: str, batch_size: BatchSize, written: int, *, mixed: bool = False
) -> Batches:
    """Draw everything through the backend; return what it did."""
    model = HFModel.of(loaded, batch_size=batch_size)
    settings = SamplingSettings(max_tokens=written)

    async def draws() -> None:
        asked, all_wait = texts(loaded, work, mixed=mixed), threading.Event()
        model._worker.submit(all_wait.wait)  # or the first batch has those alone that were asked for first
        calls = [
            asyncio.create_task(model.complete(each, range(place * work.draws, (place + 1) * work.draws), settings))
            for place, each in enumerate(asked)
        ]
        await asyncio.sleep(0)
        all_wait.set()
        await asyncio.gather(*calls)
        await model.close()

    with watched(device) as found:
        asyncio.run(draws())
    return found


def bytes_of_weights(loaded: LoadedModel) -> int:
    """Return the bytes of weights that a pass reads: all but the embedding, unless that is the head as well."""
    model = loaded.model
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    once = {id(weight): weight for weight in model.parameters() if weight is not embedding or embedding is head}
    return sum(weight.numel() * weight.element_size() for weight in once.values())


def bytes_of_writing(loaded: LoadedModel, size: Size, found: Batches) -> int:
    """Return the bytes that writing needs to read (see the head), without the passes that read prompts.

    The first token of a row comes from its prompt; the i-th after it takes a pass over prompt and i tokens.
    """
    kept = 2 * size.layers * size.key_value_heads * size.head * loaded.model.dtype.itemsize
    weights = bytes_of_weights(loaded)
    total = 0
    for prompts, written in zip(found.prompts, found.written, strict=True):
        passes = written - 1
        total += passes * weights
        total += kept * sum(prompt * passes + passes * (passes + 1) // 2 for prompt in prompts)
    return total


def bandwidth(device: str, size: int) -> float:
    """Return the bytes a second of the fastest of some copies, those read and those written."""
    import torch

    source = torch.ones(size // 4, dtype=torch.float32, device=device)
    target = torch.empty_like(source)
    fastest = 0.0
    for _ in range(5):
        wait_for(device)
        began = time.perf_counter()
        for _ in range(4):
            target.copy_(source)
        wait_for(device)
        fastest = max(fastest, 4 * 2 * source.nbytes / (time.perf_counter() - began))
    return fastest


def measure(name: str, device: str, batch_size: BatchSize = "auto") -> dict[str, Any]:
    """Return what drawing with a model of a size comes to on a device."""
    size, work = SIZES[name], WORK[name]
    fastest = bandwidth(device, work.copied_bytes)
    loaded = loaded_model(size, device)
    draw_all(loaded, replace(work, draws=1), device, batch_size, 2)  # what only the first batch pays for
    report: dict[str, Any] = {
        "size": name,
        "device": device,
        "work": asdict(work),
        "bytes_of_weights": bytes_of_weights(loaded),
        "copied_bytes_per_second": fastest,
    }
    for lengths in ("equal", "mixed"):
        found = draw_all(loaded, work, device, batch_size, work.written, mixed=lengths == "mixed")
        first = draw_all(loaded, work, device, max(map(len, found.prompts)), 1, mixed=lengths == "mixed")
        least = bytes_of_writing(loaded, size, found) / fastest
        seconds, writing = sum(found.seconds), sum(found.seconds) - sum(first.seconds)
        report[f"{lengths}_prompts"] = {
            "rows_of_batches": [len(rows) for rows in found.prompts],
            "tokens_per_second": found.tokens / seconds,
            "tokens_per_second_at_the_ceiling": found.tokens / least,
            "share_of_ceiling": least / seconds,
            "share_while_writing": least / writing,
        }
    return report


def main() -> None:
    """Print a measurement as JSON, or say that there is no GPU."""
    import torch

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", choices=SIZES, default="8b")
    parser.add_argument("--device", choices=("cuda", "cpu"), default="cuda")
    parser.add_argument("--batch-size", type=int, help="rows of a batch (default: found automatically)")
    given = parser.parse_args()
    if given.device == "cuda" and not torch.cuda.is_available():
        print("no GPU here: nothing measured; --size tiny --device cpu shows what would be")
        return
    print(json.dumps(measure(given.size, given.device, given.batch_size or "auto"), indent=2))


if __name__ == "__main__":
    main()
