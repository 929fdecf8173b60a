from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from slayer.config import EvaluationConfig, RandomModelConfig, RunConfig
from slayer.errors import ConfigError, Problem
from slayer.launching.commandline import CONF, groups, tolerant
from slayer.launching.compose import compose, resolved
from slayer.launching.evaluation import validate_evaluation
from slayer.launching.naming import split_override
from slayer.schema import field_at

NEEDED_BY = {
    "model=local": ["model.path=DIR"],
    "data=local": ["data.path=TEXT"],
    "expansion=explicit": ["expansion.after=[1]"],
    "expansion=none": ["freeze=none"],
    "freeze=existing_layers": ["freeze.train_layers=[0]"],
}
"""What a choice asks for besides itself."""


def problems_of(overrides: list[str]) -> tuple[Problem, ...]:
    try:
        compose(overrides)
    except ConfigError as error:
        return error.problems
    return ()


def mended(overrides: list[str], problem: Problem, places: dict[str, str]) -> Iterator[list[str]]:
    """The command line after each alternative of a problem's fix, as a person would type it. `places` stand for TEXT, DIR, NAME."""
    for fix in re.sub(r"   \(.*\)", "", problem.fix).split(", or "):
        words = dict.fromkeys(overrides)
        if field_at(problem.key) is None and problem.key not in groups():  # an unknown key is replaced by the right one
            words = {word: None for word in words if split_override(word)[0] != problem.key and word != problem.key}
        if fix.startswith("leave out "):
            gone = fix.removeprefix("leave out ")
            yield [word for word in words if split_override(word)[0] != gone and word != gone]
            continue
        typed = [places.get(word, word) for word in shlex.split(fix)]
        typed = ["=".join((key, places.get(value, value))) for key, value in map(split_override, typed)]
        keys = {split_override(word)[0] for word in typed}
        yield [*(word for word in words if split_override(word)[0] not in keys and word not in keys), *typed]


@pytest.fixture(scope="session")
def places(text: Path) -> dict[str, str]:
    from slayer.data.random_model import tiny_model

    return {"TEXT": str(text), "DIR": str(tiny_model(RandomModelConfig())), "NAME": "trial"}


# ── every file of conf/ ──────────────────────────────────────────────────────────────────────────────────────────────────


OWN_TESTS = ("suite=domain", "suite=paper")
CHOICES = [f"{group}={option}" for group, options in groups().items() for option in options if group != "experiment"]


@pytest.mark.parametrize("choice", [one for one in CHOICES if one.split("=")[0] in RunConfig.model_fields and one not in OWN_TESTS])
def test_every_choice_composes(choice: str, small: list[str], places: dict[str, str], assets: None) -> None:
    group, option = choice.split("=")
    base = [word for word in small if not word.startswith(f"{group}")]
    needed = ["=".join((key, places.get(value, value))) for key, value in map(split_override, NEEDED_BY.get(choice, []))]
    config = compose([*base, choice, *needed])
    section = getattr(config, group)
    known_as = {"expansion": "strategy", "freeze": "schedule", "engine": "zero_stage"}.get(group, "name")
    assert str(getattr(section, known_as)) == option.removeprefix("zero")


