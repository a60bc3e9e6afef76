"""What is said of a reward model, against figures worked out by hand."""

from __future__ import annotations

import json
import math
from itertools import pairwise

import numpy as np
import pytest

import runs
from prefiere.api.scoring import answer_rows, pair_rows
from prefiere.cli.score import score as run_score
from prefiere.console import Display, console
from prefiere.evaluate import calibration
from prefiere.evaluate.pairs import PairScores
from prefiere.launch import launch
from prefiere.models.reward_model import RewardModel
from prefiere.models.source import ModelError
from prefiere.settings import Reward

QUIET = Display(quiet=True)


def pairs(margins, *, labels=None, tokens=None, prompts=None) -> PairScores:
    n = len(margins)
    scores = np.stack([np.asarray(margins, float), np.zeros(n)], 1)
    return PairScores(
        scores,
        np.asarray(tokens if tokens is not None else [(1, 1)] * n),
        np.asarray(labels if labels is not None else [1.0] * n),
        np.asarray(prompts if prompts is not None else range(n)),
        [f"d:{i}" for i in range(n)],
        {},
    )


def test_accuracy_log_loss_and_bins_by_hand() -> None:
    # Forty pairs at odds of 3 (sure 0.75), 30 right; forty at odds of 9 (sure 0.9), 36 right.
    low, high = math.log(3), math.log(9)
    found = calibration.calibration(pairs([low] * 30 + [-low] * 10 + [high] * 36 + [-high] * 4))
    assert found["n"] == 80
    assert found["accuracy"][0] == pytest.approx(66 / 80)
    by_hand = 30 * math.log(4 / 3) + 10 * math.log(4) + 36 * math.log(10 / 9) + 4 * math.log(10)
    assert found["log_loss"][0] == pytest.approx(by_hand / 80)
    assert [(b["n"], b["predicted"], b["observed"]) for b in found["reliability"]] == [
        (40, pytest.approx(0.75), pytest.approx(0.75)),
        (40, pytest.approx(0.9), pytest.approx(0.9)),
    ]
    assert found["ece"] == pytest.approx(0, abs=1e-12)
    for b in found["reliability"]:
        assert b["observed_low"] < b["observed"] < b["observed_high"]
        assert b["low"] == pytest.approx(b["high"])


def test_one_that_is_too_sure_has_its_distance_as_error() -> None:
    # Always 0.9 sure, right in 60 of 100: |0.9 - 0.6|.
    found = calibration.calibration(pairs([math.log(9)] * 60 + [-math.log(9)] * 40))
    assert found["ece"] == pytest.approx(0.3)


def test_ties_and_soft_labels_count_as_they_say() -> None:
    # No opinion: half right. A label of 0.8 for an answer that scores higher: right in 0.8.
    found = calibration.calibration(pairs([0.0, 1.0, 1.0], labels=[1.0, 0.8, 0.5]))
    assert found["accuracy"][0] == pytest.approx((0.5 + 0.8 + 0.5) / 3)
    softplus = math.log1p(math.exp(-1))
    losses = [math.log(2), 0.8 * softplus + 0.2 * (1 + softplus), 0.5 * softplus + 0.5 * (1 + softplus)]
    assert found["log_loss"][0] == pytest.approx(sum(losses) / 3)


def test_length_by_hand() -> None:
    # The longer answer is chosen in 30, the shorter in 25, neither in 5; the model always takes the longer one.
    tokens = [(9, 4)] * 30 + [(3, 7)] * 25 + [(5, 5)] * 5
    found = calibration.of_length(pairs([1.0] * 30 + [-1.0] * 25 + [1.0] * 5, tokens=tokens))
    assert found["rule"] == "longer"
    assert found["baseline"][0] == pytest.approx((30 + 2.5) / 60)
    assert [(b["low"], b["high"], b["n"], b["accuracy"][0]) for b in found["by_difference"]] == [
        (-4, -4, 25, 0.0),
        (0, 0, 5, 1.0),
        (5, 5, 30, 1.0),
    ]
    assert calibration.of_length(pairs([1.0], tokens=[(1, 2)]))["rule"] == "shorter"


def test_bins_hold_every_pair_once_and_share_no_value() -> None:
    values = np.random.default_rng(0).integers(0, 30, 500).astype(float)
    bins = calibration._bins(values)
    assert sorted(np.concatenate(bins).tolist()) == list(range(500))
    assert 5 <= len(bins) <= 10
    edges = [(values[b].min(), values[b].max()) for b in bins]
    assert all(a[1] < b[0] for a, b in pairwise(edges))


def test_intervals_are_clustered_by_prompt() -> None:
    margins = np.random.default_rng(1).normal(size=60)
    apart = calibration.calibration(pairs(margins))["log_loss"]
    doubled = calibration.calibration(pairs(np.repeat(margins, 2), prompts=np.repeat(np.arange(60), 2)))["log_loss"]
    assert doubled == pytest.approx(apart)


