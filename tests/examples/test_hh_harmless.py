"""The example's whole path on a few invented pairs, and its figures against ones worked out by hand."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from types import ModuleType
from typing import Any, ClassVar

import pytest
from transformers import AutoTokenizer

import runs

OPENINGS = [f"May I ask about {w}?" for w in ("bread", "cats", "rain", "tea", "music", "chess", "wool", "ships", "ink")]
TINY = ["--folds=2", "--hidden=32", "--layers=1", "--vocabulary=300"]
SHORT = ["max_steps=2", "batch_size=4", "dtype=float32"]


@pytest.fixture(scope="module")
def example() -> ModuleType:
    path = Path(__file__).parents[2] / "examples" / "hh_harmless.py"
    spec = importlib.util.spec_from_file_location("hh_harmless", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def transcript(*turns: str) -> str:
    """Turns in the layout of HH-RLHF, the person's first."""
    return "".join(f"\n\n{'Assistant' if i % 2 else 'Human'}: {text}" for i, text in enumerate(turns))


def write_pairs(path: Path) -> Path:
    """Nine conversations: one pair each, and for every other one a second pair further on. The longer answer is chosen
    in the second pairs only."""
    rows = []
    for i, opening in enumerate(OPENINGS):
        rows.append({"chosen": transcript(opening, "Gladly."), "rejected": transcript(opening, "No, go away now.")})
        if i % 2 == 0:
            so_far = (opening, "What of it?", "Anything at all.")
            longer = transcript(*so_far, "It is a thing that many people like.")
            rows.append({"chosen": longer, "rejected": transcript(*so_far, "Nothing.")})
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(tmp: Path) -> list[str]:
    data = write_pairs(tmp / "pairs.jsonl")
    short = [*SHORT, "max_length=64"]
    dpo = [*short, "learning_rate=1e-3", "sample_prompts=2", "max_new_tokens=4"]
    return [f"--data={data}", f"--out={tmp / 'out'}", *TINY, "--sft", *short, "--dpo", *dpo]


