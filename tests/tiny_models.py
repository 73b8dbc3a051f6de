"""Tiny random language models on disk, made in a second without a network."""

from __future__ import annotations

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

CONTEXT_TOKENS = 512
END_OF_TURN = "<|im_end|>"
PADDING = "<|endoftext|>"
START_OF_TURN = "<|im_start|>"

LINES = [
    "The argument names a reason and an example, so I would call it convincing.",
    "The summary leaves out the main point; the rating is low.",
    "Read the guideline first, then the text, and give one rating.",
    "system user assistant think rating 1 2 3 4 5 yes no maybe",
]

CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
THINKING_TEMPLATE = CHAT_TEMPLATE.replace("assistant\n{% endif %}", "assistant\n<think>\n{% endif %}")


def make_tokenizer(chat_template: str | None = CHAT_TEMPLATE, special_tags: bool = True) -> Any:
    """Return a byte-level BPE tokenizer in which `<think>` and `<rating>` tags are one token each.

    Args:
        chat_template: None for a tokenizer that cannot chat.
        special_tags: True if the tags are special tokens, which some servers leave out of what they return.
    """
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    tags = ["<think>", "</think>", "<rating>", "</rating>"]
    trainer = trainers.BpeTrainer(
        vocab_size=320,
        special_tokens=[PADDING, START_OF_TURN, END_OF_TURN, *(tags if special_tags else [])],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(LINES, trainer)
    if not special_tags:
        bpe.add_tokens(tags)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        eos_token=END_OF_TURN,
        pad_token=PADDING,
        extra_special_tokens=[START_OF_TURN, *(tags if special_tags else [])],
    )
    tokenizer.chat_template = chat_template
    return tokenizer


def make_model(
    folder: Path,
    chat_template: str | None = CHAT_TEMPLATE,
    seed: int = 0,
    special_tags: bool = True,
    context_tokens: int = CONTEXT_TOKENS,
    head_dim: int = 16,
    **generation: Any,
) -> Path:
    """Write a random two-layer Qwen3 with its tokenizer and return the folder.

    Args:
        folder: Where to write; made if missing.
        chat_template: None for a model that cannot chat.
        seed: Decides the weights.
        special_tags: See `make_tokenizer`.
        context_tokens: Of its context.
        head_dim: Of its attention; vLLM's attention has none below 32, on a CPU.
        **generation: Saved generation config, beside `do_sample=True`, without which `transformers serve`
            does not sample at all.
    """
    import torch
    from transformers import GenerationConfig, Qwen3Config, Qwen3ForCausalLM

    tokenizer = make_tokenizer(chat_template, special_tags)
    config = Qwen3Config(
        vocab_size=len(tokenizer),
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=1,
        head_dim=head_dim,
        max_position_embeddings=context_tokens,
        # Wide enough that tokens differ in likelihood, and that greedy choices are never near ties.
        initializer_range=0.2,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    state = torch.random.get_rng_state()
    torch.manual_seed(seed)
    model = Qwen3ForCausalLM(config)
    torch.random.set_rng_state(state)
    model.generation_config = GenerationConfig(
        do_sample=True, eos_token_id=tokenizer.eos_token_id, pad_token_id=tokenizer.pad_token_id, **generation
    )
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def make_adapter(base: Path, folder: Path, seed: int = 1) -> Path:
    """Write a random LoRA adapter for a model of `make_model`, strong enough to change what it says."""
    import torch
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    config = LoraConfig(
        r=4,
        lora_alpha=32,
        target_modules=["q_proj", "v_proj", "o_proj"],
        init_lora_weights=False,
        task_type="CAUSAL_LM",
    )
    get_peft_model(model, config).save_pretrained(folder)
    return folder


def make_rater(
    folder: Path, prompts: Sequence[str], labels: Sequence[object], steps: int = 120, at_once: bool = False
) -> Path:
    """Write a tiny model that has learned to think a sentence and end in a rating, at random, and return the folder.

    Args:
        folder: Where to write.
        prompts: What it is asked; it learns the form of an answer to such prompts, and nothing about them.
        labels: The ratings it gives.
        steps: Of training, in batches of 8; some 10 seconds.
        at_once: True if it is to give its rating alone.
    """
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    make_model(folder, special_tags=False)
    tokenizer = AutoTokenizer.from_pretrained(folder)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    chance = random.Random(0)
    for _ in range(steps):
        rows = []
        for _ in range(8):
            turn = [{"role": "user", "content": chance.choice(prompts)}]
            asked = tokenizer.apply_chat_template(turn, tokenize=False, add_generation_prompt=True)
            thought = chance.choice(["The argument names a reason.", "The text leaves out the main point."])
            thinking = "" if at_once else f"<think>\n{thought}\n</think>\n"
            answer = f"{thinking}<rating>{chance.choice(labels)}</rating>{END_OF_TURN}"
            read = tokenizer(asked, add_special_tokens=False).input_ids
            written = tokenizer(answer, add_special_tokens=False).input_ids
            rows.append((read + written, [-100] * len(read) + written))
        width = max(len(ids) for ids, _ in rows)
        ids = torch.tensor([ids + [tokenizer.pad_token_id] * (width - len(ids)) for ids, _ in rows])
        targets = torch.tensor([wanted + [-100] * (width - len(wanted)) for _, wanted in rows])
        loss = model(input_ids=ids, attention_mask=(ids != tokenizer.pad_token_id).long(), labels=targets).loss
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    model.save_pretrained(folder)
    return folder
