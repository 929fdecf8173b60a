"""Whether many ranks train as one does, and what each holds under ZeRO-3: python benchmarks/many_ranks.py [losses] [memory] [--ranks 2 4]

losses    Six steps of a small Llama, five ways of freezing and accumulating, at every ZeRO stage: the largest difference of any loss from
          that of one rank. fp32 must be within 1e-5, bf16 within 2e-3.
memory    A Llama of 16 layers of width 512 in fp32, one of whose layers trains, under ZeRO-3. How far a rank's own memory (RssAnon; mapped
          files are the system's) rises at most while the model is opened and makes its first two steps, when each rank reads its part
          (parts), and when each loads everything, of which DeepSpeed then keeps a part (whole). DeepSpeed keeps up to 1e9 gathered weights
          at hand, more than this model has; here it may keep two layers, as it would of a model that is large.
          The losses of both must be the same bits.

Exit code 1 when something does not hold.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
sys.path[:0] = [str(ROOT / "tests"), str(ROOT / "tests" / "distributed"), str(ROOT)]

LAYERS, WIDTH, INNER = 16, 512, 1408
LAYER_WEIGHTS = 4 * WIDTH**2 + 3 * WIDTH * INNER
NEAR = {"fp32": 1e-5, "bf16": 2e-3}


def make_large(folder: Path) -> Path:
    """A random model in a folder."""
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    shape = {"hidden_size": WIDTH, "intermediate_size": INNER, "num_attention_heads": 8, "num_key_value_heads": 8, "num_hidden_layers": LAYERS}
    LlamaForCausalLM(LlamaConfig(vocab_size=8192, tie_word_embeddings=False, **shape)).save_pretrained(folder)  # type: ignore[arg-type]
    return folder


def losses_of_ranks(folder: Path) -> None:
    """What each rank does for `losses`."""
    from four_ranks_worker import all_cases

    from slayer.training.ranks import open_ranks

    with open_ranks() as ranks:
        found = all_cases(ranks, folder)
        if ranks.is_first:
            (folder / f"losses-{ranks.world}.json").write_text(json.dumps(found), encoding="utf-8")


def measure_losses(worlds: list[int], folder: Path) -> dict[str, dict[str, float]]:
    """Largest difference by case and number of ranks."""
    from forked_ranks import run_forked

    for world in (1, *worlds):
        run_forked(losses_of_ranks, world, folder, seconds=600, preload="four_ranks_worker")
    alone, *others = (json.loads((folder / f"losses-{world}.json").read_text(encoding="utf-8")) for world in (1, *worlds))
    return {
        f"{kind} {case}": {
            str(world): max(abs(one["loss"] - two["loss"]) for one, two in zip(alone[kind][case], found[kind][case], strict=True))
            for world, found in zip(worlds, others, strict=True)
        }
        for kind in alone
        for case in alone[kind]
    }


def measure_memory(worlds: list[int], folder: Path) -> dict[str, Any]:
    """By number of ranks and way: the largest of any rank, in bytes, and the losses."""
    from forked_ranks import run_forked
    from four_ranks_worker import memory_of_ranks

    model = make_large(folder / "large")
    found: dict[str, Any] = {"weights": sum(path.stat().st_size for path in model.glob("*.safetensors"))}
    for world in (1, *worlds):
        for way in ("parts", "whole"):
            run_forked(memory_of_ranks, world, folder, model, way, 2 * LAYER_WEIGHTS, seconds=600)
            told = json.loads((folder / f"memory-{way}-{world}.json").read_text(encoding="utf-8"))
            most = {name: max(one[name] for one in told) for name in ("opening", "steps")}
            found[f"{world} {way}"] = {**most, "losses": [one["losses"] for one in told]}
    return found


def show_losses(losses: dict[str, dict[str, float]], worlds: list[int]) -> bool:
    """The table, and whether all are near enough."""
    print(f"{'ZeRO, type, accumulation':34}" + "".join(f"{f'{world} ranks':>12}" for world in worlds))
    for case, by_world in losses.items():
        print(f"{case:34}" + "".join(f"{by_world[str(world)]:12.1e}" for world in worlds))
    near = all(difference <= NEAR["bf16" if "bf16" in case else "fp32"] for case, by_world in losses.items() for difference in by_world.values())
    print(f"{'✔' if near else '✖'} the losses of one rank\n", flush=True)
    return near


def show_memory(memory: dict[str, Any], worlds: list[int]) -> bool:
    """The table, and whether both ways gave the same bits."""
    print(f"model of {memory['weights'] / 1e6:.0f} MB\n{'ranks':8}{'way':8}{'opening MB':>12}{'steps MB':>12}")
    for world in (1, *worlds):
        for way in ("parts", "whole"):
            case = memory[f"{world} {way}"]
            print(f"{world:<8}{way:8}" + "".join(f"{case[name] / 1e6:12.0f}" for name in ("opening", "steps")))
    same = all(memory[f"{world} parts"]["losses"] == memory[f"{world} whole"]["losses"] for world in (1, *worlds))
    print(f"{'✔' if same else '✖'} parts and whole give the same bits", flush=True)
    return same


def main() -> int:
    """Measure, print, judge."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", nargs="*", default=["losses", "memory"], help="losses, memory (default: both)")
    parser.add_argument("--ranks", type=int, nargs="+", default=[2, 4])
    parser.add_argument("--json", type=Path)
    arguments = parser.parse_args()
    found: dict[str, Any] = {}
    with tempfile.TemporaryDirectory() as name:
        good = []
        if "losses" in arguments.what:
            found["losses"] = measure_losses(arguments.ranks, Path(name))
            good.append(show_losses(found["losses"], arguments.ranks))
        if "memory" in arguments.what:
            found["memory"] = measure_memory(arguments.ranks, Path(name))
            good.append(show_memory(found["memory"], arguments.ranks))
    if arguments.json is not None:
        arguments.json.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    return 0 if all(good) else 1


if __name__ == "__main__":
    sys.exit(main())