@pytest.fixture(scope="module")
def finished(example: ModuleType, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    tmp = tmp_path_factory.mktemp("hh")
    return tmp, example.main(arguments(tmp))


def openings(path: Path) -> set[str]:
    return {json.loads(line)["prompt"][0]["content"] for line in path.read_text().splitlines()}


@pytest.mark.long
def test_every_pair_is_held_out_once_and_no_conversation_is_on_both_sides(finished: tuple[Path, Any]) -> None:
    tmp, found = finished
    rows = [json.loads(line) for line in (tmp / "out/scores.jsonl").read_text().splitlines()]
    assert sorted(int(r["source"].rpartition(":")[2]) for r in rows) == list(range(1, 15))
    assert (found["pairs"], found["conversations"]) == (14, 9)
    for k in range(2):
        fold = tmp / "out" / f"fold-{k}"
        assert openings(fold / "train.jsonl").isdisjoint(openings(fold / "eval.jsonl"))
        assert openings(fold / "dialogues.jsonl").isdisjoint(openings(fold / "eval.jsonl"))
        tokenizer = AutoTokenizer.from_pretrained(fold / "scratch")
        talk = [{"role": "user", "content": "tea?"}, {"role": "assistant", "content": "yes"}]
        ids = tokenizer.apply_chat_template(talk, tokenize=True, return_dict=False)
        assert tokenizer.decode(ids) == "<|user|>tea?<|end|><|assistant|>yes<|end|>"
        assert len(ids) <= 4 + len("tea?") + len("yes")
        assert not json.loads((fold / "dpo/data.json").read_text())["train"]["tokens"]["notes"]
        assert "accuracies" in (fold / "dpo/metrics.jsonl").read_text()
        assert "<html" in (fold / "dpo/report.html").read_text()


@pytest.mark.long
def test_margins_belong_to_their_pairs(finished: tuple[Path, Any]) -> None:
    tmp, found = finished
    rows = [json.loads(line) for line in (tmp / "out/scores.jsonl").read_text().splitlines()]
    for k in range(2):
        last = json.loads((tmp / f"out/fold-{k}/dpo/metrics.jsonl").read_text().splitlines()[-1])
        mine = [r for r in rows if r["fold"] == k]
        assert sum(r["dpo"] for r in mine) / len(mine) == pytest.approx(last["eval_rewards/margins"], abs=1e-5)
    second = {2, 5, 8, 11, 14}  # lines of the file: the ones further on
    for r in rows:
        longer = int(r["source"].rpartition(":")[2]) in second
        assert r["characters"] == (len("Nothing.") - 36 if longer else 16 - len("Gladly."))
    shorter = found["ways"]["characters"]
    assert shorter["accuracy"]["mean"] == pytest.approx(9 / 14)
    assert (shorter["shorter"]["mean"], shorter["longer"]["mean"]) == (1, 0)
    assert shorter["balanced"]["mean"] == pytest.approx(0.5)


@pytest.mark.long
def test_the_same_command_repeats_and_another_is_refused(
    example: ModuleType, finished: tuple[Path, Any], capsys: pytest.CaptureFixture[str]
) -> None:
    tmp, found = finished
    assert example.main(arguments(tmp)) == found
    said = capsys.readouterr().out
    assert said.count("$ prefiere dpo --model=") == 2
    assert "| DPO's reward |" in said
    with pytest.raises(SystemExit, match="Choose another --out"):
        example.main([*arguments(tmp), "--seed=1"])


@pytest.mark.long
def test_a_reward_model_takes_the_place_of_dpo(example: ModuleType, tmp_path: Path) -> None:
    data = write_pairs(tmp_path / "pairs.jsonl")
    short = [*SHORT, "max_length=64"]
    out = ["--method=reward", f"--out={tmp_path / 'out'}", "--sft", *short, "--reward", *short, "learning_rate=1e-3"]
    found = example.main([f"--data={data}", *TINY, *out])
    assert list(found["ways"]) == ["characters", "sft", "sft_per_token", "reward"]
    rows = [json.loads(line) for line in (tmp_path / "out/scores.jsonl").read_text().splitlines()]
    for k in range(2):
        run = tmp_path / f"out/fold-{k}/reward"
        saved = json.loads((run / "calibration.json").read_text())
        mine = [r["reward"] for r in rows if r["fold"] == k]
        assert sum(m > 0 for m in mine) / len(mine) == pytest.approx(saved["accuracy"][0])


def test_a_run_that_stops_is_not_a_result(example: ModuleType, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = runs.settings(tmp_path, max_steps=1)

    class Stopped:
        status: ClassVar = {"state": "stopped", "step": 1, "reason": "guard: word salad"}

    monkeypatch.setattr(example.training, "train", lambda settings, console: Stopped)
    with pytest.raises(SystemExit, match="stopped at step 1: guard: word salad"):
        example.train("dpo", run.model, run.data, tmp_path / "run", {}, [])


def test_figures_worked_out_by_hand(example: ModuleType) -> None:
    def row(conversation: int, characters: int, dpo: float) -> dict[str, Any]:
        return {"conversation": conversation, "characters": characters, **dict.fromkeys(example.WAYS, dpo)} | {
            "characters": characters
        }

    # shorter chosen: right, wrong; longer chosen: right; equally long: right
    found = example.results([row(1, 5, 1.0), row(1, 3, -1.0), row(2, -4, 2.0), row(3, 0, 1.0)])
    way = found["ways"]["dpo"]
    assert way["accuracy"]["mean"] == pytest.approx(3 / 4)
    assert found["ways"]["characters"]["accuracy"]["mean"] == pytest.approx(2.5 / 4)
    assert way["over_shorter"]["mean"] == pytest.approx(((1 - 1) + (0 - 1) + (1 - 0) + (1 - 0.5)) / 4)
    assert (way["shorter"]["mean"], way["longer"]["mean"]) == (0.5, 1)
    assert way["balanced"]["mean"] == pytest.approx(0.75)
    assert way["accuracy"]["clusters"] == 3
    # deviations of a conversation from the mean 3/4: 1/4 - 3/4, 1/4, 1/4; Liang and Zeger's variance is
    # 3/2 (1/4 + 1/16 + 1/16) / 16 = 9/256; effective size (3/4 1/4) / (9/256) = 16/3, at most the 4 pairs
    t, p, n = 4.302652729911275, 0.75, 4.0
    middle, half = p + t * t / (2 * n), t * (p * (1 - p) / n + t * t / (4 * n * n)) ** 0.5
    assert way["accuracy"]["low"] == pytest.approx((middle - half) / (1 + t * t / n))
    assert way["accuracy"]["high"] == pytest.approx((middle + half) / (1 + t * t / n))
