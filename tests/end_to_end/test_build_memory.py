"""Peak memory of a build: a 2 GB model is expanded within three blocks of anonymous memory, whatever lies in the mapped files."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

HIDDEN, INTERMEDIATE, KEYS, LAYERS, VOCABULARY = 2048, 8192, 512, 16, 32_000
BLOCK_BYTES = 2 * (2 * HIDDEN * HIDDEN + 2 * HIDDEN * KEYS + 3 * HIDDEN * INTERMEDIATE + 2 * HIDDEN)

BUILD = """
import json, sys, threading
from pathlib import Path
from slayer.config import ExpansionConfig, FreezeConfig
from slayer.surgery.build import build_expanded
from slayer.surgery.plan import build_plan
import safetensors.torch, torch  # what the build imports lazily belongs to the baseline

def anonymous_bytes():
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssAnon"))

base, target, init = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3]
plan = build_plan(16, ExpansionConfig(strategy="shallow_half", init=init), FreezeConfig(schedule="originals"), prune=2)
start, peak, samples, done = anonymous_bytes(), 0, 0, threading.Event()

def watch():
    global peak, samples
    while not done.wait(0.002):
        peak, samples = max(peak, anonymous_bytes()), samples + 1

watcher = threading.Thread(target=watch)
watcher.start()
hashes = build_expanded(base, plan, target, seed=0)
done.set()
watcher.join()
print(json.dumps({"growth": peak - start, "samples": samples, "tensors": len(hashes)}))
"""


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Llama folder of more than 2 GB in bfloat16, in shards; each tensor holds one number over and over."""
    import torch

    from slayer.surgery.weights import Recipe, write_weights

    config = {
        "architectures": ["LlamaForCausalLM"], "model_type": "llama", "hidden_size": HIDDEN, "intermediate_size": INTERMEDIATE,
        "num_hidden_layers": LAYERS, "num_attention_heads": 32, "num_key_value_heads": 8, "vocab_size": VOCABULARY,
        "tie_word_embeddings": True, "torch_dtype": "bfloat16",
    }  # fmt: skip
    block = {
        "self_attn.q_proj": (HIDDEN, HIDDEN), "self_attn.k_proj": (KEYS, HIDDEN), "self_attn.v_proj": (KEYS, HIDDEN),
        "self_attn.o_proj": (HIDDEN, HIDDEN), "mlp.gate_proj": (INTERMEDIATE, HIDDEN), "mlp.up_proj": (INTERMEDIATE, HIDDEN),
        "mlp.down_proj": (HIDDEN, INTERMEDIATE), "input_layernorm": (HIDDEN,), "post_attention_layernorm": (HIDDEN,),
    }  # fmt: skip
    shapes: dict[str, tuple[int, ...]] = {"model.embed_tokens.weight": (VOCABULARY, HIDDEN), "model.norm.weight": (HIDDEN,)}
    for layer in range(LAYERS):
        shapes |= {f"model.layers.{layer}.{name}.weight": shape for name, shape in block.items()}
    folder = tmp_path_factory.mktemp("base")
    (folder / "config.json").write_text(json.dumps(config), encoding="utf-8")

    def recipe(number: int, name: str, shape: tuple[int, ...]) -> Recipe:
        return Recipe(name=name, dtype="BF16", shape=shape, make=lambda: torch.full(shape, 1 / (1 + number), dtype=torch.bfloat16))

    write_weights(folder, [recipe(number, name, shape) for number, (name, shape) in enumerate(shapes.items())], shard_bytes=700 << 20)
    return folder


@pytest.mark.slow
@pytest.mark.matrix
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="anonymous memory is read from /proc, which only Linux has")
def test_a_large_model_is_built_within_three_blocks(base: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights_bytes = sum(path.stat().st_size for path in base.glob("*.safetensors"))
    assert weights_bytes >= 2e9 and len(list(base.glob("*.safetensors"))) == 3
    try:
        for init in ("average", "random"):  # the one reads two layers at a time, the other draws in fp32
            target = tmp_path / init
            finished = subprocess.run(
                [sys.executable, "-c", BUILD, str(base), str(target), init], capture_output=True, text=True, timeout=300, check=False
            )
            assert finished.returncode == 0, finished.stderr[-2_000:]
            measured = json.loads(finished.stdout)
            with capsys.disabled():
                print(
                    f"\n  init={init}: {weights_bytes / 1e9:.2f} GB expanded with {measured['growth'] / 1e6:.0f} MB of anonymous memory "
                    f"({measured['growth'] / BLOCK_BYTES:.2f} blocks of {BLOCK_BYTES / 1e6:.0f} MB; {measured['samples']} samples)"
                )
            assert measured["tensors"] == 2 + 9 * (LAYERS + 4 - 2) and measured["samples"] > 100
            assert measured["growth"] <= 3 * BLOCK_BYTES
            remove(target)
    finally:
        remove(base)


def remove(folder: Path) -> None:
    """Big files must not wait for pytest to forget its folders three runs later."""
    for path in folder.glob("*.safetensors"):
        path.unlink()
