"""What "auto" comes to for validations, answers and checkpoints: a budget of work, from token counts alone."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

import runs
from prefiere.console import Display
from prefiere.estimate.workload import workload
from prefiere.launch import launch
from prefiere.plan import rhythm as rhythm_module
from prefiere.plan.choices import Choice
from prefiere.plan.device import Device
from prefiere.plan.reading import Reader
from prefiere.plan.rhythm import Costs, Rhythm, choose_rhythm, choose_watched, share_out
from prefiere.run import Run
from prefiere.settings import DPO, Reward

QUIET = Display(quiet=True)
LARGE = 10**9
"""Parameters of a model whose every token counts."""


def test_what_the_budget_leaves_is_shared_out() -> None:
    """A quarter of the whole is a third of the updates: 3,000 tokens of 9,000. Once takes 600, the last of each kind
    100 + 400 + 10, which leaves 1,890. Checkpoints need 90 of their third, and have ten. Validations take 900 of half
    of the 1,800 that are left: nine more, ten in all. Answers get the other 900: two more, 34 updates apart."""
    work = Costs(updates=9000, validation=100, answers=400, checkpoint=10, once=600)
    assert share_out(work, 100, LARGE) == {"save_steps": 10, "eval_steps": 10, "sample_steps": 34}
    assert Rhythm(10, 34, 10).overhead(work, 100) == pytest.approx((600 + 1000 + 1200 + 100) / (2900 + 9000))


def test_where_nothing_is_left_only_the_last_update_is_measured() -> None:
    work = Costs(updates=900, validation=500, answers=500, checkpoint=1, once=1200)
    assert share_out(work, 12, LARGE) == {"save_steps": 12, "eval_steps": 12, "sample_steps": 12}


def test_a_metric_that_chooses_the_best_step_has_ten_to_choose_from() -> None:
    """Once and the last of each kind leave 1,490 of a budget of 3,000. Nine further validations of 500 take more, and
    the others have their last alone. Without the metric, checkpoints take 90, answers 400 of half of the rest, and
    validations have 1,000: two more, three in all."""
    work = Costs(updates=9000, validation=500, answers=400, checkpoint=10, once=600)
    assert share_out(work, 100, LARGE, "eval_steps") == {"eval_steps": 10, "save_steps": 100, "sample_steps": 100}
    assert share_out(work, 100, LARGE, "sample_steps")["sample_steps"] == 10
    assert share_out(work, 100, LARGE)["eval_steps"] == 34


def test_early_stopping_can_stop_a_run_whose_budget_is_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """At a rate that moves nothing, no validation is better than the first: the fourth of ten is the third in vain."""
    monkeypatch.setattr(rhythm_module, "UNRATIONED", 0.0)
    watched = {"metric_for_best_model": "eval_rewards/margins", "early_stopping_patience": 3}
    asked = runs.settings(tmp_path, max_steps=20, learning_rate=1e-30, **watched)
    run = launch(asked, display=QUIET).run
    assert [r["step"] for r in run.metrics if "eval_loss" in r] == [0, 2, 4, 6, 8]
    assert run.status["stop"]["kind"] == "early"
    said = {c["name"]: c for c in json.loads((run.folder / "environment.json").read_text())["choices"]}
    assert "eval_rewards/margins chooses among them" in said["eval_steps"]["why"]


@pytest.mark.parametrize("validation", [1, 7, 33, 150, 800])
@pytest.mark.parametrize("steps", [1, 7, 100, 2311])
def test_a_run_stays_within_a_quarter_where_it_can(validation: int, steps: int) -> None:
    work = Costs(updates=steps * 1000, validation=validation, answers=450, checkpoint=40, once=validation + 450)
    found = share_out(work, steps, LARGE)
    taken = Rhythm(found["eval_steps"], found["sample_steps"], found["save_steps"])
    assert taken.overhead(work, steps) <= 0.25 or found == dict.fromkeys(found, steps)


def test_what_takes_seconds_is_not_rationed() -> None:
    """1,200 + 10 times 1,001 tokens through a million parameters, two operations each: 2e10."""
    work = Costs(updates=900, validation=500, answers=500, checkpoint=1, once=1200)
    assert set(share_out(work, 50, 10**6).values()) == {5}


def watched(tmp_path: Path, recorded: dict[str, int] | None = None, **options: object) -> tuple[int, list[Choice]]:
    """How many of 40 held-out prompts a run answers, and what it says of that."""
    runs.pairs_file(tmp_path / "pairs.jsonl", 60)
    built = runs.built(runs.settings(tmp_path, eval_size=40, **options), Run(tmp_path / "run"))
    data = Reader.of(built.plan).read(built.plan, QUIET)
    data, said = choose_watched(replace(built.plan, recorded=recorded or {}), data)
    return len(data.watched), said


@pytest.mark.parametrize("steps", [1, 30, 40, 2000])
def test_a_round_of_answers_takes_a_twentieth_of_the_updates(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, steps: int
) -> None:
    monkeypatch.setattr(rhythm_module, "UNRATIONED", 0.0)
    work = planned(tmp_path, max_steps=steps, sample_prompts=1)
    number, (said,) = watched(tmp_path, max_steps=steps, sample_prompts="auto")
    assert said.name == "sample_prompts"
    assert said.value == number
    assert 10 <= number <= 32
    cost = number * work.answers / work.updates
    assert number == 10 or cost < 0.06
    assert number == 32 or cost + work.answers / work.updates > 0.045
    assert [number == 10, number == 32] == [steps == 1, steps == 2000]


def test_what_takes_seconds_answers_32_prompts(tmp_path: Path) -> None:
    assert watched(tmp_path, max_steps=1, sample_prompts="auto")[0] == 32
    assert watched(tmp_path, max_steps=1, sample_prompts="auto", recorded={"sample_prompts": 12})[0] == 12


def test_a_number_of_prompts_is_that_many(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhythm_module, "UNRATIONED", 0.0)
    assert watched(tmp_path, max_steps=1, sample_prompts=38) == (38, [])
    (tmp_path / "ask.txt").write_text("one\ntwo\n")
    assert watched(tmp_path, max_steps=1, sample_prompts=str(tmp_path / "ask.txt")) == (2, [])


def test_a_policy_answers_20_at_least(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rhythm_module, "UNRATIONED", 0.0)
    runs.prompts_file(tmp_path / "prompts.txt", 60)
    asked = runs.policy_settings(tmp_path, max_steps=1, eval_size=40, sample_prompts="auto")
    run = launch(asked, display=QUIET).run
    assert run.choices["sample_prompts"] == 20
    assert len({r["prompt"] for r in run.samples}) == 20


def planned(tmp_path: Path, method: type = DPO, **options: object) -> Costs:
    device = replace(Device.of(torch.device("cpu")), memory=2**34)
    return workload(runs.settings(tmp_path, method, **options), device, QUIET).work


def test_work_is_counted_from_the_lengths(tmp_path: Path) -> None:
    """All 24 pairs are held out or trained on; an update of 8 of 18 is 8/18 of their tokens, three passes each."""
    device = replace(Device.of(torch.device("cpu")), memory=2**34)
    w = workload(runs.settings(tmp_path, lora=False, max_steps=9), device, QUIET)
    tokens = int(w.lengths.sum())
    assert w.work.updates == pytest.approx(9 * 3 * 8 / 18 * tokens)
    assert w.work.validation == w.held_out
    assert planned(tmp_path, lora=True, max_steps=9).updates == pytest.approx(9 * 2 * 8 / 18 * tokens)
    rows, new, prompts = 4, 6, sum(w.prompts)
    assert w.work.answers == prompts + 4 * rows * new + 2 * (prompts + rows * new)
    assert planned(tmp_path, sample_steps=0).answers == 0
    mean, given = tokens / 18, {"lora": False, "max_steps": 9}
    looked = min(18, 8) * mean  # the fewest that are looked at, of 72 visits
    assert w.work.once == pytest.approx(w.work.answers + looked)  # the reference is known, and is the policy still
    simpo = planned(tmp_path, loss_type="simpo", **given)  # without a reference nothing is known
    assert simpo.once == pytest.approx(w.held_out + 8 * mean + simpo.answers + 2 * looked)
    kto = planned(tmp_path, loss_type="kto", batch_size=16, **given)
    assert kto.once == pytest.approx(kto.answers + min(36, 9) * kto.updates / (9 * 16 * 4))
    assert kto.validation > w.held_out  # the mismatched answers are read as well
    assert planned(tmp_path, Reward).answers == 0


def test_the_rhythm_is_recorded_with_its_reason_and_given_back(tmp_path: Path) -> None:
    run = launch(runs.settings(tmp_path, max_steps=4, eval_steps=3), display=QUIET).run
    said = {c["name"]: c for c in json.loads((run.folder / "environment.json").read_text())["choices"]}
    assert said["sample_steps"]["value"] == said["save_steps"]["value"] == 1
    assert "of the work of all 4 updates" in said["sample_steps"]["why"]
    assert "eval_steps" not in said
    assert [r["step"] for r in run.metrics if "eval_loss" in r] == [0, 3, 4]
    built = runs.built(runs.settings(tmp_path, max_steps=4, eval_steps=3), run)
    rhythm, _, chosen = choose_rhythm(replace(built.plan, recorded={"save_steps": 7}), built.data)
    assert rhythm == Rhythm(3, 1, 7)
    assert {c.name: c.why for c in chosen}["save_steps"] == "as when this run began"
