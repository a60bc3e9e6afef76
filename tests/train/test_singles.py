"""What single examples showed (pairs.jsonl), how far weights moved, and what a model and its data are at the start."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any, Literal

import numpy as np
import pytest
import torch

import runs
import tiny
from prefiere.algorithms.advantages import spread_of
from prefiere.algorithms.dpo import build
from prefiere.algorithms.offline import Offline
from prefiere.console import Display
from prefiere.evaluate import singles
from prefiere.evaluate.moved import WeightsMoved
from prefiere.evaluate.start import at_start, before_a_run, likeness, of_own_answers
from prefiere.launch import launch
from prefiere.models.load import load_model, load_tokenizer
from prefiere.models.reference import sequence_logps
from prefiere.models.source import find_model
from prefiere.models.trunk import Trunk
from prefiere.run import Run, Stop
from prefiere.sample.sampling import Sampling
from prefiere.settings import DPO, Reward, Settings
from prefiere.tokens.groups import GroupStore, PromptGroup
from prefiere.train.loop import Loop
from prefiere.train.setup import make_evaluator

QUIET = Display(quiet=True)


def trained(tmp: Path, method: type[Settings] = DPO, **options: Any) -> Run:
    """A finished run of three updates of 6 of 18 pairs, with a row for each."""
    given: dict[str, Any] = {"batch_size": 6, "max_steps": 3, "logging_steps": 1, "eval_steps": 1, "dtype": "float32"}
    return launch(runs.settings(tmp, method, **given, **options), display=QUIET).run


@pytest.mark.parametrize("method", [DPO, Reward])
def test_every_pair_of_an_epoch_has_a_row_and_their_mean_is_the_metric(tmp_path: Path, method: type[Settings]) -> None:
    run = trained(tmp_path, method)
    train = [r for r in run.pairs if r["split"] == "train"]
    held = [r for r in run.pairs if r["split"] == "eval"]
    sources = [r["source"] for r in train]
    assert len(sources) == len(set(sources)) == 18
    assert {r["source"] for r in held} == set(run.data["eval_sources"])
    assert not {r["source"] for r in held} & set(sources)
    for row in run.metrics[1:]:
        for rows, key in ((train, "rewards/margins"), (held, "eval_rewards/margins")):
            own = [r["margin"] for r in rows if r["step"] == row["step"]]
            assert np.mean(own) == pytest.approx(row[key], abs=1e-4)
    assert all(len(r["tokens"]) == 2 and min(r["tokens"]) > 0 for r in run.pairs)


def test_a_margin_is_beta_times_the_difference_of_the_changes(tmp_path: Path) -> None:
    run = trained(tmp_path, beta=0.5)
    assert all(r["margin"] == pytest.approx(0.5 * (r["chosen"] - r["rejected"]), abs=2e-4) for r in run.pairs)
    assert any(abs(r["margin"]) > 0.01 for r in run.pairs)


def test_a_tiny_beta_leaves_no_zeros(tmp_path: Path) -> None:
    """What is written has significant digits: margins of 1e-5 tell as much as those of 1."""
    run = trained(tmp_path, beta=1e-5)
    assert 0 < max(abs(r["margin"]) for r in run.pairs) < 1e-4
    for r in run.pairs:
        assert r["margin"] == pytest.approx(1e-5 * (r["chosen"] - r["rejected"]), rel=0.02, abs=2e-9)


def test_single_answers_say_which_side_they_are_on(tmp_path: Path) -> None:
    train = [r for r in trained(tmp_path, loss_type="kto").pairs if r["split"] == "train"]
    assert {r["label"] for r in train} == {0.0, 1.0}
    assert all(math.isfinite(r["reward"]) for r in train)


def test_a_label_that_is_not_1_stands_in_its_row(tmp_path: Path) -> None:
    """Line 4 prefers its other answer with 0.9, line 9 is a tie; the rest say nothing of it."""
    data = runs.pairs_file(tmp_path / "pairs.jsonl")
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[3]["soft_label"], rows[8]["soft_label"] = 0.1, 0.5
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    found = trained(tmp_path).pairs
    assert {r["source"].rpartition(":")[2]: r["label"] for r in found if "label" in r} == {"4": 0.1, "9": 0.5}


@pytest.mark.parametrize("visits", [16_000, 32_000, 64_000, 100_000])
def test_a_run_keeps_so_many_rows_and_no_more(visits: int) -> None:
    """Every second, fourth, eighth and thirteenth row; of each part of three, of two and of sixteen, its share."""
    index = np.arange(visits)
    kept = singles.some(index, visits=visits, most=8_000)
    assert 6_500 < kept.sum() <= 8_000
    assert np.array_equal(kept[500:900], singles.some(index[500:900], visits=visits, most=8_000))
    for parts in (2, 3, 16):  # every second line may be the other side of a pair
        shares = [kept[first::parts].sum() for first in range(parts)]
        assert max(shares) - min(shares) < 300
    assert singles.some(index[:8_000], visits=8_000, most=8_000).all()


def test_weights_moved_by_a_tenth(tmp_path: Path) -> None:
    trunk = Trunk(tiny.model("llama"))
    moved = WeightsMoved(trunk)
    assert moved.share() == 0
    with torch.no_grad():
        for p in trunk.parameters():
            p.mul_(1.1)
    assert moved.share() == pytest.approx(0.1, rel=1e-5)


def test_a_run_says_how_far_its_weights_moved(tmp_path: Path) -> None:
    rows = trained(tmp_path).metrics
    moved = [r["weights/moved"] for r in rows if "weights/moved" in r]
    assert len(moved) == 3
    assert 0 < moved[0] < moved[1]


def random_pairs(n: int, seed: int = 0) -> list[PromptGroup]:
    rng = np.random.default_rng(seed)

    def ids(length: int) -> np.ndarray:
        return rng.integers(5, 40, length).astype(np.int32)

    made = []
    for i in range(n):
        answers = ids(4 + i % 3), ids(5)
        made.append(PromptGroup(ids(3 + i % 4), answers, tuple(np.ones(len(a), bool) for a in answers), source=str(i)))
    return made


def plain(trunk: Trunk, prompt: np.ndarray, answer: np.ndarray) -> tuple[float, np.ndarray]:
    """Log-prob of an answer and the mean of the states that predict it, by a plain forward."""
    ids = torch.from_numpy(np.concatenate([prompt, answer]).astype(np.int64))[None]
    with torch.no_grad():
        out = trunk.lm(ids, output_hidden_states=True)
    at = slice(len(prompt) - 1, ids.shape[1] - 1)
    logp = torch.log_softmax(out.logits[0, at].double(), -1)
    picked = sum(float(logp[i, int(t)]) for i, t in enumerate(answer))
    return picked, out.hidden_states[-1][0, at].mean(0).double().numpy()


def test_what_the_prompt_adds_and_how_alike_two_answers_are() -> None:
    """Against plain forwards: 16 pairs, whose answers are lent to the prompt eight further on."""
    trunk = Trunk(tiny.model("llama", vocab_size=64), packed=False).eval()
    store = GroupStore.build(random_pairs(16), 2)
    row = at_start(trunk, store, examples=16 * 96, max_length=64, budget=4096, autocast=None)
    order = np.sort(np.unique(store.prompt_keys, return_index=True)[1])
    pairs = [store[int(i)] for i in order]
    gaps, own = [], []
    for i, g in enumerate(pairs):
        size = len(g.completions[0])
        mine = plain(trunk, g.prompt, g.completions[0])[0] / size
        gaps.append(mine - plain(trunk, pairs[(i + 8) % 16].prompt, g.completions[0])[0] / size)
        own.append(mine)
    assert row["start/prompt_matters"] == pytest.approx(np.mean(gaps), abs=1e-4)
    assert row["start/chosen_logp"] == pytest.approx(np.mean(own), abs=1e-4)
    for g, found in zip(pairs, likeness(trunk, pairs, 4096, None), strict=True):
        good, bad = (plain(trunk, g.prompt, a)[1] for a in g.completions)
        assert found == pytest.approx((good @ bad - good @ good) / (good @ good), abs=1e-4)


def test_what_is_known_of_answers_is_not_computed_again() -> None:
    """Log-probs that are given count as they are, where they are known and the answer is whole. Every second one of 16
    is known, and said to be likelier by 3 nats."""
    trunk = Trunk(tiny.model("llama", vocab_size=64), packed=False).eval()
    store = GroupStore.build(random_pairs(16), 2)
    asked: dict[str, Any] = {"examples": 16 * 96, "budget": 4096, "autocast": None}
    logps = sequence_logps(trunk, store, budget=4096) + np.asarray([3, 50], np.float32)
    logps[::2] = np.nan
    plainly = at_start(trunk, store, max_length=64, **asked)
    known = at_start(trunk, store, max_length=64, known=logps, **asked)
    gain = np.mean([3 / len(store[i].completions[0]) for i in range(1, 16, 2)]) / 2
    for name in ("start/chosen_logp", "start/prompt_matters"):
        assert known[name] == pytest.approx(plainly[name] + gain, abs=1e-4)
    assert known["start/likeness"] == plainly["start/likeness"]
    cut = at_start(trunk, store, max_length=9, known=logps, **asked)  # room for three tokens after the longest prompt
    assert cut["start/chosen_logp"] != pytest.approx(at_start(trunk, store, max_length=9, **asked)["start/chosen_logp"])
    none = at_start(trunk, store, max_length=7, known=logps, **asked)  # for one: none is whole
    assert none == at_start(trunk, store, max_length=7, **asked)


def test_so_it_is_for_the_model_s_own_answers() -> None:
    trunk = Trunk(tiny.model("llama", vocab_size=64), packed=False).eval()
    own = [PromptGroup(g.prompt, g.completions[:1], g.masks[:1]) for g in random_pairs(12)]
    logps = sequence_logps(trunk, own, budget=4096)[:, 0]
    plainly = of_own_answers(trunk, own, 64, 4096, None)["start/prompt_in_own"]
    known = of_own_answers(trunk, own, 64, 4096, None, logps + 2)["start/prompt_in_own"]
    assert known == pytest.approx(plainly + np.mean([2 / len(g.completions[0]) for g in own]), abs=1e-4)


@pytest.mark.parametrize("temperature", [1.0, 0.7])
def test_before_the_first_update_answers_are_as_likely_as_a_forward_pass_finds(
    tmp_path: Path, temperature: float
) -> None:
    """The policy is its reference: measured once, both are known to the bit."""
    session = runs.built(runs.settings(tmp_path, sample_temperature=temperature), Run(tmp_path / "run"))
    evaluator = make_evaluator(session)
    assert evaluator is not None
    known = evaluator(session.trunk, session.reference, unmoved=True)
    found = evaluator(session.trunk, session.reference)
    assert [r["completion"] for r in known.rows] == [r["completion"] for r in found.rows]
    assert len(known.rows) == 4
    for a, b in zip(known.rows, found.rows, strict=True):
        assert a["logp"] == a["ref_logp"] == b["ref_logp"]
    assert known.logps is not None
    assert known.logps.tolist() == [r["logp"] for r in known.rows]
    assert ("kl" in known.signals) == (temperature == 1) == ("kl" in found.signals)


def test_margins_within_the_rounding_of_the_path_are_ties(tmp_path: Path) -> None:
    """A reference whose preferred answers are off by 0.02 nats, as 16-bit floats round them: margins of beta times that
    are 0 in truth. The first update, whose pairs nothing has moved yet, shows it: in it all are ties, and from then on
    those within it, in training and in validations, and so a resumed run has it."""
    settings = runs.settings(tmp_path, beta=0.5, batch_size=12, max_grad_norm=1e-12, weight_decay=0.0)
    session = runs.built(settings, Run(tmp_path / "run"))
    algorithm = build(session)
    for goal in (algorithm.train, algorithm.held):
        goal.reference[:, 0] -= 0.02
    row = algorithm.begin()
    assert row["rewards/margins"] == row["eval_rewards/margins"] == 0  # nothing has moved
    assert row["rewards/accuracies"] == row["eval_rewards/accuracies"] == 0.5
    update = algorithm.step(0)
    assert update.metrics["rewards/margins"].mean == pytest.approx(0.01, abs=1e-4)
    assert update.metrics["rewards/accuracies"].mean == 0.5
    assert algorithm.noise == np.abs(update.each["rewards/margins"]).max() == pytest.approx(0.01, abs=1e-4)
    assert algorithm.train.noise == algorithm.held.noise == algorithm.noise
    held = algorithm.validate()
    assert held["eval_rewards/margins"] == pytest.approx(0.01, abs=1e-4)
    goal = algorithm.held
    goal.reference[:, 0] -= 0.02
    assert algorithm.validate()["eval_rewards/accuracies"] == 1
    goal.reference[:, 0] += 0.022
    assert algorithm.validate()["eval_rewards/accuracies"] == 0.5
    again = build(session)
    again.restore(algorithm.state())
    assert again.train.noise == again.held.noise == algorithm.noise


def test_what_an_adapter_drops_in_training_is_no_rounding(tmp_path: Path) -> None:
    """A run that goes on with an adapter which drops half of its input: its first update's margins are far from 0."""
    first = runs.settings(tmp_path, lora=True, learning_rate=0.05, lora_dropout=0.5, beta=0.5, dtype="float32")
    assert launch(first, display=QUIET).run.status["state"] == "finished"
    on = runs.settings(tmp_path, model=str(first.out), out=str(tmp_path / "on"), beta=0.5, dtype="float32")
    algorithm = build(runs.built(on, Run(tmp_path / "on")))
    algorithm.begin()
    known = algorithm.noise
    update = algorithm.step(0)
    assert np.abs(update.each["rewards/margins"]).max() > 0.01
    assert known == algorithm.noise < 1e-3


