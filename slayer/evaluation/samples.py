"""Sample continuations of held-out documents: the quickest way to see what changed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from slayer.evaluation.heldout import HeldoutDocument

PROMPT_TOKENS = 16


def choose_prompts(documents: Mapping[str, Sequence[HeldoutDocument]], per_source: int, new_tokens: int) -> list[dict[str, Any]]:
    """The first documents of each source that are long enough: prompt and true continuation as token ids."""
    prompts = []
    for source, candidates in documents.items():
        long_enough = [document for document in candidates if len(document.tokens) >= PROMPT_TOKENS + new_tokens]
        for document in long_enough[:per_source]:
            tokens = [int(token) for token in document.tokens]
            prompts.append({"source": source, "prompt": tokens[:PROMPT_TOKENS], "truth": tokens[PROMPT_TOKENS : PROMPT_TOKENS + new_tokens]})
    return prompts


def continue_prompts(model: Any, tokenizer: Any, prompts: Sequence[Mapping[str, Any]], *, prefix_token: int, new_tokens: int) -> list[str]:
    """Greedy continuations, as text. All prompts have the same length, so they run as one batch without padding."""
    import torch

    if not prompts:
        return []
    ids = torch.tensor([[prefix_token, *prompt["prompt"]] for prompt in prompts], device=model.device)
    with torch.inference_mode():
        output = model.generate(
            input_ids=ids, attention_mask=torch.ones_like(ids), max_new_tokens=new_tokens, do_sample=False, temperature=None, top_p=None, top_k=None,
            pad_token_id=tokenizer.eos_token_id if tokenizer.eos_token_id is not None else 0,
        )  # fmt: skip
    return [tokenizer.decode(row[ids.shape[1] :], skip_special_tokens=True) for row in output]