def evaluation(*words: str) -> EvaluationConfig:
    """What evaluate.py makes of a command line."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    accepted, problems = tolerant(words, EvaluationConfig)
    with initialize_config_dir(str(CONF), version_base="1.3"):
        values, unresolved = resolved(hydra_compose("evaluate", overrides=accepted))
    return validate_evaluation(values, [*problems, *unresolved])


@pytest.mark.parametrize("choice", [one for one in CHOICES if one.split("=")[0] in ("suite", "decoding") and one != "suite=paper"])
def test_every_choice_of_an_evaluation_composes(choice: str, assets: None) -> None:
    group, option = choice.split("=")
    needed = [] if group == "suite" or option == "task" else ["suite=quick"]
    assert getattr(evaluation("checkpoint=tiny", choice, *needed), group).name == option


def test_the_papers_suite_says_what_it_needs(assets: None) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluation("checkpoint=tiny", "suite=paper")
    assert {problem.key for problem in refused.value.problems} == {"suite.tasks", "confirm_run_unsafe_code"}
    assert "truthfulqa_mc2" in str(refused.value) and "quick, general" in str(refused.value)


def test_a_runs_domain_suite_is_the_one_its_text_names(small: list[str], assets: None) -> None:
    config = compose([*small, "suite=domain", "data.suite=law"])
    assert config.suite.name == "law" and any(task.role == "domain" for task in config.suite.tasks.values())
    assert [problem.fix for problem in problems_of([*small, "suite=domain"])] == ["data.suite=code, or suite=quick"]
    assert [problem.key for problem in problems_of([*small, "data.suite=lore"])] == ["data.suite"]


@pytest.mark.parametrize(
    ("words", "key", "fix"),
    [
        (["checkpoint=tiny", "limit=3"], "limit", "suite=quick, or leave out limit"),
        (["checkpoint=tiny", "backend=harness", "batch_tokens=99"], "backend", "suite=quick, or leave out backend"),
        (["checkpoint=a", "runs=[b,c]"], "checkpoint", "runs=[b,c,a]"),
        (["checkpoint=a", "sequence=true"], "sequence", "runs=[runs/FIRST,runs/SECOND] sequence=true"),
        (["checkpoint=a", "factors=[seed]"], "factors", "runs=[runs/sweeps/NAME], or leave out factors"),
        (["checkpoint=a", "decoding=dola"], "decoding", "suite=quick, or leave out decoding"),
        (["checkpoint=a", "suite=quick", "decoding.alpha=0.2"], "decoding.alpha", "decoding=dola, or leave out decoding.alpha"),
        (
            ["checkpoint=a", "suite=quick", "decoding=greedy", "decoding.top_p=0.5"],
            "decoding.top_p",
            "decoding=sampling, or leave out decoding.top_p",
        ),
        (["checkpoint=a", "suite=quick", "decoding=dola", "backend=harness"], "backend", "backend=shared_prefix, or leave out decoding"),
        (["suite=heldout"], "checkpoint", "checkpoint=runs/NAME"),
    ],
)
def test_what_would_be_ignored_is_refused(words: list[str], key: str, fix: str, assets: None) -> None:
    with pytest.raises(ConfigError) as refused:
        evaluation(*words)
    assert (key, fix) in [(problem.key, problem.fix) for problem in refused.value.problems]


@pytest.mark.parametrize("experiment", groups()["experiment"])
def test_every_experiment_composes(experiment: str, assets: None) -> None:
    config = compose([f"experiment={experiment}"])
    assert config.run == experiment
    overlay = OmegaConf.load(CONF / "experiment" / f"{experiment}.yaml")
    assert config.train.learning_rate == overlay.train.learning_rate
    if experiment == "slayer_8b":
        assert (config.model.name, config.expansion.strategy, config.prune, config.prune_by, config.tail) == (
            "llama2_7b", "shallow_half", 2, "last", "average",
        )  # fmt: skip


def test_the_default_is_the_embedded_demo(assets: None) -> None:
    config = compose([])
    assert (config.model.name, config.data.name, config.expansion.strategy, config.prune_by) == (
        "smollm2_135m", "demo", "shallow_half", "removal",
    )  # fmt: skip
    assert config.run == "default" and config.folder == Path("runs/default")


def test_hub_models_need_no_network_to_be_checked(small: list[str]) -> None:
    config = compose(["model=llama3_8b", *small[1:], "prune=2", "expansion=explicit", "expansion.after=[1,99]"])
    assert config.expansion.after == [1, 99]  # judged when the model is here and its layers can be counted


# ── what is typed ────────────────────────────────────────────────────────────────────────────────────────────────────────


@pytest.mark.parametrize("value", ["my text (1).jsonl", "a,b.jsonl", "it's.jsonl", "3", "back\\slash\\", "x{y}.jsonl", 'say "no".jsonl', "[1].jsonl"])
def test_paths_are_taken_as_they_are_typed(value: str, tmp_path: Path, small: list[str]) -> None:
    folder = tmp_path / value
    folder.mkdir()
    (folder / "text.jsonl").write_text('{"text": "one"}\n{"text": "two"}\n', encoding="utf-8")
    assert compose([*small, f"data.path={folder}"]).data.path == str(folder)


def test_base_layers_of_a_stage_are_typed_as_they_are_read(small: list[str]) -> None:
    natural = "freeze.stages=[{until_tokens:1_000_000,parts:{new:1}},{parts:{new:1,originals[2:4]:0.1,originals[:1]:0.2}}]"
    config = compose([*small, "freeze=staged", natural])
    assert [stage.parts for stage in config.freeze.stages] == [{"new": 1}, {"new": 1, "originals[2:4]": 0.1, "originals[:1]": 0.2}]
    escaped = natural.replace("s[2:4]", r"s\[2\:4\]")
    assert compose([*small, "freeze=staged", escaped]) == config, "one name too, however it was typed"


@pytest.mark.parametrize(
    ("words", "tokens"),
    [
        ([], 10_000_000),
        (["train.max_tokens=50_000"], 50_000),
        (["train.max_steps=10"], 10 * 4 * 512),
        (["train.max_steps=10", "train.max_tokens=50_000"], 10 * 4 * 512),
        (["train.max_steps=10", "train.max_tokens=5_000"], 5_000),
        (["train.max_steps=0"], 10_000_000),
    ],
)
def test_the_stages_that_come_with_it_are_shares_of_the_run(words: list[str], tokens: int, small: list[str]) -> None:
    stages = compose([*small, "freeze=staged", *words]).freeze.stages
    assert [stage.until_tokens for stage in stages] == [tokens // 5, tokens // 2, None]
    assert list(stages[2].parts) == ["new", "tail", "norms", "originals[-4:]"]


def test_numbers_may_be_names(small: list[str]) -> None:
    assert compose([*small, "run=2024"]).run == "2024" and compose([*small, "tracker.project=1e3"]).tracker.project == "1e3"


def test_the_last_of_two_words_counts(small: list[str]) -> None:
    config = compose([*small, "prune=1", "expansion=even", "prune=2", "expansion=deep_half", "experiment=full", "experiment=null"])
    assert (config.prune, config.expansion.strategy, config.freeze.schedule) == (2, "deep_half", "originals")


def test_a_source_may_be_taken_away_or_added(small: list[str], text: Path) -> None:
    config = compose([*small, "~data.sources.general", "data.sources.law.role=replay", f"data.sources.law.path={text}"])
    assert {name: source.role for name, source in config.data.sources.items()} == {"domain": "domain", "law": "replay"}


# ── what is wrong ────────────────────────────────────────────────────────────────────────────────────────────────────────

WRONG = {
    # one key alone
    "unknown key": (["prunee=2"], {"prunee"}),
    "unknown key in a section": (["train.lr=0.1"], {"train.lr"}),
    "unknown key of a source": (["data.sources.domain.feild=text"], {"data.sources.domain.feild"}),
    "unknown key below a value": (["prune.layers=2"], {"prune.layers"}),
    "key without its section": (["max_steps=3"], {"max_steps"}),
    "key like no other": (["quux=1"], {"quux"}),
    "no value": (["prune"], {"prune"}),
    "unreadable": (["prune=[1"], {"prune"}),
    "unreadable word": (["prune_by=[1"], {"prune_by"}),
    "unreadable list": (["expansion=explicit", "expansion.after=[1,2"], {"expansion.after"}),
    "unknown choice": (["expansion=shalow_half"], {"expansion"}),
    "no choice": (["expansion=null"], {"expansion"}),
    "several values without -m": (["prune=1,2"], {"prune"}),
    "several choices without -m": (["expansion=even,deep_half"], {"expansion"}),
    "range without -m": (["prune=range(1,3)"], {"prune"}),
    "a sweep of nothing": (["prune=glob(*)"], {"prune"}),
    "a choice of nothing": (["expansion=glob(x*)"], {"expansion"}),
    "text for a number": (["train.max_steps=many"], {"train.max_steps"}),
    "fraction for a whole number": (["train.max_steps=1.5"], {"train.max_steps"}),
    "1e3 for a whole number": (["train.max_steps=1e3"], {"train.max_steps"}),
    "number for a switch": (["dry_run=1"], {"dry_run"}),
    "number for a list": (["expansion=explicit", "expansion.after=1"], {"expansion.after"}),
    "words in a list": (["expansion=explicit", "expansion.after=[1,two]"], {"expansion.after"}),
    "list for text": (["run=[a]"], {"run"}),
    "nothing for a number": (["seed=null"], {"seed"}),
    "empty for a number": (["prune="], {"prune"}),
    "unknown word": (["prune=1", "tail=averag"], {"tail"}),
    "too small": (["heldout.samples=-1"], {"heldout.samples"}),
    "too large": (["engine.zero_stage=4"], {"engine.zero_stage"}),
    "on the open bound": (["train.learning_rate=0"], {"train.learning_rate"}),
    "value for a section": (["train=3"], {"train"}),
    "section taken away": (["~train"], {"train"}),
    "choice taken away": (["~model"], {"model"}),
    "points nowhere": (["seed=${nothing}"], {"seed"}),
    "a name that is a path": (["run=a/b"], {"run"}),
    "a name of nothing": (["run="], {"run"}),
    # several keys together
    "average of nothing": (["tail=average"], {"tail"}),
    "prune all": (["prune=4"], {"prune"}),
    "prune more than all": (["prune=9", "tail=frozen"], {"prune"}),
    "layers without explicit": (["prune_layers=[1]"], {"prune_layers"}),
    "explicit without layers": (["prune_by=explicit", "prune=2"], {"prune_layers"}),
    "count of layers": (["prune_by=explicit", "prune=2", "prune_layers=[1]"], {"prune_layers"}),
    "the same layer twice": (["prune_by=explicit", "prune=2", "prune_layers=[1,1]"], {"prune_layers"}),
    "layer out of range": (["prune_by=explicit", "prune=2", "prune_layers=[1,9]"], {"prune_layers"}),
    "after out of range": (["expansion=explicit", "expansion.after=[1,9]"], {"expansion.after"}),
    "explicit without after": (["expansion=explicit"], {"expansion.after"}),
    "after without explicit": (["expansion.after=[1]"], {"expansion.after"}),
    "stride of a stack": (["expansion=suffix_stack", "expansion.every=2"], {"expansion.every"}),
    "stride too long": (["expansion.every=3"], {"expansion.every"}),
    "stride and count": (["expansion=even", "expansion.every=2", "expansion.count=2"], {"expansion.count"}),
    "count of none": (["expansion=none", "freeze=none", "expansion.count=2"], {"expansion.count"}),
    "count too large": (["expansion.count=3"], {"expansion.count"}),
    "odd count of solar": (["expansion=solar", "freeze=none", "expansion.count=1"], {"expansion.count"}),
    "nothing trains": (["expansion=none"], {"freeze"}),
    "freeze matches nothing": (["freeze=existing_layers", "freeze.train_layers=[7]"], {"freeze.train_layers"}),
    "freeze matches what was pruned": (["freeze=existing_layers", "freeze.train_layers=[3]", "prune=1"], {"freeze.train_layers"}),
    "freeze without layers": (["freeze=existing_layers"], {"freeze.train_layers"}),
    "layers without their freeze": (["freeze.train_layers=[1]"], {"freeze.train_layers"}),
    "stages without their freeze": (["freeze.stages=[{parts:{new:1}}]"], {"freeze.stages"}),
    "warm-up of stages without their freeze": (["freeze.warmup_steps=3"], {"freeze.warmup_steps"}),
    "staged without stages": (["freeze=staged", "freeze.stages=[]"], {"freeze.stages"}),
    "an unknown part": (["freeze=staged", "freeze.stages=[{parts:{nwe:1}}]"], {"freeze.stages"}),
    "a malformed slice": (["freeze=staged", "freeze.stages=[{parts:{originals[3]:1}}]"], {"freeze.stages"}),
    "a slice of layers that are not there": (["freeze=staged", "freeze.stages=[{parts:{originals[2:6]:1}}]"], {"freeze.stages"}),
    "a slice of pruned layers": (["freeze=staged", "freeze.stages=[{parts:{originals[-1:]:1}}]", "prune=1"], {"freeze.stages"}),
    "a part at no rate": (["freeze=staged", "freeze.stages=[{parts:{new:1,tail:0}}]"], {"freeze.stages"}),
    "a freeze stage without an end": (["freeze=staged", "freeze.stages=[{parts:{new:1}},{parts:{tail:1}}]"], {"freeze.stages"}),
    "a last freeze stage with an end": (["freeze=staged", "freeze.stages=[{until_tokens:9,parts:{new:1}}]"], {"freeze.stages"}),
    "a freeze stage that never begins": (
        ["freeze=staged", "freeze.stages=[{until_tokens:4096,parts:{new:1}},{parts:{tail:1}}]", "train.max_tokens=4096"], {"freeze.stages"},
    ),
    "new blocks that are not there": (["freeze=staged", "expansion=none"], {"freeze.stages"}),
    "a number with a point in a stage": (["freeze=staged", "freeze.stages=[{until_tokens:1e6,parts:{new:1}},{parts:{new:1}}]"], {"freeze.stages"}),
    "a list of parts": (["freeze=staged", "freeze.stages=[{parts:[new,norms]}]"], {"freeze.stages"}),
    "a word for a rate": (["freeze=staged", "freeze.stages=[{parts:{new:one}}]"], {"freeze.stages"}),
    "an unknown key of a stage": (["freeze=staged", "freeze.stages=[{until:9,parts:{new:1}},{parts:{tail:1}}]"], {"freeze.stages"}),
    "a stage without parts": (["freeze=staged", "freeze.stages=[{until_tokens:9},{parts:{tail:1}}]"], {"freeze.stages"}),
    "stages that cannot be read": (["freeze=staged", "freeze.stages=[{parts:{new:1}"], {"freeze.stages"}),
    "no list of stages": (["freeze=staged", "freeze.stages=new"], {"freeze.stages"}),
    "micro-batch": (["engine.micro_batch_rows=3"], {"engine.micro_batch_rows"}),
    "micro-batches of two": (["launcher.processes=2"], {"engine.micro_batch_rows"}),
    "processes": (["launcher.processes=3"], {"engine.micro_batch_rows"}),
    "accumulation": (["engine.accumulation=2"], {"engine.accumulation"}),
    "heads": (["model.random.heads=5"], {"model.random.heads"}),
    # text and models
    "no model": (["model=local"], {"model.path"}),
    "no such model": (["model=local", "model.path=/no/such/model"], {"model.path"}),
    "no text": (["data.path=null"], {"data.path"}),
    "no such text": (["data.path=/no/such/text"], {"data.path"}),
    "no such built-in text": (["data.sources.general.path=null", "data.sources.general.builtin=python"], {"data.sources.general.builtin"}),
    "two texts at once": (["data.sources.general.builtin=python_stdlib"], {"data.sources.general"}),
    "text of nobody": (["data=python_code", "data.path=TEXT", "data.sources.general.role=replay", "data.replay=0"], {"data.path"}),
    "source without a role": (["data.sources.law.path=TEXT"], {"data.sources.law.role"}),
    "unknown role": (["data.sources.domain.role=topic"], {"data.sources.domain.role"}),
    "nothing to learn": (["data.sources.domain.role=replay"], {"data.sources"}),
    "no replay": (["~data.sources.general"], {"data.replay"}),
    "a revision of a file": (["data.sources.domain.revision=main"], {"data.sources.domain.revision"}),
    "a stream without an end": (["data.sources.domain.stream=true"], {"train.max_tokens"}),
    "a stage that never begins": (["train.max_tokens=1000", "data.stages=[{from_tokens:1000}]"], {"data.stages"}),
    "stages in disorder": (["data.stages=[{from_tokens:1000},{from_tokens:500}]"], {"data.stages"}),
    "a stage for nobody": (["data.stages=[{from_tokens:1000,weights:{law:2}}]"], {"data.stages"}),
    "a negative weight in a stage": (["data.stages=[{from_tokens:1000,weights:{domain:-1}}]"], {"data.stages"}),
    "a stage without text": (["data.stages=[{from_tokens:1000,weights:{domain:0}}]"], {"data.stages"}),
    "a stage without replay text": (["data.stages=[{from_tokens:1000,weights:{general:0}}]"], {"data.stages"}),
    "a stage of a wrong type": (["data.stages=[{from_tokens:soon}]"], {"data.stages"}),
    "an unknown benchmark": (["data.cleaning.decontaminate=[arc_eazy]"], {"data.cleaning.decontaminate"}),
    "objective without replay": (["~data.sources.general", "data.replay=0", "objective=replay_bits_per_byte"], {"objective"}),
}  # fmt: skip


@pytest.mark.parametrize("kind", WRONG)
def test_what_is_wrong_is_told_and_its_fix_mends_it(kind: str, small: list[str], places: dict[str, str]) -> None:
    words, keys = WRONG[kind]
    overrides = [*small, *(word.replace("TEXT", places["TEXT"]) for word in words)]
    problems = problems_of(overrides)
    assert {problem.key for problem in problems} == keys and len(problems) == len(keys)
    for problem in problems:
        alternatives = list(mended(overrides, problem, places))
        assert alternatives and problem.why
        for alternative in alternatives:
            assert problems_of(alternative) == (), alternative


@pytest.mark.parametrize(
    ("word", "passed_on"),
    [
        ("prune=0,2", "++prune=0,2"),
        ("expansion=even,solar", "expansion=even,solar"),
        ("prune=range(0,3)", "++prune=range(0,3)"),
        ("expansion=glob(*_half)", "expansion=glob(*_half)"),
    ],
)
def test_sweeps_are_passed_on(word: str, passed_on: str) -> None:
    assert tolerant(["-m", word], RunConfig) == (["-m", passed_on], [])
    assert [problem.key for problem in tolerant([word], RunConfig)[1]] == [word.partition("=")[0]]


def test_options_of_hydra_are_passed_on_with_their_values() -> None:
    words = ["--cfg", "job", "-p", "train", "hydra.verbose=true", "+hydra.sweeper.x=1", "--resolve", "-cd", "extra"]
    assert tolerant([*words, "prune=1"], RunConfig) == ([*words, "++prune=1"], [])
    assert tolerant(["--cfg"], RunConfig) == (["--cfg"], [])


def test_evaluate_has_keys_and_choices_of_its_own() -> None:
    words = ["checkpoint=runs/my run (2)", "data=demo", "heldout.samples=1"]
    assert tolerant(words, EvaluationConfig) == (["++checkpoint='runs/my run (2)'", "data=demo", "++heldout.samples=1"], [])
    assert tolerant(["data=demo", "data=null"], EvaluationConfig) == ([], [])
    assert [problem.fix for problem in tolerant(["checkpont=x", "prune=2", "data=dema"], EvaluationConfig)[1]] == [
        "checkpoint=x", "leave out prune", "data=demo",
    ]  # fmt: skip


def test_all_is_told_at_once(small: list[str]) -> None:
    wrong = [
        "prunee=2", "expansion=shalow_half", "prune_by=[1", "tail=averag", "train.max_steps=abc", "heldout.samples=-1", "seed=${nothing}",
        "engine.micro_batch_rows=3", "freeze=existing_layers", "freeze.train_layers=[7]", "prune=4", "data.path=/no/such/text", "run=a/b",
    ]  # fmt: skip
    with pytest.raises(ConfigError) as caught:
        compose([*small, *wrong])
    problems = {problem.key: problem for problem in caught.value.problems}
    assert set(problems) == {
        "prunee", "expansion", "prune_by", "tail", "train.max_steps", "heldout.samples", "seed", "freeze.train_layers", "prune", "data.path", "run",
    }  # fmt: skip
    assert len(caught.value.problems) == len(problems)
    message = str(caught.value)
    assert message.startswith(f"{len(problems)} problems in the configuration\n")
    for number, problem in enumerate(caught.value.problems, 1):
        assert f"  {number}. {problem.key} = " in message and problem.why in message and f"type: {problem.fix}" in message
    assert "'averag'" in message and "type: tail=average" in message and "did you mean prune?" in message


def test_sound_sections_are_judged_together_whatever_is_wrong_elsewhere(small: list[str]) -> None:
    keys = {problem.key for problem in problems_of([*small, "heldout.samples=x", "engine.micro_batch_rows=3", "prune=9", "tail=train"])}
    assert keys == {"heldout.samples", "engine.micro_batch_rows", "prune"}


KEYS = st.sampled_from(
    ["prune", "train", "train.max_steps", "run", "data", "data.sources", "data.sources.a", "expansion", "tail", "model", "nope", "", "a b"]
)
VALUES = st.one_of(
    st.text(st.characters(exclude_categories=["Cs", "Cc"]), max_size=12),
    st.sampled_from(["null", "[1,2]", "{a:1}", "${seed}", "${run}", "${oc.env:NOPE}", "???", "1,2", "tiny", "choice(1,2)", "glob(*)", "even"]),
)


@given(st.lists(st.one_of(st.builds("{}={}".format, KEYS, VALUES), st.builds("++{}={}".format, KEYS, VALUES), KEYS.map("~{}".format)), max_size=3))
@settings(max_examples=20, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_whatever_is_typed_is_understood_or_explained(small: list[str], typed: list[str]) -> None:
    try:
        config = compose([*small, *typed])
    except ConfigError as error:
        assert error.problems and all(problem.why and problem.fix for problem in error.problems)
    else:
        assert isinstance(config, RunConfig)