def test_the_same_before_a_run(tmp_path: Path) -> None:
    """Of 16 pairs, against plain forwards: the model's own answers are its likeliest tokens, one after the other."""
    folder = runs.model_folder(tmp_path / "model")
    source, pairs = find_model(folder), random_pairs(16)
    tokenizer, greedy = load_tokenizer(source), Sampling(temperature=0, max_new_tokens=5)
    row = before_a_run(source, tokenizer, pairs, greedy, dtype=torch.float32, max_length=64)
    trunk = Trunk(load_model(source), packed=False)
    chosen = [plain(trunk, g.prompt, g.completions[0])[0] / len(g.completions[0]) for g in pairs]
    assert row["start/chosen_logp"] == pytest.approx(np.mean(chosen), abs=1e-4)
    own = []
    for g in pairs:
        said = np.zeros(0, np.int32)
        while len(said) < 5 and (not len(said) or said[-1] != tokenizer.eos_token_id):
            with torch.no_grad():
                logits = trunk.lm(torch.from_numpy(np.concatenate([g.prompt, said]).astype(np.int64))[None]).logits
            said = np.append(said, np.int32(logits[0, -1].argmax()))
        own.append(plain(trunk, g.prompt, said)[0] / len(said))
    assert row["samples/ref_logp"] == pytest.approx(np.mean(own), abs=1e-4)
    assert {"start/prompt_matters", "start/prompt_in_own", "start/likeness", "samples/repetition"} <= row.keys()


