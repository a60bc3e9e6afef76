"""The notebook's cells run on the tiny model, keep the torch that is there, and take an evening on a T4 at most."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import MistralConfig, PreTrainedTokenizerFast

from prefiere import recipe
from prefiere.console import Display
from prefiere.estimate.estimate import forecast

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "colab.ipynb"
RECIPE = ROOT / "recipes" / "openhermes-gptq-ultrafeedback.yaml"


def cells(kind: str) -> list[str]:
    """The sources of all cells of a kind."""
    return ["".join(c["source"]) for c in json.loads(NOTEBOOK.read_text())["cells"] if c["cell_type"] == kind]


def test_it_holds_no_output_and_little_code() -> None:
    book = json.loads(NOTEBOOK.read_text())
    assert all(not c["outputs"] and c["execution_count"] is None for c in book["cells"] if c["cell_type"] == "code")
    assert len(cells("code")) <= 10
    assert any("hf auth login" in text for text in cells("markdown"))


@pytest.mark.long
def test_its_cells_run_on_the_tiny_model(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Cell by cell, as a notebook would: lines that begin with ! go to a shell, what is in braces is filled in."""
    asked: list[str] = []
    monkeypatch.chdir(tmp_path)

    def shell(command: str) -> None:
        asked.append(command)
        if command.startswith("pip "):
            return  # it is installed here; what the line says is asked below
        command = re.sub(r"^prefiere ", f"{sys.executable} -m prefiere ", command)
        done = subprocess.run(command, shell=True, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{command}\n{done.stderr[-2000:]}"

    names: dict[str, Any] = {"shell": shell}
    for i, source in enumerate(cells("code")):
        source = re.sub(r"^!(.*)$", lambda m: f"shell(f{m[1]!r})", source, flags=re.MULTILINE)
        if i == 0:
            source = re.sub("^TINY = False", "TINY = True", source, flags=re.MULTILINE)
            source = re.sub("^PROJECT = .*", f"PROJECT = {str(ROOT)!r}", source, flags=re.MULTILINE)
        exec(compile(source, f"cell {i}", "exec"), names)
    assert names["TINY"] is True
    (install,) = [c for c in asked if c.startswith("pip ")]
    assert "-c keep-torch.txt" in install
    assert "torch" not in install.replace("keep-torch.txt", "")
    assert Path("keep-torch.txt").read_text() == f"torch=={version('torch')}\n"
    assert [c.split()[1] for c in asked[1:]] == ["data"]
    said = capsys.readouterr().out
    assert "GiB on T4: it fits" in said  # the estimate
    assert "after:" in said  # the comparison
    assert names["run"]._repr_html_().count("<svg") > 3
    assert names["run"].status["state"] == "finished"
    assert Path("my-adapter", "adapter_model.safetensors").is_file()
    choices = json.loads(Path("runs/colab/environment.json").read_text())["choices"]
    assert {c["name"]: c["value"] for c in choices}["quantization"] == "nf4"


def mistral_7b(folder: Path) -> Path:
    """What OpenHermes-2-Mistral-7B-GPTQ says of itself (groups of 128, act-order), and a word-level tokenizer."""
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True, "sym": True}
    config = MistralConfig(vocab_size=32002, max_position_embeddings=32768, sliding_window=4096, bos_token_id=1,
                           eos_token_id=2, quantization_config=quantization)  # fmt: skip
    config.save_pretrained(folder)
    ids = {"<unk>": 0, "<s>": 1, "</s>": 2} | {f"w{i}": i + 3 for i in range(1000)}
    inner = Tokenizer(models.WordLevel(ids, unk_token="<unk>"))
    inner.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    names = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "pad_token": "</s>"}
    PreTrainedTokenizerFast(tokenizer_object=inner, **names).save_pretrained(folder)
    return folder


def ultrafeedback_like(path: Path, n: int) -> Path:
    """Pairs of random words with the mean lengths of ultrafeedback_binarized: prompts 180, answers 310 and 280."""
    rng = np.random.default_rng(0)

    def text(mean: float, deviation: float) -> str:
        size = int(np.clip(rng.lognormal(np.log(mean) - deviation**2 / 2, deviation), 2, 2000))
        return " ".join(f"w{i}" for i in rng.integers(0, 1000, size))

    sizes = {"prompt": (180, 1.0), "chosen": (310, 0.7), "rejected": (280, 0.7)}
    rows = [{name: text(*size) for name, size in sizes.items()} for _ in range(n)]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows))
    return path


@pytest.mark.long
def test_the_recipe_takes_less_than_four_hours_on_a_t4(tmp_path: Path) -> None:
    given = {"model": str(mistral_7b(tmp_path / "model")), "out": str(tmp_path / "run"),
             "data": str(ultrafeedback_like(tmp_path / "pairs.jsonl", 3400))}  # fmt: skip
    settings = recipe.load(None, RECIPE, given, ["data_split=null"])
    f = forecast(settings, "t4", Display(quiet=True))
    found, available, card, changes, fits = f.estimate, f.available, f.card, f.changes, f.fits
    assert card is not None
    assert card.name == "T4"
    assert (changes, fits) == ([], True)
    assert found.memory.peak < available
    assert found.steps == 150
    assert 0.5 * 3600 < found.seconds < 4 * 3600
