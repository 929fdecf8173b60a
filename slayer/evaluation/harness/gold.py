"""Prompts and right answers of our own task definitions: how many bits per byte a model needs for the right answer (as in OLMo's evaluation).

The white space between prompt and answer belongs to the answer, so that no tokenizer sees it torn and its bytes are counted.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

Doc = dict[str, Any]


def humaneval_prompt(doc: Doc) -> str:
    """Signature and docstring."""
    return str(doc["prompt"]).rstrip()


def humaneval_answer(doc: Doc) -> str:
    """The body, behind the white space that ends the prompt."""
    prompt = str(doc["prompt"])
    return prompt[len(prompt.rstrip()) :] + str(doc["canonical_solution"])


def mbpp_prompt(doc: Doc) -> str:
    """The task and its first test as a docstring."""
    return f'"""\n{doc["text"]}\n{doc["test_list"][0]}\n"""'


def mbpp_answer(doc: Doc) -> str:
    """The code, with the line ends of this century."""
    return "\n" + str(doc["code"]).replace("\r\n", "\n").rstrip()


def gsm8k_prompt(doc: Doc) -> str:
    """lm-eval's own."""
    return f"Question: {doc['question']}\nAnswer:"


def gsm8k_answer(doc: Doc) -> str:
    """The worked answer without the calculator's notes."""
    return " " + re.sub(r"<<.*?>>", "", str(doc["answer"]))


def humaneval_bits(doc: Doc, results: Sequence[Any]) -> dict[str, tuple[float, int]]:
    """Log-likelihood in nats and bytes of the answer."""
    return _bits(humaneval_answer(doc), results)


def mbpp_bits(doc: Doc, results: Sequence[Any]) -> dict[str, tuple[float, int]]:
    """Likewise."""
    return _bits(mbpp_answer(doc), results)


def gsm8k_bits(doc: Doc, results: Sequence[Any]) -> dict[str, tuple[float, int]]:
    """Likewise."""
    return _bits(gsm8k_answer(doc), results)


def _bits(answer: str, results: Sequence[Any]) -> dict[str, tuple[float, int]]:
    nats, _ = results[0]
    return {"bits_per_byte": (float(nats), len(answer.encode()))}