def test_the_same_text_twice_is_alike_to_the_full() -> None:
    trunk = Trunk(tiny.model("llama", vocab_size=64), packed=False).eval()
    answer = np.asarray([7, 8, 9], np.int32)
    twice = PromptGroup(np.asarray([5, 6], np.int32), (answer, answer), (np.ones(3, bool),) * 2)
    assert likeness(trunk, [twice], 4096, None)[0] == pytest.approx(0, abs=1e-5)


def test_the_spread_of_rewards_by_hand() -> None:
    """Median 0, median distance 1: 11 is beyond ten of it, 10 is not; rights and wrongs have no outliers."""
    rewards = np.asarray([-1.0, -1, 0, 0, 0, 1, 1, 1, -1, 11, 10])
    assert spread_of(rewards)["outliers"] == pytest.approx(1 / 11)
    assert spread_of(np.asarray([0.0] * 9 + [1.0]))["outliers"] == 0
    assert spread_of(np.arange(101.0)) == {"p05": 5, "p50": 50, "p95": 95, "outliers": 0}


def test_a_policy_says_whether_its_reward_agrees_with_itself(tmp_path: Path) -> None:
    run = launch(runs.policy_settings(tmp_path, sample_prompts=4, samples_per_prompt=4), display=QUIET).run
    first, second = run.metrics[:2]
    assert first["start/reward_retest"] == pytest.approx(1)
    assert second["reward_p05"] <= second["reward_p50"] <= second["reward_p95"]
    assert "reward_outliers" in second
    assert runs.unknown_columns(run.metrics) == set()


