"""Words that name code, settings of Hydra that can, secrets: refused before Hydra sees them, and nothing of them runs."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from secret_canaries import CANARIES, canary

from slayer.config import EvaluationConfig, RunConfig
from slayer.errors import ConfigError
from slayer.launching.commandline import tolerant
from slayer.launching.compose import compose, resolved
from slayer.validation import parse_config

ROOT = Path(__file__).parents[3]

ATTACKS = [
    "model._target_=evil.Evil", "+model._target_=evil.Evil", "++model._target_=evil.Evil", "~model._target_", "_target_=evil.Evil",
    "+_target_=evil.Evil", "model={_target_:evil.Evil}", "model={name:x,_target_:evil.Evil}", "+x={_target_:evil.Evil}", "+x=[{_target_:evil.Evil}]",
    "+x=[[{a:{_target_:evil.Evil}}]]", "+x._target_.y=1", "data.sources.a._target_=evil.Evil", "data.sources={a:{_target_:evil.Evil}}",
    "data.stages=[{_target_:evil.Evil}]", "freeze.stages=[{parts:{_target_:1}}]", "train._target_=evil.Evil",
    "engine={_target_:evil.Evil,zero_stage:2}", "tracker._target_=evil.Evil", "launcher._target_=evil.Evil", "suite.tasks={_target_:evil.Evil}",
    "model.name=_target_", "model.path='{_target_: evil.Evil}'", "expansion=_target_", "+model={\\_target_:evil.Evil}", "+x={a\\:_target_:evil.Evil}",
    "+x={'_target_':evil.Evil}", '+x={"_target_":evil.Evil}', "model._targe\\t_=evil.Evil", "+hydra.callbacks.evil._target_=evil.Evil",
    "+hydra.callbacks={evil:{_target_:evil.Evil}}", "+hydra.callbacks.evil={_target_:evil.Evil}", "hydra.launcher._target_=evil.Evil",
    "hydra.sweeper._target_=evil.Evil", "hydra.sweeper={_target_:evil.Evil}", "hydra={callbacks:{evil:{_target_:evil.Evil}}}",
    "hydra.job_logging.handlers.console.class=evil.Evil", "+hydra.job_logging={version:1,handlers:{x:{class:evil.Evil}},root:{handlers:[x]}}",
    "hydra.job_logging.handlers={x:{(): evil.Evil}}", "hydra.hydra_logging={version:1}", "hydra.searchpath=[pkg://evil]",
    "hydra.searchpath=[file:///tmp/evil]", "+hydra.job.env_set.LD_PRELOAD=/tmp/evil.so", "hydra.job.env_copy=[HOME]",
    "hydra.sweeper.custom_search_space=evil.Evil", "+hydra/callbacks=evil", "hydra/job_logging=evil", "+hydra/launcher@hydra.callbacks.evil=basic",
    "+model@hydra.callbacks.evil=tiny", "hydra.runtime.cwd=/", "hydra.help.template=x", "+hydra.extra.x=1", "hydra=evil", "model@hydra=tiny",
    "+x=${oc.create:{_target_:evil.Evil}}",
]  # fmt: skip


@pytest.mark.parametrize("schema", [RunConfig, EvaluationConfig])
@pytest.mark.parametrize("word", ATTACKS)
def test_no_attack_passes_the_parser(word: str, schema: type[RunConfig | EvaluationConfig]) -> None:
    for words in ([word], ["-m", word], [word, "seed=1"]):
        kept, problems = tolerant(words, schema)
        assert kept in ([], ["-m"], ["++seed=1"]) and len(problems) == 1, "the word is left out, the others are kept"
        assert problems[0].why and problems[0].fix


def test_there_are_attacks_enough() -> None:
    assert len(set(ATTACKS)) >= 40 and len({word for word in ATTACKS if "_target_" in word}) >= 25


@pytest.fixture
def evil(tmp_path: Path) -> Path:
    """A folder with a module that writes a canary when it is imported."""
    canary_file = tmp_path / "canary"
    (tmp_path / "evil.py").write_text(
        f"open({str(canary_file)!r}, 'w').write('ran')\nfrom hydra.experimental.callback import Callback\nclass Evil(Callback): pass\n",
        encoding="utf-8",
    )
    return tmp_path


def run(words: list[str], evil: Path, program: Path = ROOT / "train.py") -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "PYTHONPATH": f"{evil}:{ROOT}"}
    return subprocess.run([sys.executable, str(program), *words], cwd=evil, env=environment, capture_output=True, text=True, timeout=120, check=False)


def test_all_attacks_together_are_told_and_none_runs(evil: Path) -> None:
    done = run(ATTACKS, evil)
    assert done.returncode == 2 and f"{len(ATTACKS)} problems in the configuration" in done.stderr, done.stderr
    assert not (evil / "canary").exists() and sorted(path.name for path in evil.iterdir()) == ["evil.py"]


def test_hydra_alone_would_have_run_it(evil: Path) -> None:
    """The attack is a real one: the same word at a program that hands its words to Hydra as they are."""
    program = evil / "program.py"
    program.write_text("import hydra\n@hydra.main(config_path=None, version_base='1.3')\ndef main(_): pass\nmain()\n", encoding="utf-8")
    run(["+hydra.callbacks.evil._target_=evil.Evil", "hydra.run.dir=."], evil, program)
    assert (evil / "canary").read_text() == "ran"


def test_a_word_that_names_code_says_so() -> None:
    (problem,) = tolerant(["+x={_target_:evil.Evil}"], RunConfig)[1]
    assert (problem.key, problem.fix) == ("x", "leave out x") and "names code to run" in problem.why
    (problem,) = tolerant(["hydra.searchpath=[pkg://evil]"], RunConfig)[1]
    assert problem.key == "hydra.searchpath" and "hydra.sweep.dir" in problem.why


@pytest.mark.parametrize(
    "words",
    [
        ["hydra.sweep.dir=there"], ["+hydra.sweeper.max_batch_size=2"], ["hydra/launcher=basic"], ["hydra/sweeper=basic"], ["hydra.verbose=true"],
        ["--cfg", "job"], ["-m"],
    ],
)  # fmt: skip
def test_what_a_sweep_needs_of_hydra_is_passed_on(words: list[str]) -> None:
    assert tolerant(words, RunConfig) == (words, [])


# ── options ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--experimental-rerun", "x.pickle"], "pickle"),
        (["--experimental-rerun=x.pickle"], "pickle"),
        (["--exp", "x.pickle"], "pickle"),
        (["--config-d", "x"], "no option; there are --config-dir"),
        (["--conf=x"], "no option; there are --config-dir"),
        (["--config-name", "../evil"], "plain name"),
        (["-cn", "/tmp/evil"], "plain name"),
        (["-cn=pkg://evil"], "plain name"),
        (["--config-path", "pkg://evil"], "is no folder"),
        (["-cp=pkg://evil"], "is no folder"),
        (["-cd", f"/nowhere/{canary('github')}"], "holds a secret (GitHub token)"),
    ],
)
def test_options_that_lead_to_code_are_refused(words: list[str], told: str) -> None:
    kept, problems = tolerant(words, RunConfig)
    assert told in problems[0].why and words[0] not in kept


# ── folders of configurations ────────────────────────────────────────────────────────────────────────────────────────────

BAD_FILES = {
    "target": ("model/mine.yaml", "name: x\n_target_: evil.Evil\n"),
    "target below": ("data/mine.yaml", "sources:\n  a: {path: x, role: domain, extra: [{b: {_target_: evil.Evil}}]}\n"),
    "escaped": ("model/mine.yaml", '"_tar\\u0067et_": evil.Evil\n'),
    "anchored": ("model/mine.yaml", "a: &a {_target_: evil.Evil}\nb: *a\n"),
    "factory": ("mine.yaml", "x: {(): evil.Evil}\n"),
    "callbacks": ("experiment/mine.yaml", "# @package _global_\nhydra:\n  callbacks:\n    x: {a: 1}\n"),
    "logging": ("mine.yaml", "hydra: {job_logging: {handlers: {x: {class: evil.Evil}}}}\n"),
    "all of hydra": ("mine.yaml", "hydra: {run: {dir: .}, searchpath: [pkg://evil]}\n"),
    "package": ("model/mine.yaml", "# @package hydra.callbacks.x\nclass: evil.Evil\n"),
    "put there": ("mine.yaml", "defaults:\n  - model@hydra.job_logging: mine\n"),
    "put there, whole": ("mine.yaml", "defaults:\n  - model@_global_.hydra.job_logging: mine\n"),
    "group of hydra": ("hydra/job_logging/mine.yaml", "version: 1\n"),
    "named hydra": ("model/hydra.yaml", "# @package _name_\njob_logging: {version: 1}\n"),
    "secret": ("tracker/mine.yaml", f"name: wandb\nproject: {canary('github')}\n"),
    "secret variable": ("mine.yaml", "runs_dir: ${oc.env:SERVICE_TOKEN}\n"),
    "no yaml": ("mine.yaml", "a: [\n"),
    "object": ("mine.yaml", "a: !!python/object/apply:os.system [x]\nx: {_target_: y}\n"),
}


@pytest.mark.parametrize("case", BAD_FILES)
@pytest.mark.parametrize("option", ["--config-dir", "-cp"])
def test_a_folder_with_a_hostile_file_is_refused(case: str, option: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "correct-horse-battery")
    name, text = BAD_FILES[case]
    (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / name).write_text(text, encoding="utf-8")
    kept, problems = tolerant([option, str(tmp_path), "prune=1"], RunConfig)
    assert kept == ["++prune=1"] and [problem.key for problem in problems] == [option]
    assert name in problems[0].why and CANARIES["github"][0] not in str(ConfigError(problems))


def test_a_folder_that_is_reached_through_a_link_is_read_too(tmp_path: Path) -> None:
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "mine.yaml").write_text("_target_: evil.Evil\n", encoding="utf-8")
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "model").symlink_to(tmp_path / "elsewhere")
    (tmp_path / "elsewhere" / "round").symlink_to(tmp_path / "conf")
    assert "model/mine.yaml" in tolerant(["-cd", str(tmp_path / "conf")], RunConfig)[1][0].why


def test_our_own_configurations_and_honest_ones_are_accepted(tmp_path: Path) -> None:
    (tmp_path / "mine.yaml").write_text(
        "defaults: [config, _self_]\nseed: 3\nhydra: {run: {dir: .}, sweep: {subdir: x}, output_subdir: null}\n", encoding="utf-8"
    )
    (tmp_path / "notes.txt").write_text("_target_: evil.Evil", encoding="utf-8")
    for words in (
        ["-cd", str(tmp_path)],
        ["--config-dir", str(ROOT / "conf"), "-cn", "evaluate"],
        ["-cp", "conf"],
        ["--config-path", "/no/such/folder"],
    ):
        assert tolerant(words, RunConfig) == (words, [])


def test_the_schema_refuses_names_of_code_as_well() -> None:
    """Should one come by another way: from a file of conf/, or from another program."""
    from omegaconf import OmegaConf

    values, _ = resolved(
        OmegaConf.create({"model": {"name": "x", "_target_": "evil.Evil"}, "train": {"_target_": "evil.Evil"}, "_target_": "evil.Evil"})
    )
    keys = {problem.key: problem.why for problem in parse_config(values)[1]}
    assert all("there is no such key" in keys[key] for key in ("model._target_", "train._target_", "_target_"))


# ── secrets ──────────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("name", CANARIES)
def test_a_secret_that_was_typed_is_refused_and_not_repeated(name: str) -> None:
    secret, text = CANARIES[name][0], canary(name)
    for word in (
        f"data.path={text}",
        f"+x.y={text}",
        f"{text}=1",
        f"~{text}",
        f"hydra.sweep.dir={text}",
        f"data.sources.{text}.path=x",
        f"tasks=[{text}]",
    ):
        kept, problems = tolerant([word], RunConfig)
        assert kept == [] and len(problems) == 1 and "holds a secret" in problems[0].why
        assert secret not in f"{problems[0]} {problems[0]!r}"


def test_where_it_belongs_is_told() -> None:
    fixes = {name: tolerant([f"model.hub={canary(name)}"], RunConfig)[1][0].why for name in ("hugging face", "wandb, newer", "userinfo", "github")}
    assert "hf auth login" in fixes["hugging face"] and "wandb login" in fixes["wandb, newer"] and "~/.netrc" in fixes["userinfo"]
    assert "environment variable" in fixes["github"]


def test_a_secret_of_the_environment_is_refused_however_it_comes(small: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SERVICE_TOKEN", "correct-horse-battery")
    for word in ("runs_dir=${oc.env:SERVICE_TOKEN}", "hydra.sweep.dir=x/${oc.env:SERVICE_TOKEN,y}", "run=correct-horse-battery"):
        (problem,) = tolerant([word], RunConfig)[1]
        assert "SERVICE_TOKEN" in problem.why and "correct-horse-battery" not in f"{problem} {problem.key}"
    assert tolerant(["runs_dir=${oc.env:HOME}"], RunConfig) == (["++runs_dir=${oc.env:HOME}"], [])
    monkeypatch.setenv("PLAIN", "correct-horse-battery")
    with pytest.raises(ConfigError) as caught:
        compose([*small, "runs_dir=${oc.env:PLAIN}"])
    assert [problem.key for problem in caught.value.problems] == ["runs_dir"] and "correct-horse-battery" not in str(caught.value)
