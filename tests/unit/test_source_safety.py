"""What our own source never does: trust code of others, read pickles, make objects from names in a configuration. Read from its syntax."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parents[2]
SOURCES = [*sorted((ROOT / "slayer").rglob("*.py")), ROOT / "train.py", ROOT / "evaluate.py"]

PICKLES = {"pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "_pickle"}
RUNS = {"eval", "exec", "compile", "__import__"}
MAKES = {"instantiate", "get_class", "get_method", "get_object", "import_module", "get_class_from_dynamic_module", "_locate"}

ALLOWED = {
    ("slayer/data/storing/parts.py", "pickle"): "work that this process hands to processes of its own, in a folder of its own",
    ("slayer/evaluation/code/confined.py", "exec"): "model-written code, in the sandbox, where a person asked for it by name",
    ("slayer/evaluation/code/confined.py", "compile"): "the same",
}
"""(file, what it uses): why."""


def offences(tree: ast.AST) -> Iterator[str]:
    """What a source does that needs a reason."""
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            modules = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module or ""]
            yield from (module.partition(".")[0] for module in modules if module.partition(".")[0] in PICKLES)
            yield from (f"from {node.module} import {alias.name}" for alias in node.names if isinstance(node, ast.ImportFrom) and alias.name in MAKES)
            yield from (module for module in modules if module == "hydra.utils")
        if isinstance(node, ast.Call):
            yield from _offences_of_call(node)


def _offences_of_call(call: ast.Call) -> Iterator[str]:
    called = ast.unparse(call.func)
    name = called.rpartition(".")[2]
    options = {keyword.arg: keyword.value for keyword in call.keywords}
    given = {option: value.value for option, value in options.items() if isinstance(value, ast.Constant)}
    if called in RUNS or name in MAKES:
        yield name
    if called in ("torch.load", "yaml.load", "yaml.unsafe_load", "yaml.full_load", "os.system", "os.popen") or name == "read_pickle":
        yield called
    if given.get("shell") is True or given.get("allow_pickle") is True or given.get("weights_only") is False:
        yield f"{called} with {given}"
    if "trust_remote_code" in options and given.get("trust_remote_code", True) is not False:
        yield f"{called} with trust_remote_code={ast.unparse(options['trust_remote_code'])}"
    if name == "from_pretrained" and given.get("local_files_only") is not True:
        yield f"{called} without local_files_only=True"
    if name == "from_pretrained" and "Model" in called and given.get("use_safetensors") is not True and "gguf_file" not in options:
        yield f"{called} without use_safetensors=True"


def test_every_use_has_its_reason() -> None:
    found = {(path.relative_to(ROOT).as_posix(), offence) for path in SOURCES for offence in offences(ast.parse(path.read_text(encoding="utf-8")))}
    assert len(SOURCES) > 150 and found == set(ALLOWED)


@pytest.mark.parametrize(
    "text",
    [
        "import pickle", "from pickle import loads", "import joblib", "import torch; torch.load(p)", "torch.load(p, weights_only=True)",
        "np.load(p, allow_pickle=True)", "M.from_pretrained(p, trust_remote_code=True, local_files_only=True)",
        "M.from_pretrained(p, trust_remote_code=x, local_files_only=True)", "AutoModelForCausalLM.from_pretrained(p, local_files_only=True)",
        "AutoTokenizer.from_pretrained(p)", "f(trust_remote_code=config.trust)", "from hydra.utils import instantiate", "import hydra.utils",
        "hydra.utils.instantiate(c)", "hydra.utils.call", "importlib.import_module(c.name)", "from importlib import import_module", "eval(c.x)",
        "exec(t)", "__import__(n)", "os.system(c)", "subprocess.run(c, shell=True)", "yaml.load(t, L)",
    ],
)  # fmt: skip
def test_each_of_them_would_be_seen(text: str) -> None:
    if text == "hydra.utils.call":
        text = "import hydra.utils; hydra.utils.call(c)"
    assert list(offences(ast.parse(text)))


def test_no_configuration_of_ours_names_code() -> None:
    places = sorted((ROOT / "conf").rglob("*.yaml"))
    assert len(places) > 20
    for path in places:
        words = [event.value for event in yaml.parse(path.read_text(encoding="utf-8"), Loader=yaml.SafeLoader) if isinstance(event, yaml.ScalarEvent)]
        assert not [word for word in words if "_target_" in word or word == "()"], path