def test_a_row_of_step_0_says_what_model_and_data_are_to_each_other(tmp_path: Path) -> None:
    first = trained(tmp_path, sample_prompts=6, samples_per_prompt=2).metrics[0]
    names = {f"start/{n}" for n in ("prompt_matters", "prompt_in_own", "chosen_logp", "likeness")}
    assert names <= first.keys()
    assert runs.unknown_columns([first]) == set()
    assert all(first[f"{n}_low"] <= first[n] <= first[f"{n}_high"] for n in names)


def test_the_plan_records_what_auto_comes_to(tmp_path: Path) -> None:
    asked = runs.planned(runs.settings(tmp_path, learning_rate=1e-3)).to_json()
    auto = runs.planned(runs.settings(tmp_path, learning_rate="auto")).to_json()
    assert asked["learning_rate"] == 1e-3
    assert asked["automatic"]["learning_rate"] == auto["automatic"]["learning_rate"] == auto["learning_rate"]


def test_the_account_says_what_the_texts_show(tmp_path: Path) -> None:
    data = tmp_path / "pairs.jsonl"
    runs.pairs_file(data)
    rows = [json.loads(line) for line in data.read_text().splitlines()]
    rows[3]["chosen"] = "<|user|> dog"
    data.write_text("".join(json.dumps(r) + "\n" for r in rows))
    faults = trained(tmp_path).data["train"]["audit"]["faults"]
    assert faults["records"] == faults["pairs"] == 24
    assert faults["markup"] == {"count": 1, "sources": [f"{data}:4"]}


