"""Model folders that somebody prepared: what each does to a sound one, and the reason it is refused for."""

from __future__ import annotations

import json
import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file


def add(folder: Path, name: str = "config.json", **entries: Any) -> None:
    path = folder / name
    values = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    path.write_text(json.dumps(values | entries), encoding="utf-8")


class Evil:
    """A pickle that writes the canary when it is read."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return (Path.write_text, (self.canary, "ran"))


CODE = {"AutoConfig": "evil.Config", "AutoModelForCausalLM": "evil.Model", "AutoTokenizer": [None, "evil.Tokenizer"]}


def code_of_its_own(folder: Path) -> None:
    add(folder, auto_map=CODE)


def code_in_a_part(folder: Path) -> None:
    add(folder, text_config={"model_type": "llama", "auto_map": CODE})


def code_in_a_list(folder: Path) -> None:
    add(folder, parts=[[{"auto_map": CODE}]])


def code_on_the_hub(folder: Path) -> None:
    add(folder, auto_map={"AutoConfig": "evil/repository--evil.Config"})


def code_of_the_tokenizer(folder: Path) -> None:
    add(folder, "tokenizer_config.json", auto_map=CODE)


def code_of_the_processor(folder: Path) -> None:
    add(folder, "processor_config.json", auto_map=CODE)


def trust_asked_for(folder: Path) -> None:
    add(folder, trust_remote_code=True)


def pipelines(folder: Path) -> None:
    add(folder, custom_pipelines={"text-generation": {"impl": "evil.Model", "pt": ["AutoModelForCausalLM"]}})


def internal_attention(folder: Path) -> None:  # CVE-2026-4372
    add(folder, _attn_implementation_internal="evil/kernels")


def attention_from_the_hub(folder: Path) -> None:
    add(folder, _attn_implementation="evil/kernels@main:run")


def attention_of_a_part(folder: Path) -> None:
    add(folder, text_config={"attn_implementation": {"": "sdpa", "text_config": "flash_attention_2|evil/kernels"}})


def experts_from_the_hub(folder: Path) -> None:
    add(folder, _experts_implementation="evil/kernels")


def unknown_quantisation(folder: Path) -> None:
    add(folder, quantization_config={"quant_method": "evil", "module": "evil.Model"})


def torchao_quantisation(folder: Path) -> None:
    add(folder, quantization_config={"quant_method": "torchao", "quant_type": {"default": {"_type": "evil.Model"}}})


def another_settings_file(folder: Path) -> None:
    shutil.copy(folder / "config.json", folder / "config.4.0.0.json")
    add(folder, "config.4.0.0.json", auto_map=CODE)
    add(folder, configuration_files=["config.4.0.0.json"])


def another_weights_file(folder: Path) -> None:
    add(folder, transformers_weights="../elsewhere.safetensors")


def generation_of_its_own(folder: Path) -> None:
    add(folder, "generation_config.json", custom_generate="evil/repository")


def generation_beside(folder: Path) -> None:
    (folder / "custom_generate").mkdir()
    shutil.copy(folder / "evil.py", folder / "custom_generate" / "generate.py")


def adapter(folder: Path) -> None:
    add(folder, "adapter_config.json", peft_type="LORA", auto_mapping={"base_model_class": "Model", "parent_library": "evil"})


def only_a_pickle(folder: Path) -> None:
    (folder / "model.safetensors").unlink()
    (folder / "pytorch_model.bin").write_bytes(pickle.dumps(Evil(folder.parent / "canary")))


def pickle_in_the_index(folder: Path) -> None:
    only_a_pickle(folder)
    add(folder, "model.safetensors.index.json", weight_map={"lm_head.weight": "pytorch_model.bin"})


def way_up_in_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    add(folder, "model.safetensors.index.json", weight_map={"lm_head.weight": "../model.safetensors"})


def root_in_the_index(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder.parent / "model.safetensors")
    add(folder, "model.safetensors.index.json", weight_map={"lm_head.weight": str(folder.parent / "model.safetensors")})


def no_text_in_the_index(folder: Path) -> None:
    add(folder, "model.safetensors.index.json", weight_map={"a": 3, "b": "model.safetensors"})


def index_and_a_file(folder: Path) -> None:
    save_file({"a": torch.ones(2)}, folder / "other.safetensors")
    add(folder, "model.safetensors.index.json", weight_map={"a": "other.safetensors"})


def stored_twice(folder: Path) -> None:
    tensors = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    for name in ("one.safetensors", "two.safetensors"):
        save_file({"model.norm.weight": tensors["model.norm.weight"]}, folder / name)
    add(folder, "model.safetensors.index.json", weight_map={"a": "one.safetensors", "b": "two.safetensors"})


def no_tensor_at_all(folder: Path) -> None:
    save_file({}, folder / "model.safetensors")


def link(name: str) -> Callable[[Path], None]:
    def leads_out(folder: Path) -> None:
        (folder / name).rename(folder.parent / name)
        (folder / name).symlink_to(folder.parent / name)

    return leads_out


def linked_folder(folder: Path) -> None:
    (folder / "additional_chat_templates").symlink_to("/etc", target_is_directory=True)


def link_below(folder: Path) -> None:
    (folder / "additional_chat_templates").mkdir()
    (folder / "additional_chat_templates" / "default.jinja").symlink_to("/etc/hostname")


def link_that_turns_round(folder: Path) -> None:
    (folder / "notes.txt").symlink_to("notes.txt")


def chain_of_links(folder: Path) -> None:
    (folder / "tokenizer.model").symlink_to("inner")
    (folder / "inner").symlink_to("../evil")
    (folder.parent / "evil").write_text("x", encoding="utf-8")


def pretended_cache(folder: Path) -> None:
    """Laid out like the hub's cache, with a link to a file that is nobody's blob."""
    snapshots = folder.parent / "models--evil--model" / "snapshots"
    snapshots.mkdir(parents=True)
    (folder.parent / "blobs").mkdir()
    (folder.parent / "blobs" / "notes").write_text("x", encoding="utf-8")
    folder.rename(snapshots / "main")
    (snapshots / "main" / "notes.txt").symlink_to("../../../blobs/notes")
    folder.symlink_to(snapshots / "main")


def pipe(folder: Path) -> None:
    os.mkfifo(folder / "a_config.json")


def settings_without_end(folder: Path) -> None:
    (folder / "config.json").write_text("[" * 200_000, encoding="utf-8")


def huge_settings(folder: Path) -> None:
    os.truncate(folder / "config.json", 1 << 30)


def settings_in_no_encoding(folder: Path) -> None:
    (folder / "config.json").write_bytes(b'{"model_type": "llama\xff"}')


def layers(value: Any) -> Callable[[Path], None]:
    return lambda folder: add(folder, num_hidden_layers=value)


def sizes(folder: Path) -> None:
    add(folder, hidden_size="64; import os")


def header(entries: Any, data_bytes: int = 8, length: int | None = None) -> Callable[[Path], None]:
    """Weights with this header; `length` is what it says of its own length."""

    def write(folder: Path) -> None:
        encoded = entries if isinstance(entries, bytes) else json.dumps(entries).encode()
        told = len(encoded) if length is None else length
        (folder / "model.safetensors").write_bytes(told.to_bytes(8, "little") + encoded + bytes(data_bytes))

    return write


def tensor(shape: Any, offsets: Any, dtype: Any = "F32") -> dict[str, Any]:
    return {"dtype": dtype, "shape": shape, "data_offsets": offsets}


TWICE = b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]},"a":{"dtype":"I64","shape":[1],"data_offsets":[0,8]}}'

HOSTILE: list[tuple[str, Callable[[Path], None], str]] = [
    ("code of its own", code_of_its_own, "config.json has auto_map="),
    ("code in a part", code_in_a_part, "config.json has auto_map="),
    ("code in a list", code_in_a_list, "config.json has auto_map="),
    ("code on the hub", code_on_the_hub, "evil/repository--evil.Config"),
    ("code of the tokenizer", code_of_the_tokenizer, "tokenizer_config.json has auto_map="),
    ("code of the processor", code_of_the_processor, "processor_config.json has auto_map="),
    ("trust asked for", trust_asked_for, "trust_remote_code=True, which names code to run"),
    ("pipelines", pipelines, "custom_pipelines="),
    ("internal attention", internal_attention, "_attn_implementation_internal='evil/kernels', which names code to run"),
    ("attention from the hub", attention_from_the_hub, "'evil/kernels@main:run', which may name kernels to fetch and run; write one of eager, sdpa"),
    ("attention of a part", attention_of_a_part, "which may name kernels to fetch and run"),
    ("experts from the hub", experts_from_the_hub, "_experts_implementation='evil/kernels'"),
    ("unknown quantisation", unknown_quantisation, "a quantisation that may fetch or name code"),
    ("torchao quantisation", torchao_quantisation, "a quantisation that may fetch or name code"),
    ("another settings file", another_settings_file, "configuration_files=['config.4.0.0.json'], which leads to files other than its own"),
    ("another weights file", another_weights_file, "transformers_weights='../elsewhere.safetensors'"),
    ("generation of its own", generation_of_its_own, "generation_config.json has custom_generate="),
    ("generation beside", generation_beside, "custom_generate is code of its own for generating text"),
    ("adapter", adapter, "adapter_config.json is an adapter"),
    ("only a pickle", only_a_pickle, "pytorch_model.bin, a pickle, which is never loaded"),
    ("pickle in the index", pickle_in_the_index, "it names 'pytorch_model.bin', which is no safetensors file of this folder"),
    ("way up in the index", way_up_in_the_index, "it names '../model.safetensors', which is no safetensors file of this folder"),
    ("root in the index", root_in_the_index, "which is no safetensors file of this folder"),
    ("no text in the index", no_text_in_the_index, "is damaged"),
    ("index and a file", index_and_a_file, "which names other files; remove one of them"),
    ("stored twice", stored_twice, "stores model.norm.weight twice, in one.safetensors and two.safetensors"),
    ("no tensor at all", no_tensor_at_all, "without a single tensor"),
    ("linked settings", link("config.json"), "config.json is a link that leads out of it"),
    ("linked weights", link("model.safetensors"), "model.safetensors is a link that leads out of it"),
    ("linked tokenizer", link("tokenizer.json"), "tokenizer.json is a link that leads out of it"),
    ("linked folder", linked_folder, "additional_chat_templates is a link that leads out of it, to /etc"),
    ("link below", link_below, "default.jinja is a link that leads out of it"),
    ("link that turns round", link_that_turns_round, "notes.txt is a link that leads nowhere"),
    ("chain of links", chain_of_links, "is a link that leads out of it"),
    ("pretended cache", pretended_cache, "notes.txt is a link that leads out of it"),
    ("pipe", pipe, "is neither a file nor a folder"),
    ("settings without end", settings_without_end, "nested too deeply"),
    ("huge settings", huge_settings, "1073741824 bytes are no settings"),
    ("settings in no encoding", settings_in_no_encoding, "is not valid JSON"),
    ("too many layers", layers(10**12), "num_hidden_layers=1000000000000, which is no whole number from 1 to 10000"),
    ("no layers", layers(0), "num_hidden_layers=0"),
    ("layers in words", layers("4"), "num_hidden_layers='4'"),
    ("layers as truth", layers(True), "num_hidden_layers=True"),
    ("sizes in words", sizes, "hidden_size='64; import os'"),
    ("header larger than any", header({}, length=1 << 40), "a header of 1099511627776 bytes, more than 16777216"),
    ("header larger than the file", header({}, length=4096), "header of 4096 bytes in a file of 18"),
    ("header without end", header(b"[" * 200_000), "maximum recursion depth"),
    ("header of another kind", header([1]), "its header is not a JSON object"),
    ("overlapping tensors", header({"a": tensor([2], [0, 8]), "b": tensor([1], [4, 8])}), "'b' overlaps 'a'"),
    ("tensor outside the file", header({"a": tensor([2], [0, 8]), "b": tensor([250], [8, 1008])}), "8 bytes of data where the header asks for 1008"),
    ("offsets backwards", header({"a": tensor([2], [8, 0])}), "impossible data_offsets [8, 0]"),
    ("offsets below zero", header({"a": tensor([2], [-8, 0])}), "impossible data_offsets [-8, 0]"),
    ("hidden bytes", header({"a": tensor([1], [0, 4])}), "8 bytes of data where the header asks for 4"),
    ("bytes between", header({"a": tensor([1], [4, 8])}), "4 bytes between 'the header' and 'a' belong to no tensor"),
    ("the same name twice", header(TWICE), "it names 'a' twice"),
    ("absurd shape", header({"a": tensor([1 << 62, 1 << 62], [0, 8])}), "impossible shape"),
    ("shape below zero", header({"a": tensor([-2], [0, 8])}), "impossible shape [-2]"),
    ("shape of another type", header({"a": tensor(["2"], [0, 8])}), "impossible shape ['2']"),
    ("shape that does not fit", header({"a": tensor([3], [0, 8])}), "does not fill its 8 bytes"),
    ("unknown type", header({"a": tensor([1], [0, 8], "O64")}), "unknown type 'O64'"),
    ("type of another type", header({"a": tensor([1], [0, 8], ["F64"])}), "unknown type ['F64']"),
    ("not a number", header(b'{"a":{"dtype":"F32","shape":[2],"data_offsets":[0,NaN]}}'), "NaN is no number of JSON"),
    ("metadata of another kind", header({"__metadata__": {"format": ["pt"]}, "a": tensor([2], [0, 8])}), "its __metadata__ holds more than texts"),
]