def test_disagreement_by_hand() -> None:
    one, two = pairs([1.0, 1.0, -1.0, 2.0]), pairs([3.0, -2.0, -1.0, 2.0])
    found = calibration.model_disagreement([one, two])
    assert found["std"] == pytest.approx((1 + 1.5 + 0 + 0) / 4)
    assert found["split"][0] == pytest.approx(1 / 4)
    assert found["accuracy_split"][0] == 0  # the mean margin is -0.5
    assert found["accuracy_agreed"][0] == pytest.approx(2 / 3)
    rows = pair_rows({"a": one, "b": two})
    assert rows[1]["margin"] == pytest.approx(-0.5)
    assert rows[1]["disagreement"] == pytest.approx(1.5)
    assert rows[1]["models"] == {"a": [1.0, 0.0], "b": [-2.0, 0.0]}


def test_models_are_compared_on_the_pairs_that_both_have() -> None:
    one = pairs([1.0, 2.0, 3.0])
    one.sources[:] = ["d:1", "d:1", "d:2"]
    two = pairs([20.0, 10.0])
    two.sources[:] = ["d:2", "d:1"]
    a, b = calibration.aligned([one, two])
    assert a.margins.tolist() == [1.0, 3.0]
    assert b.margins.tolist() == [10.0, 20.0]
    assert a.sources == b.sources == ["d:1", "d:2"]


@pytest.fixture(scope="module")
def two_runs(tmp_path_factory: pytest.TempPathFactory):
    tmp = tmp_path_factory.mktemp("scores")
    made = []
    for seed in (1, 2):
        s = runs.settings(tmp, Reward, out=str(tmp / f"run-{seed}"), seed=seed, max_steps=12, learning_rate=3e-3)
        made.append(launch(s, display=QUIET).run)
    return tmp, made


def test_score_of_a_run_s_own_held_out_data_is_its_calibration(two_runs, tmp_path) -> None:
    tmp, (run, _) = two_runs
    held = {int(s.rpartition(":")[2]) for s in run.data["eval_sources"]}
    lines = (tmp / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "held.jsonl").write_text("".join(lines[i - 1] + "\n" for i in sorted(held)))
    found = run_score(
        [str(run.folder)], str(tmp_path / "held.jsonl"), out=None, trust=False, display=QUIET, console=console()
    )
    (described,) = found["models"].values()
    for name in ("accuracy", "log_loss"):
        assert described[name] == pytest.approx(run.calibration[name], rel=1e-4)
    assert described["n"] == run.calibration["n"]


def test_an_ensemble_says_where_its_members_part(two_runs, tmp_path) -> None:
    tmp, made = two_runs
    names = [str(run.folder) for run in made]
    out = tmp_path / "scores.jsonl"
    found = run_score(names, str(tmp / "pairs.jsonl"), out=out, trust=False, display=QUIET, console=console())
    assert list(found["models"]) == [*names, "their mean"]
    assert found["disagreement"]["std"] > 0
    rows = [json.loads(line) for line in out.read_text().splitlines()]
    assert len(rows) == 24
    assert rows[0]["source"].endswith("pairs.jsonl:1")
    asked = [json.loads(line) for line in (tmp / "pairs.jsonl").read_text().splitlines()]
    alone = RewardModel.load(names[0]).score([r["prompt"] for r in asked], [r["chosen"] for r in asked])
    assert [row["models"][names[0]][0] for row in rows] == pytest.approx(alone.tolist(), abs=1e-5)


def test_single_answers_are_scored_too(two_runs, tmp_path) -> None:
    _, (run, _) = two_runs
    plain = [{"prompt": "a dog?", "completion": "perro"}, {"prompt": "b", "completion": "pan"}]
    (tmp_path / "plain.jsonl").write_text("".join(json.dumps(r) + "\n" for r in plain))
    found = calibration.score_data(RewardModel.load(run.folder), tmp_path / "plain.jsonl")
    assert isinstance(found, calibration.AnswerScores)
    expected = RewardModel.load(run.folder).score(["a dog?", "b"], ["perro", "pan"])
    np.testing.assert_allclose(found.scores, expected, atol=1e-6)
    assert "auc" not in found.summary()
    (tmp_path / "judged.jsonl").write_text(
        "".join(json.dumps({**r, "label": i == 0}) + "\n" for i, r in enumerate(plain))
    )
    judged = calibration.score_data(RewardModel.load(run.folder), tmp_path / "judged.jsonl")
    assert isinstance(judged, calibration.AnswerScores)
    assert judged.summary()["auc"] == float(expected[0] > expected[1])
    assert [row["label"] for row in answer_rows({"m": judged})] == [True, False]


def test_what_cannot_be_scored_is_named(two_runs, tmp_path) -> None:
    tmp, (run, _) = two_runs
    (tmp_path / "asked.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(ValueError, match="nothing to score"):
        calibration.score_data(RewardModel.load(run.folder), tmp_path / "asked.jsonl")
    with pytest.raises(ModelError, match="named twice"):
        run_score([str(run.folder)] * 2, str(tmp), out=None, trust=False, display=QUIET, console=console())
