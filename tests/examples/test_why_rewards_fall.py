"""What makes curves fall: the causes are what they say, the pattern is what it says, and the whole path runs."""

from __future__ import annotations

import csv
import importlib
import json
import re
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest

from prefiere.demo import corpus

ROOT = Path(__file__).parents[2]


@pytest.fixture
def examples(monkeypatch: pytest.MonkeyPatch) -> dict[str, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "examples"))
    names = ("falling_causes", "why_rewards_fall", "could_it_be_noise")
    return {name: importlib.import_module(name) for name in names}


def change(chosen: float, rejected: float, margins: float, accuracies: float) -> dict[str, float]:
    return {"chosen": chosen, "rejected": rejected, "margins": margins, "accuracies": accuracies}


@pytest.mark.parametrize(
    ("of", "shown"),
    [
        (change(-1.0, 0.1, -1.1, -0.2), True),
        (change(-1.0, -0.35, -0.65, -0.2), True),
        (change(-1.0, -0.36, -0.64, -0.2), False),  # rejected is not flat
        (change(-1.0, -1.5, 0.5, 0.1), False),  # what DPO usually does
        (change(-1.0, 0.1, -1.1, 0.0), False),
        (change(0.1, 0.0, -0.1, -0.2), False),
    ],
)
def test_the_pattern(examples: dict[str, ModuleType], of: dict[str, float], shown: bool) -> None:
    assert examples["why_rewards_fall"].pattern(of) is shown


def test_swapped_pairs_and_dressed_ones(examples: dict[str, ModuleType]) -> None:
    causes = examples["falling_causes"]
    pairs = corpus.preferences()[:20]
    turned = causes.swapped(0.35)(pairs, np.random.default_rng(0))
    back = [p.chosen == q.rejected and p.rejected == q.chosen for p, q in zip(pairs, turned, strict=True)]
    assert sum(back) == 7
    assert all(b or p == q for b, p, q in zip(back, pairs, turned, strict=True))
    (dressed,) = causes.said("<{}>", chosen="{}!")(pairs[:1], np.random.default_rng(0))
    assert dressed.prompt[0].content == f"<{pairs[0].prompt[0].content}>"
    assert dressed.chosen[0].content == pairs[0].chosen[0].content + "!"
    assert dressed.rejected == pairs[0].rejected
    assert len(causes.first(8)(pairs, np.random.default_rng(0))) == 8


