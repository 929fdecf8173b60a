"""Expanded folders, tensor by tensor, against the rule as it is stated here; and in plain transformers."""

from __future__ import annotations

import hashlib
import itertools
import json
import math
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from slayer.config import ExpansionConfig, FreezeConfig
from slayer.errors import EngineError, ModelError
from slayer.surgery.build import build_expanded, model_hash, read_hashes, write_trained
from slayer.surgery.plan import LayerPlan, build_plan

FAMILIES = ("llama", "mistral", "qwen2", "qwen3")
LAYERS = 8
# For eight layers: base layer a block stands behind (-1: before the first) → the two layers it is between, in order.
PRESETS: dict[str, tuple[dict[str, Any], list[tuple[int, int, int | None]]]] = {
    "none": ({}, []),
    "shallow_half": ({}, [(1, 1, 2), (3, 3, 4)]),
    "even": ({}, [(3, 3, 4), (7, 7, None)]),
    "deep_half": ({}, [(5, 5, 6), (7, 7, None)]),
    "prefix_stack": ({}, [(-1, 0, 1), (-1, 1, 2)]),
    "suffix_stack": ({}, [(7, 6, 7), (7, 7, None)]),
    "solar": ({}, [(5, 2, 3), (5, 3, 4), (5, 4, 5), (5, 5, 6)]),
    "explicit": ({"after": [4, -1, 4]}, [(-1, 0, 1), (4, 4, 5), (4, 4, 5)]),
}
# Layers removed → their number, how they are chosen, and the layers whose mean becomes the last kept one.
PRUNINGS: dict[int, tuple[dict[str, Any], tuple[int, ...], tuple[int, ...]]] = {
    0: ({"prune": 0}, (), ()),
    1: ({"prune": 1, "prune_by": "last_but_final"}, (6,), ()),
    2: ({"prune": 2, "prune_by": "last"}, (6, 7), (5, 6, 7)),
    3: ({"prune": 3, "prune_by": "explicit", "prune_layers": [7, 2, 4], "tail": "average"}, (2, 4, 7), (2, 4, 6, 7)),
}
# Stored type, tied embeddings, sharded, biases on o_proj and down_proj: every pair of them occurs.
STORAGE = (
    ("float32", True, True, True),
    ("bfloat16", True, False, False),
    ("float16", False, True, False),
    ("float32", False, False, False),
    ("bfloat16", False, True, True),
    ("float16", True, False, True),
)


def storage(family: str, number: int) -> dict[str, Any]:
    """Ways of storing a model in turn; biases where the family has them."""
    dtype, tied, sharded, biases = STORAGE[number % len(STORAGE)]
    extra = {"llama": {"attention_bias": True, "mlp_bias": True}, "qwen3": {"attention_bias": True}}.get(family, {}) if biases else {}
    return {"dtype": dtype, "tie_word_embeddings": tied, "sharded": sharded, **extra}


def plan_of(strategy: str, **keys: Any) -> LayerPlan:
    pruning = {key: keys.pop(key) for key in ("prune", "prune_by", "prune_layers", "tail") if key in keys}
    chosen = ExpansionConfig.model_validate({"strategy": strategy, **keys})
    return build_plan(keys.pop("n_base", LAYERS), chosen, FreezeConfig(schedule="originals"), **pruning)


def tensors_of(folder: Path) -> dict[str, torch.Tensor]:
    files = [load_file(path) for path in sorted(folder.glob("*.safetensors"))]
    return {name: tensor for file in files for name, tensor in file.items()}


def same_bits(one: torch.Tensor, two: torch.Tensor) -> bool:
    if one.dtype != two.dtype or one.shape != two.shape:
        return False
    return torch.equal(one.contiguous().view(torch.uint8), two.contiguous().view(torch.uint8))


def mean(tensors: list[torch.Tensor]) -> torch.Tensor:
    total = tensors[0].double()
    for tensor in tensors[1:]:
        total = total + tensor.double()
    return (total / len(tensors)).to(tensors[0].dtype)


def slerp(one: torch.Tensor, two: torch.Tensor) -> torch.Tensor:
    """Shoemake's formula at t = 1/2, the tensors taken as vectors."""
    a, b = one.double().flatten(), two.double().flatten()
    angle = math.acos(min(1.0, float(a @ b) / math.sqrt(float(a @ a) * float(b @ b))))
    share = math.sin(angle / 2) / math.sin(angle) if angle > 0 else 0.5
    return ((a + b) * share).view(one.shape).to(one.dtype)


