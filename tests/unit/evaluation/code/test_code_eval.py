"""The sandboxed code_eval against what `evaluate` documents, and under lm-eval's own task functions with real questions."""

from __future__ import annotations

import sys
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from slayer.evaluation.code.code_eval import CodeEval, code_eval_in_sandbox, pass_at
from slayer.evaluation.code.sandbox import isolation_problem
from slayer.evaluation.metric_package import evaluate_package

NO_ISOLATION = isolation_problem()
isolated = pytest.mark.skipif(NO_ISOLATION is not None, reason=str(NO_ISOLATION))


@given(st.data(), st.integers(1, 8))
def test_pass_at_k_counts_subsets(data: st.DataObject, n: int) -> None:
    """Among all ways to draw k of n candidates, the share with one that passes."""
    passed = data.draw(st.integers(0, n))
    k = data.draw(st.integers(1, n))
    draws = list(combinations(range(n), k))
    lucky = sum(any(candidate < passed for candidate in draw) for draw in draws)
    assert pass_at(n, passed, k) == pytest.approx(lucky / len(draws), abs=1e-12)


@isolated
def test_the_documented_example() -> None:
    """From the documentation of `evaluate`'s code_eval."""
    candidates = [["def add(a,b): return a*b", "def add(a, b): return a+b"]]
    pass_at_k, results = CodeEval().compute(references=["assert add(2,3)==5"], predictions=candidates, k=[1, 2])
    assert pass_at_k == {"pass@1": 0.5, "pass@2": 1.0}
    wrong = {"task_id": 0, "passed": False, "result": "failed: AssertionError: ", "completion_id": 0}
    assert results == {0: [(0, wrong), (1, {"task_id": 0, "passed": True, "result": "passed", "completion_id": 1})]}


@isolated
def test_every_kind_of_end() -> None:
    candidates = [
        ["def f(): return 1"], ["def f(): return 2"], ["def f(:"], ["def f():\n    while True: pass"], ["import os; os._exit(0)"],
        ["x = bytearray(1 << 40)"],
    ]  # fmt: skip
    told = []
    metric = CodeEval(on_progress=lambda done, total: told.append((done, total)))
    pass_at_k, results = metric.compute(references=["assert f() == 1"] * 6, predictions=candidates, k=[1, 10], timeout=0.5)
    assert pass_at_k == {"pass@1": pytest.approx(1 / 6)}  # one candidate each: no pass@10
    said = [results[problem][0][1]["result"] for problem in range(6)]
    assert said[0] == "passed" and said[3] == "timed out"
    assert all(said[problem].startswith("failed: ") for problem in (1, 2, 4, 5))
    assert told == [(done, 6) for done in range(1, 7)]


@isolated
def test_as_many_tests_as_problems() -> None:
    with pytest.raises(ValueError):
        CodeEval().compute(references=["assert True"], predictions=[["a = 1"], ["a = 2"]], k=[1])
    assert CodeEval().compute(references=[], predictions=[], k=[1]) == ({}, {})


@isolated
def test_other_metrics_are_loaded_as_ever() -> None:
    package = evaluate_package()
    load = package.load
    with code_eval_in_sandbox() as metric:
        assert package.load("code_eval") is metric
        with pytest.raises(FileNotFoundError):
            package.load("no/such_metric")
    assert package.load is load
    with pytest.raises(ZeroDivisionError), code_eval_in_sandbox():
        raise ZeroDivisionError
    assert package.load is load


@pytest.fixture(scope="module")
def task_functions() -> Any:
    """lm-eval's own files of humaneval and mbpp, which load the metric when they are imported."""
    if NO_ISOLATION is not None:
        pytest.skip(NO_ISOLATION)
    for name in ("humaneval", "mbpp"):
        sys.modules.pop(f"lm_eval.tasks.{name}.utils", None)
    with code_eval_in_sandbox():
        from lm_eval.tasks.humaneval import utils as humaneval
        from lm_eval.tasks.mbpp import utils as mbpp
    return humaneval, mbpp


def questions(name: str, count: int) -> list[dict[str, Any]]:
    from slayer.data.assets import fetch
    from slayer.data.benchmarks import rows

    fetch(["benchmarks"])
    return [row for row, _ in zip(rows(name), range(count), strict=False)]


def test_humaneval_scores_its_own_answers_as_right(task_functions: Any) -> None:
    humaneval, _ = task_functions
    rows = questions("humaneval", 6)
    tests = [f"{row['test']}\ncheck({row['entry_point']})" for row in rows]
    right = humaneval.build_predictions([[row["canonical_solution"]] for row in rows], rows)
    wrong = humaneval.build_predictions([["    return None\n"] for _ in rows], rows)
    assert humaneval.pass_at_k(tests, right, k=[1]) == {"pass@1": 1.0}
    assert humaneval.pass_at_k(tests, wrong, k=1) == {"pass@1": 0.0}
    both = [[*one, *other] for one, other in zip(right, wrong, strict=True)]
    assert humaneval.pass_at_k(tests, both, k=[1, 2]) == {"pass@1": 0.5, "pass@2": 1.0}


def test_mbpp_scores_its_own_answers_as_right(task_functions: Any) -> None:
    _, mbpp = task_functions
    rows = questions("mbpp", 6)
    tests = ["\n".join(row["test_list"]) for row in rows]
    assert [mbpp.pass_at_1(test, [row["code"]]) for test, row in zip(tests, rows, strict=True)] == [1.0] * 6
    assert [mbpp.pass_at_1(test, [row["code"]]) for test, row in zip(tests, rows[1:], strict=False)] == [0.0] * 5


def test_a_script_of_the_same_name_is_no_hindrance(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The folder of `python evaluate.py` is first on the import path, and holds a file that is not the package."""
    (tmp_path / "evaluate.py").write_text("script = True")
    for name in [name for name in sys.modules if name.split(".")[0] == "evaluate"]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.syspath_prepend(str(tmp_path))
    import evaluate

    assert evaluate.script
    package = evaluate_package()
    import evaluate.config

    import evaluate

    assert evaluate is package and callable(evaluate.load) and evaluate.config.HF_EVALUATE_OFFLINE in (True, False)
    assert evaluate_package() is package