def test_foreign_templates_and_ends(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    from prefiere.models.load import load_tokenizer
    from prefiere.models.source import find_model, generation_config
    from prefiere.tokens.encoder import Encoder
    from prefiere.tokens.tokenizer import eos_ids_of
    from prefiere.tokens.truncation import EncodeReport

    def written(name: str | None) -> tuple[str, str]:
        folder = tmp_path / str(name)
        folder.mkdir()
        for path in (ROOT / "src/prefiere/demo/assets/base").iterdir():
            if path.suffix != ".safetensors":
                (folder / path.name).write_bytes(path.read_bytes())
        if name:
            getattr(examples["falling_causes"], name)(folder)
        source = find_model(folder)
        tokenizer = load_tokenizer(source)
        encoder = Encoder(tokenizer, eos_ids=eos_ids_of(generation_config(source), tokenizer))
        (group,) = encoder.encode(corpus.preferences()[:1], EncodeReport())
        return tokenizer.decode(group.prompt), tokenizer.decode(group.completions[0])

    asked = corpus.preferences()[0].prompt[0].content
    said = corpus.preferences()[0].chosen[0].content
    assert written(None) == (f"<|user|>{asked}<|end|><|assistant|>", f"{said}<|end|>")
    assert written("foreign_template") == (f"### Instruction:\n{asked}\n\n### Response:\n", f"{said}<|end|>")
    assert written("foreign_end") == (f"<|user|>{asked}<|end|><|assistant|>", f"{said}<|system|>")


@pytest.mark.long
def test_the_whole_path(
    examples: dict[str, ModuleType], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    script = examples["why_rewards_fall"]
    monkeypatch.setattr(script, "SANE", script.SANE | {"batch_size": 4, "sample_prompts": 2, "max_new_tokens": 4})
    monkeypatch.setattr(corpus, "held_out_prompts", lambda: PROMPTS)
    monkeypatch.setattr(corpus, "preferences", lambda: PAIRS)
    monkeypatch.setattr(script, "HELD_OUT", 8)
    arguments = [f"--out={tmp_path}", "--seeds=1", "--steps=2", "--causes", "sane", "swapped"]
    found = script.main(arguments)
    assert [r["cause"] for r in found["rows"]] == ["sane", "swapped"]
    sane, swapped = (found["causes"][name] for name in ("sane", "swapped"))
    assert sane["margins"]["mean"] > 0 > swapped["margins"]["mean"]
    with (tmp_path / "rows.csv").open() as f:
        assert [float(r["margins"]) for r in csv.DictReader(f)] == [r["margins"] for r in found["rows"]]
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert (tmp_path / "table.md").read_text() == script.table(found) + "\n"
    monkeypatch.setattr(script.training, "train", lambda *a, **k: pytest.fail("what has been run is run again"))
    assert script.main(arguments)["rows"] == found["rows"]


PROMPTS, PAIRS = corpus.held_out_prompts()[:2], corpus.preferences()[:32]


def test_little_evidence_by_hand(examples: dict[str, ModuleType]) -> None:
    """Two pairs, whose margins are 1 and -1 at first and 2 and -3 at the end: in truth the margin falls by a half."""
    noise = examples["could_it_be_noise"]
    course = np.linspace([1.0, -1.0], [2.0, -3.0], 6)
    run = {"margins": course, "chosen": course, "rejected": 0 * course, "accuracies": (course > 0).astype(float)}
    rng = np.random.default_rng(0)
    both = noise.held_out([run], 2, rng, 50)
    assert (both["margins"], both["accuracies"], both["below_half"], both["pattern"]) == (1, 0, 0, 0)
    one = noise.held_out([run], 1, rng, 1000)
    assert one["margins"] == pytest.approx(0.5, abs=0.06)  # whichever pair was drawn
    assert one["below_half"] == one["margins"]
    still = noise.training([run], 1, rng, 25, 1000, flat=True)
    assert still["margins"] == pytest.approx(0.5, abs=0.06)
    steep = {**run, "margins": np.repeat(np.linspace(0.1, 9.0, 6)[:, None], 2, 1)}
    assert noise.training([steep], 2, rng, 25, 50)["margins"] == 0


def test_every_pair_of_a_validation_is_kept(examples: dict[str, ModuleType], tmp_path: Path) -> None:
    import runs

    given = runs.settings(tmp_path)
    kept = examples["could_it_be_noise"].recorded(
        tmp_path / "kept", {"model": given.model, "data": given.data}, 4, 0, 5, ["eval_size=6", "learning_rate=1e-2"]
    )
    assert kept["margins"].shape == (2, 6)  # before, and at step 5
    assert np.allclose(kept["margins"], kept["chosen"] - kept["rejected"], atol=1e-5)
    assert (kept["accuracies"][0] == 0.5).all()
    assert np.abs(kept["margins"][1]).min() > 0


# -- the page ---------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def page() -> str:
    return (ROOT / "docs/why-rewards-fall.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def data() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((ROOT / "docs/why-rewards-fall.json").read_text(encoding="utf-8"))
    return found


def test_the_page_shows_the_data(examples: dict[str, ModuleType], page: str, data: dict[str, Any]) -> None:
    """Every table of the page is what the examples print of the committed data."""
    for line in examples["why_rewards_fall"].table(data["causes"]).splitlines():
        assert line in page
    for name in ("noise_hh", "noise_demo"):
        for line in examples["could_it_be_noise"].tables(data[name]).splitlines():
            assert line in page


def test_the_data_is_whole(examples: dict[str, ModuleType], page: str, data: dict[str, Any]) -> None:
    assert list(data["causes"]["causes"]) == list(examples["falling_causes"].CAUSES)
    assert {c["seeds"] for c in data["causes"]["causes"].values()} == {5}
    assert {c["what"] for c in data["causes"]["causes"].values()} == {
        c.what for c in examples["falling_causes"].CAUSES.values()
    }
    for link in re.findall(r"\]\(([^)#]+)\)", page):
        assert link.startswith("http") or (ROOT / "docs" / link).exists()