def test_of_many_validations_some_are_kept_and_always_the_last() -> None:
    """100 validations of 512 pairs are 51,200 rows: every 26th leaves 2,000 of them."""
    rows = [{"split": "eval"}] * 512 + [{"split": "train"}] * 3
    kept = singles.KeptRows(between=10, total=1000)
    sizes = [len(kept.due(rows, step)) for step in range(10, 1001, 10)]
    assert sizes[-1] == 515
    assert sum(s == 515 for s in sizes) == 4
    assert all(s in (3, 515) for s in sizes)
    assert len(kept.due(rows, None)) == 3


def test_of_many_held_out_pairs_some_are_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Six pairs where three have room: every second of a mixed order, the same ones at each validation."""
    monkeypatch.setattr(singles, "MOST_HELD", 3)
    held = [r for r in trained(tmp_path).pairs if r["split"] == "eval"]
    assert {r["step"] for r in held} == {3}
    assert 0 < len(held) < 6


@pytest.mark.parametrize("how", ["interrupted", "degenerate"])
def test_however_a_run_ends_its_last_validation_is_kept(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: Literal["interrupted", "degenerate"]
) -> None:
    """Nine validations of six pairs where twelve have room: the fifth and the last. A run that goes on forgets the one
    that was its last until then."""
    monkeypatch.setattr(singles, "MOST_HELD", 12)
    given: dict[str, Any] = {"batch_size": 6, "max_steps": 9, "eval_steps": 1, "dtype": "float32"}

    def run(folder: str) -> Run:
        return launch(runs.settings(tmp_path, **given, out=str(tmp_path / folder)), display=QUIET).run

    def held(folder: str) -> set[int]:
        return {r["step"] for r in run(folder).pairs if r["split"] == "eval"}

    assert held("whole") == {5, 9}
    with monkeypatch.context() as m:
        if how == "interrupted":
            m.setattr(Loop, "_stop_asked", lambda self: self.state.step == 3)
        else:
            m.setattr(Offline, "stop", lambda self, row: Stop(how, "broken") if row["step"] == 3 else None)
        assert held("stopped") == {3}
    if how == "interrupted":
        runs.assert_same_run(run("whole"), run("stopped"))
    else:
        assert held("stopped") == {3}


def test_a_validation_that_waits_to_be_written_outlives_a_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Of the validations at 4 and 8 the second has room. A run that was stopped at 5 and goes on forgets that the first
    was its last; stopped again at 6, it has no other one."""
    monkeypatch.setattr(singles, "MOST_HELD", 6)
    given: dict[str, Any] = {"batch_size": 6, "max_steps": 9, "eval_steps": 4, "save_steps": 9, "dtype": "float32"}
    for stop in (5, 6):
        monkeypatch.setattr(Loop, "_stop_asked", lambda self, stop=stop: self.state.step == stop)
        run = launch(runs.settings(tmp_path, **given, out=str(tmp_path / "run")), display=QUIET).run
        assert [r["step"] for r in run.pairs if r["split"] == "eval"] == [4] * 6
