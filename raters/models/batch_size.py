"""How many draws a batch of a model in this process may have, from the memory of its device.

What decoding keeps for each token it has read or may still write is keys and values of every attention layer; beside
that the weights are small on long texts, and what one layer works with is a share of it. Estimated is the most that a
batch can take, every row written to its limit; where an estimate proves too low the batch is halved and so is what is
taken for free (`BatchMemory.failed`).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

BatchSize = int | Literal["auto"]
"""Most rows in a batch; `auto` asks the device's memory, and is `ROWS_WITHOUT_A_GPU` where there is no GPU."""

ROWS_WITHOUT_A_GPU = 16
MOST_ROWS = 512
"""However short they are: kernels of attention take at most 65,535 rows times heads."""
_SAFE_SHARE = 0.85
"""Of free memory; the rest is for what the allocator cannot use between blocks, and for kernels' own work space."""
_COPIES_OF_LOGITS = 8
"""Of a row in float32: as the model gives them, widened, noise, their sum, and what a nucleus sorts."""
_WIDTHS_OF_A_TOKEN = 10
"""Of a token that is being read, in float32: the residual, its norms, queries, the attention's result."""


@dataclass(frozen=True, slots=True)
class RowBytes:
    """What a batch of a model keeps in memory.

    Attributes:
        kept: For each token and row while it writes: keys and values, what one layer copies of them included.
        read: For each token of a prompt that is being read: keys and values, and what one layer works with.
        written: For each row, whatever its length: logits.
    """

    kept: int
    read: int
    written: int

    def of_batch(self, lengths: Sequence[tuple[int, int]], different: int) -> int:
        """Return the most bytes that a batch takes, reading and writing, beside the weights.

        Args:
            lengths: (rows,) tokens of each prompt, and most tokens to write behind it; padded to the longest.
            different: How many prompts are read; those that rows share are read once.
        """
        width = max(prompt for prompt, _ in lengths)
        longest = width + max(limit for _, limit in lengths)
        return max(different * width * self.read, len(lengths) * longest * self.kept) + len(lengths) * self.written


def row_bytes(model: Any) -> RowBytes | None:
    """Return what a batch of a model takes; None if its configuration does not say how its attention is made.

    Args:
        model: A causal language model of transformers, under its adapter if there is one.
    """
    config = model.config.get_text_config()
    layers, heads, width = (
        getattr(config, name, None) for name in ("num_hidden_layers", "num_attention_heads", "hidden_size")
    )
    if not layers or not heads or not width:
        return None
    key_value_heads = getattr(config, "num_key_value_heads", None) or heads
    head = getattr(config, "head_dim", None) or width // heads
    if not all(isinstance(size, int) for size in (layers, heads, width, key_value_heads, head)):
        return None  # sizes that differ from layer to layer
    size = model.dtype.itemsize
    layer = 2 * key_value_heads * head * size
    # One layer at a time grows into new buffers while the old ones stand, and repeats its heads for the queries.
    copied = layer * (1 + heads // key_value_heads)
    feed_forward = getattr(config, "intermediate_size", None) or 4 * width
    feed_forward = feed_forward if isinstance(feed_forward, int) else max(feed_forward)
    return RowBytes(
        kept=layers * layer + copied,
        read=layers * layer + copied + 3 * feed_forward * size + 4 * _WIDTHS_OF_A_TOKEN * width,
        written=4 * _COPIES_OF_LOGITS * config.vocab_size,
    )


def free_bytes(device: Any) -> int | None:
    """Return the bytes that this process may still take on a device; None if that is no GPU of CUDA."""
    if device.type != "cuda":
        return None
    import torch

    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


class BatchMemory:
    """What a GPU's memory allows the batches of a model, learning from those that it did not hold.

    Args:
        taken: By the rows of a batch.
        free: Returns the bytes that are free.
    """

    def __init__(self, taken: RowBytes, free: Callable[[], int]) -> None:
        self._taken, self._free = taken, free
        self._most = math.inf

    def rows_that_fit(self, rows: Iterable[tuple[tuple[int, ...], int]]) -> int:
        """Return how many of the first of some rows make a batch: one at least.

        Args:
            rows: Prompt and most tokens to write, in the order in which they are to be drawn.
        """
        available = min(self._most, _SAFE_SHARE * self._free())
        lengths: list[tuple[int, int]] = []
        different: set[tuple[int, ...]] = set()
        for prompt, limit in rows:
            lengths.append((len(prompt), limit))
            different.add(prompt)
            if len(lengths) > MOST_ROWS or self._taken.of_batch(lengths, len(different)) > available:
                return max(1, len(lengths) - 1)
        return max(1, len(lengths))

    def failed(self, rows: Sequence[tuple[tuple[int, ...], int]]) -> None:
        """Note that memory did not hold a batch: those to come take half of what it was thought to take."""
        lengths = [(len(prompt), limit) for prompt, limit in rows]
        taken = self._taken.of_batch(lengths, len({prompt for prompt, _ in rows}))
        self._most = min(self._most, taken / 2)


def batch_memory(model: Any) -> BatchMemory | None:
    """Return what memory allows the batches of a model; None without a GPU, or if its attention is not known."""
    device = model.device
    taken = row_bytes(model) if free_bytes(device) is not None else None
    return None if taken is None else BatchMemory(taken, lambda: free_bytes(device) or 0)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if an error of torch says that there is no memory left, on a GPU or elsewhere."""
    import torch

    if isinstance(error, torch.OutOfMemoryError):
        return True
    told = ("out of memory", "CUBLAS_STATUS_ALLOC_FAILED", "can't allocate memory")
    return isinstance(error, RuntimeError) and any(words in str(error) for words in told)