def blocks_of(preset: str, pruned: tuple[int, ...]) -> list[tuple[str, Any]]:
    """The layers of the result in order: ("kept", layer) or ("new", (left, right))."""
    inserted = PRESETS[preset][1]
    order: list[tuple[str, Any]] = []
    for layer in range(-1, LAYERS):
        if layer >= 0 and layer not in pruned:
            order.append(("kept", layer))
        order += [("new", (left, right)) for after, left, right in inserted if after == layer]
    return order


def new_tensor(base: dict[str, torch.Tensor], left: int, right: int | None, inner: str, init: str, zero_outputs: bool) -> torch.Tensor | None:
    """One tensor of a new block; None where it is random."""
    first = base[f"model.layers.{left}.{inner}"]
    if zero_outputs and (".o_proj." in f".{inner}" or ".down_proj." in f".{inner}"):
        return torch.zeros_like(first)
    if init == "random":
        return torch.zeros_like(first) if inner.endswith("bias") else torch.ones_like(first) if "norm" in inner else None
    if init == "copy" or right is None:
        return first
    second = base[f"model.layers.{right}.{inner}"]
    return mean([first, second]) if init == "average" else slerp(first, second)


def expected_tensors(
    base: dict[str, torch.Tensor], preset: str, pruned: tuple[int, ...], averaged: tuple[int, ...], init: str, zero_outputs: bool
) -> dict[str, torch.Tensor | None]:
    inner_names = [name.removeprefix("model.layers.0.") for name in base if name.startswith("model.layers.0.")]
    expected: dict[str, torch.Tensor | None] = {name: tensor for name, tensor in base.items() if ".layers." not in name}
    last_kept = max(layer for layer in range(LAYERS) if layer not in pruned)
    for index, (kind, what) in enumerate(blocks_of(preset, pruned)):
        for inner in inner_names:
            target = f"model.layers.{index}.{inner}"
            if kind == "new":
                expected[target] = new_tensor(base, *what, inner, init, zero_outputs)
            elif averaged and what == last_kept:
                expected[target] = mean([base[f"model.layers.{layer}.{inner}"] for layer in averaged])
            else:
                expected[target] = base[f"model.layers.{what}.{inner}"]
    return expected


def assert_equal_to_the_rule(built: dict[str, torch.Tensor], expected: dict[str, torch.Tensor | None]) -> None:
    assert set(built) == set(expected)
    for name, wanted in expected.items():
        if wanted is not None:
            assert same_bits(built[name], wanted), name
        else:  # normal with the configuration's initializer_range of 0.2
            assert 0.15 < float(built[name].float().std()) < 0.25 and abs(float(built[name].float().mean())) < 0.06, name
    random_ones = [built[name].flatten()[:16].tolist() for name, wanted in expected.items() if wanted is None]
    assert len({tuple(values) for values in random_ones}) == len(random_ones), "two random tensors are alike"


def token_ids(length: int = 12) -> torch.Tensor:
    return torch.randint(0, 61, (2, length), generator=torch.Generator().manual_seed(5))


@torch.inference_mode()
def logits(model: Any, length: int = 12) -> torch.Tensor:
    return model(input_ids=token_ids(length), use_cache=False).logits  # type: ignore[no-any-return]


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("preset", PRESETS)
def test_tensors_follow_the_rule_and_insertion_changes_no_logit(
    family: str, preset: str, make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    """Every preset × prune 0 to 3 × init × zeroed outputs or not, over all ways of storing a model in turn."""
    keys, _ = PRESETS[preset]
    base_logits = torch.empty(0)
    for prune, (pruning, pruned, averaged) in PRUNINGS.items():
        base_folder = make_model(family, **storage(family, list(PRESETS).index(preset) + prune))
        base = tensors_of(base_folder)
        for init, zero_outputs in itertools.product(("average", "copy", "slerp", "random"), (True, False)):
            if preset == "none" and (init, zero_outputs) != ("average", True):
                continue
            if not zero_outputs and FAMILIES.index(family) != (prune + len(init)) % 4:
                continue  # what is not zeroed follows the same path in every family: each combination once is enough
            plan = plan_of(preset, init=init, zero_outputs=zero_outputs, **keys, **pruning)
            hashes = build_expanded(base_folder, plan, tmp_path / "model", seed=3)
            built = tensors_of(tmp_path / "model")
            assert_equal_to_the_rule(built, expected_tensors(base, preset, pruned, averaged, init, zero_outputs))
            if zero_outputs and (prune == 0 or (init == "average" and prune == 1 + len(preset) % 3)):
                expanded = load_plain(tmp_path / "model")
                assert expanded.config.num_hidden_layers == len(blocks_of(preset, pruned)) == plan.n_layers
                if prune == 0:
                    base_logits = logits(load_plain(base_folder)) if init == "average" else base_logits
                    assert torch.equal(logits(expanded), base_logits)
    assert hashes == {name: hashlib.sha256(tensor.view(torch.uint8).numpy().tobytes()).hexdigest() for name, tensor in built.items()}


def test_a_block_that_is_not_zeroed_changes_logits(make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path) -> None:
    base = make_model("llama")
    build_expanded(base, plan_of("shallow_half", zero_outputs=False), tmp_path / "model", seed=0)
    assert not torch.allclose(logits(load_plain(tmp_path / "model")), logits(load_plain(base)), atol=1e-2)


def test_random_blocks_are_a_function_of_the_seed_alone(make_model: Callable[..., Path], tmp_path: Path) -> None:
    plan = plan_of("shallow_half", init="random", zero_outputs=False)
    hashes = []
    for number, seed in enumerate((0, 0, 1)):
        torch.manual_seed(number)  # must not matter
        hashes.append(build_expanded(make_model("qwen2"), plan, tmp_path / str(number), seed=seed))
    assert hashes[0] == hashes[1]
    changed = {name for name in hashes[0] if hashes[0][name] != hashes[2][name]}
    assert changed == {f"model.layers.{index}.{inner}.weight" for index in (2, 5) for inner in (
        "self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj", "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj")}  # fmt: skip


@pytest.mark.parametrize(("family", "preset"), [("qwen2", "shallow_half"), ("qwen3", "solar"), ("qwen2", "prefix_stack"), ("qwen3", "explicit")])
def test_attention_kinds_follow_the_layers_they_come_from(
    family: str, preset: str, make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    base = make_model(family, use_sliding_window=True, sliding_window=3, max_window_layers=3)
    kinds = ["full_attention"] * 3 + ["sliding_attention"] * 5
    assert load_plain(base).config.layer_types == kinds
    for prune, (pruning, pruned, _) in PRUNINGS.items():
        build_expanded(base, plan_of(preset, **PRESETS[preset][0], **pruning), tmp_path / "model", seed=0)
        expanded = load_plain(tmp_path / "model")
        assert expanded.config.layer_types == [kinds[what if kind == "kept" else what[0]] for kind, what in blocks_of(preset, pruned)]
        assert len(expanded.config.layer_types) == expanded.config.num_hidden_layers
        if prune == 0:
            assert torch.equal(logits(expanded), logits(load_plain(base)))


def test_a_sliding_mistral_stays_one(make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path) -> None:
    base = make_model("mistral", sliding_window=3)
    build_expanded(base, plan_of("even"), tmp_path / "model", seed=0)
    expanded = load_plain(tmp_path / "model")
    assert expanded.config.sliding_window == 3
    assert torch.equal(logits(expanded), logits(load_plain(base)))
    assert not torch.equal(logits(expanded), logits(load_plain(make_model("mistral", sliding_window=None))))


@pytest.mark.parametrize("family", FAMILIES)
def test_an_expanded_model_can_be_expanded_again(
    family: str, make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    window = {"use_sliding_window": True, "sliding_window": 3, "max_window_layers": 5} if family.startswith("qwen") else {}
    base = make_model(family, dtype="bfloat16", tie_word_embeddings=True, **window)
    build_expanded(base, plan_of("shallow_half"), tmp_path / "once", seed=0)
    second = build_plan(10, ExpansionConfig(strategy="even", init="slerp"), FreezeConfig(schedule="originals"))
    hashes = build_expanded(tmp_path / "once", second, tmp_path / "twice", seed=0)
    assert load_plain(tmp_path / "twice").config.num_hidden_layers == 12
    assert torch.equal(logits(load_plain(tmp_path / "twice")), logits(load_plain(base)))
    assert read_hashes(tmp_path / "twice") == hashes


def test_slayers_own_tiny_models_expand_with_their_tokenizer(
    tiny_folder: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    from transformers import AutoTokenizer

    base = tiny_folder("llama", layers=4, hidden_size=16)
    build_expanded(base, build_plan(4, ExpansionConfig(strategy="shallow_half"), FreezeConfig(schedule="originals")), tmp_path / "model", seed=0)
    assert torch.equal(logits(load_plain(tmp_path / "model")), logits(load_plain(base)))
    text = "Genève, 1 km²"
    assert AutoTokenizer.from_pretrained(tmp_path / "model")(text).input_ids == AutoTokenizer.from_pretrained(base)(text).input_ids


def own_copy(folder: Path, target: Path) -> Path:
    shutil.copytree(folder, target)
    return target


def test_small_files_come_along_and_other_weights_do_not(make_model: Callable[..., Path], tmp_path: Path) -> None:
    base = own_copy(make_model("llama", sharded=True), tmp_path / "base")
    along = {"tokenizer.json": "{}", "tokenizer_config.json": "{}", "chat_template.jinja": "x", "vocab.txt": "a", "tokenizer.model": "m"}
    stay = ("pytorch_model.bin", "pytorch_model.bin.index.json", "training_args.bin", "consolidated.00.pth", "model.gguf", ".cached", "scheduler.pt")
    for name, content in {**along, **dict.fromkeys(stay, "junk")}.items():
        (base / name).write_text(content, encoding="utf-8")
    (base / "original").mkdir()
    build_expanded(base, plan_of("shallow_half"), tmp_path / "model", seed=0)
    wanted = {*along, "config.json", "generation_config.json", "model.safetensors", "tensor_hashes.json"}
    assert {path.name for path in (tmp_path / "model").iterdir()} == wanted
    assert all((tmp_path / "model" / name).read_text(encoding="utf-8") == content for name, content in along.items())


def test_nothing_but_the_layers_changes_in_the_configuration(make_model: Callable[..., Path], tmp_path: Path) -> None:
    for family in FAMILIES:
        base = make_model(family)
        build_expanded(base, plan_of("shallow_half", prune=2), tmp_path / family, seed=0)
        before, after = (json.loads((folder / "config.json").read_text(encoding="utf-8")) for folder in (base, tmp_path / family))
        for per_layer in ("num_hidden_layers", "layer_types", "max_window_layers"):
            before.pop(per_layer, None), after.pop(per_layer, None)
        assert before == after


def broken_base(make_model: Callable[..., Path], folder: Path) -> Path:
    """A base whose layer 4 lacks one tensor: only found when the last new block is made, after much was written."""
    base = own_copy(make_model("llama"), folder)
    tensors = load_file(base / "model.safetensors")
    del tensors["model.layers.4.mlp.up_proj.weight"]
    save_file(tensors, base / "model.safetensors", metadata={"format": "pt"})
    return base


def test_an_interrupted_build_leaves_nothing_that_looks_finished(make_model: Callable[..., Path], tmp_path: Path) -> None:
    broken, target = broken_base(make_model, tmp_path / "broken"), tmp_path / "run" / "model"
    with pytest.raises(ModelError, match=r"no tensor model\.layers\.4\.mlp\.up_proj\.weight"):
        build_expanded(broken, plan_of("shallow_half"), target, seed=0)
    assert [path.name for path in target.parent.iterdir()] == ["model.partial"]
    assert (target.parent / "model.partial" / "model.safetensors").stat().st_size > 0, "it was interrupted before it wrote anything"

    good = build_expanded(make_model("llama"), plan_of("shallow_half"), target, seed=0)
    assert [path.name for path in target.parent.iterdir()] == ["model"] and read_hashes(target) == good

    with pytest.raises(ModelError):
        build_expanded(broken, plan_of("shallow_half"), target, seed=0)
    assert model_hash(target) == model_hash(target) and read_hashes(target) == good, "a finished model was damaged"
    assert tensors_of(target).keys() == good.keys()


def test_what_does_not_fit_is_refused_before_anything_is_written(make_model: Callable[..., Path], tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"the plan is for 9 layers but .* has 8.*run=NAME"):
        build_expanded(make_model(), build_plan(9, ExpansionConfig(strategy="none"), FreezeConfig(schedule="none")), tmp_path / "model", seed=0)
    base = own_copy(make_model(), tmp_path / "base")
    tensors = load_file(base / "model.safetensors")
    save_file({name: tensor for name, tensor in tensors.items() if ".layers.3." not in name}, base / "model.safetensors")
    with pytest.raises(ModelError, match="no tensors of layer 3"):
        build_expanded(base, plan_of("none"), tmp_path / "model", seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_a_full_disk_is_noticed_before_writing(tmp_path: Path, make_model: Callable[..., Path]) -> None:
    """A sparse file of more bytes than any disk has stands in for a large base: nothing of it is ever read."""
    base = own_copy(make_model(), tmp_path / "base")
    size = shutil.disk_usage(tmp_path).free // 8 + (1 << 30)
    header: dict[str, Any] = {}
    for layer in range(8):
        header[f"model.layers.{layer}.mlp.up_proj.weight"] = {"dtype": "U8", "shape": [size], "data_offsets": [layer * size, (layer + 1) * size]}
    encoded = json.dumps(header).encode()
    with (base / "model.safetensors").open("wb") as stream:
        stream.write(len(encoded).to_bytes(8, "little") + encoded)
        stream.truncate(8 + len(encoded) + 8 * size)
    (tmp_path / "model.partial").mkdir()
    with pytest.raises(EngineError, match=r"not enough disk space for the expanded model: \d+\.\d\d GB needed"):
        build_expanded(base, plan_of("none"), tmp_path / "model", seed=0)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base"]


def test_the_export_holds_trained_tensors_rounded_and_all_others_untouched(
    make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path
) -> None:
    base = make_model("qwen2", dtype="bfloat16", tie_word_embeddings=True, sharded=True)
    build_expanded(base, plan_of("shallow_half"), tmp_path / "expanded", seed=0)
    before = tensors_of(tmp_path / "expanded")
    trained = {name: torch.randn(tensor.shape) for name, tensor in before.items() if name.startswith(("model.layers.2.", "model.layers.5."))}
    hashes = write_trained(tmp_path / "expanded", trained, tmp_path / "model")
    after = tensors_of(tmp_path / "model")
    assert set(after) == set(before) == set(hashes)
    for name, tensor in after.items():
        assert same_bits(tensor, trained[name].to(torch.bfloat16) if name in trained else before[name])
    assert not (tmp_path / "model" / "tensor_hashes.json").exists(), "the hashes of the untrained model would be wrong here"
    assert load_plain(tmp_path / "model").config.num_hidden_layers == 10
    with pytest.raises(ModelError, match=r"not in .*run=NAME"):
        write_trained(tmp_path / "expanded", {"model.layers.10.mlp.up_proj.weight": torch.zeros(24, 16)}, tmp_path / "other")


def test_the_hash_of_a_model_ignores_sharding_and_nothing_else(make_model: Callable[..., Path], tmp_path: Path) -> None:
    whole, sharded = make_model("llama"), make_model("llama", sharded=True)
    assert len(list(sharded.glob("*.safetensors"))) > 3
    assert model_hash(whole) == model_hash(sharded)
    changed = own_copy(whole, tmp_path / "changed")
    tensors = load_file(changed / "model.safetensors")
    tensors["model.norm.weight"][3] += 1e-3
    save_file(tensors, changed / "model.safetensors", metadata={"format": "pt"})
    assert model_hash(changed) != model_hash(whole)
    assert len({model_hash(make_model("llama", seed=1)), model_hash(make_model("llama", dtype="bfloat16")), model_hash(whole)}) == 3


def test_a_second_copy_of_tied_embeddings_is_left_out(make_model: Callable[..., Path], load_plain: Callable[..., Any], tmp_path: Path) -> None:
    """Some folders of tied models hold the head as well. Kept, it would be stale as soon as the embeddings train."""
    base = make_model("llama", tie_word_embeddings=True)
    copied = shutil.copytree(base, tmp_path / "base")
    tensors = load_file(copied / "model.safetensors")
    save_file({**tensors, "lm_head.weight": tensors["model.embed_tokens.weight"].clone()}, copied / "model.safetensors", {"format": "pt"})
    plan = build_plan(8, ExpansionConfig(strategy="shallow_half"), FreezeConfig(schedule="none"))
    hashes = build_expanded(copied, plan, tmp_path / "expanded", seed=0)
    assert hashes == build_expanded(base, plan, tmp_path / "plain", seed=0) and "lm_head.weight" not in hashes
    changed = {"model.embed_tokens.weight": tensors["model.embed_tokens.weight"] + 1}
    write_trained(tmp_path / "expanded", changed, tmp_path / "model")
    model = load_plain(tmp_path / "model")
    assert torch.equal(model.lm_head.weight, changed["model.embed_tokens.weight"])
