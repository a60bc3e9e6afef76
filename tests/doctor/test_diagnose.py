"""Each diagnosis is held against a run that shows it and against healthy runs that must not raise it."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.run import Run
from synthetic_runs import BOTH_FALL, FALLS, NOTHING, PERFECT, RUINED, SOUND, STUCK, make, to

SEEDS = range(5)


def keys(run: Run) -> list[str]:
    return [f.key for f in diagnose(run).findings]


@pytest.mark.parametrize("seed", SEEDS)
def test_a_healthy_run_raises_no_alarm(tmp_path: Path, seed: int) -> None:
    d = diagnose(make(tmp_path, seed))
    assert [f.key for f in d.findings] == ["learnt"]
    assert d.severity == "good"
    assert "never saw" in d.headline


@pytest.mark.parametrize("seed", SEEDS)
def test_both_fall_is_explained_and_is_no_alarm(tmp_path: Path, seed: int) -> None:
    d = diagnose(make(tmp_path, seed, train=BOTH_FALL))
    assert [f.key for f in d.findings] == ["learnt", "both_fall"]
    assert d.severity == "good"
    assert "normal" in d.findings[1].title
    assert len(d.findings[1].evidence) == 6  # three curves, held out and training


@pytest.mark.parametrize("seed", SEEDS)
def test_both_fall_far_is_a_warning(tmp_path: Path, seed: int) -> None:
    d = diagnose(make(tmp_path, seed, train=BOTH_FALL | {"logps/chosen": to(-240, -120)}))
    assert {"both_fall", "drift"} <= set(
        keys(make(tmp_path / "b", seed, train=BOTH_FALL | {"logps/chosen": to(-240, -120)}))
    )
    assert d.severity == "warning"
    assert "beta=0.3" in " ".join(d.findings[0].remedy)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_falling_pattern(tmp_path: Path, seed: int) -> None:
    d = diagnose(make(tmp_path, seed, train=FALLS))
    assert d.findings[0].key == "moved_away"
    assert d.severity == "bad"
    assert len(d.findings[0].evidence) == 8
    assert "learnt" not in d
    assert "learning_rate=1e-06" in d.findings[0].remedy[0]


def test_the_falling_pattern_names_what_fell(tmp_path: Path) -> None:
    flat, both = FALLS, FALLS | {"rewards/rejected": to(-0.4), "rewards/chosen": to(-0.9)}
    first = diagnose(make(tmp_path / "a", train=flat, spread=0.5))
    second = diagnose(make(tmp_path / "b", train=both, spread=0.5))
    assert "rejected ones stayed" in first.findings[0].meaning
    assert "rejected ones stayed" not in second.findings[0].meaning


@pytest.mark.parametrize("seed", SEEDS)
def test_held_out_falls_while_training_rises(tmp_path: Path, seed: int) -> None:
    d = diagnose(make(tmp_path, seed, held_out=FALLS))
    assert "not_carried_over" in d
    assert "moved_away" not in d
    assert d.severity == "bad"


def test_worse_than_a_coin_is_not_learning_by_heart(tmp_path: Path) -> None:
    """Training labels that are swapped: the held-out loss rises as with overfitting, but the ranking is reversed."""
    swapped = FALLS | {"rewards/accuracies": to(0.1, 0.5), "loss": to(1.6, math.log(2))}
    d = diagnose(make(tmp_path, held_out=swapped))
    assert d.findings[0].key == "not_carried_over"
    assert "overfit" not in d
    assert "less often than a coin" in d.findings[0].meaning
    assert "by heart, or" not in d.findings[0].meaning


def test_change_within_noise(tmp_path: Path) -> None:
    """Too few pairs to see a margin of 0.03: nearly always said so, and never praised (5% of noise looks like more)."""
    still = {"samples/score": to(0.5, 0.5)}
    seeds = range(20)
    found = [diagnose(make(tmp_path / str(s), s, train=NOTHING, pairs=60, answers=still, steps=20)) for s in seeds]
    noise = [d for d in found if "within_noise" in d]
    assert len(noise) >= 16
    assert {d.severity for d in noise} == {"warning"}
    assert not any("learnt" in d for d in noise)


def test_pairs_needed_by_hand(tmp_path: Path) -> None:
    """Margin 0.1 with half-width 0.2 on 50 pairs: (0.2/0.1 * 2.8/1.96)^2 * 50 = 408.2, rounded up to 410."""
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo"}
    for step, value, half in ((0, 0.0, 0.0), (10, 0.1, 0.2)):
        bounds = {"eval_rewards/margins_low": value - half, "eval_rewards/margins_high": value + half}
        run.log({"step": step, "eval_rewards/margins": value, "eval_rewards/margins_n": 50} | bounds)
    (finding,) = (f for f in diagnose(run).findings if f.key == "within_noise")
    assert "about 410 held-out pairs instead of 50" in finding.meaning


def test_pairs_needed_are_those_of_what_is_within_the_noise(tmp_path: Path) -> None:
    """Of five pairs the margin rose beyond the noise, and the accuracy did not: from 0.5 to 0.75 with half-width 0.4,
    (0.4/0.25 * 2.8/1.96)^2 * 5 = 26.1, rounded up to 27."""
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo"}
    for step, margin, accuracy, half in ((0, 0.0, 0.5, 0.0), (10, 4.0, 0.75, 0.4)):
        of = {"eval_rewards/margins": margin, "eval_rewards/accuracies": accuracy}
        bounds = {f"{key}_{end}": x + s * half for key, x in of.items() for end, s in (("low", -1), ("high", 1))}
        run.log({"step": step} | of | {f"{key}_n": 5 for key in of} | bounds)
    (finding,) = (f for f in diagnose(run).findings if f.key == "within_noise")
    assert "about 27 held-out pairs instead of 5" in finding.meaning
    assert "the accuracy could as well have shown no change" in finding.meaning
    assert "the margin moved" in finding.meaning


@pytest.mark.parametrize("seed", SEEDS)
def test_stuck_at_ln_2(tmp_path: Path, seed: int) -> None:
    # An adapter that hardly moves: rewards, and their spread, stay near zero.
    d = diagnose(make(tmp_path, seed, train=STUCK, spread=0.02))
    assert "stuck" in d
    assert not {"within_noise", "learnt"} & {f.key for f in d.findings}
    assert "learning_rate=1e-04" in d.findings[0].remedy[-1]


def test_contradicting_labels_are_not_stuck(tmp_path: Path) -> None:
    """A small mean margin of margins that are large each: a higher learning rate is no remedy."""
    moved = STUCK | {"rewards/margins": to(0.015), "rewards/accuracies": to(0.65, 0.5)}
    d = diagnose(make(tmp_path, train=moved, spread=0.06))
    assert "stuck" not in d
    assert not any("learning_rate" in r for f in d.findings for r in f.remedy)


@pytest.mark.parametrize("seed", SEEDS)
def test_destroyed_with_perfect_curves(tmp_path: Path, seed: int) -> None:
    d = diagnose(make(tmp_path, seed, train=PERFECT, answers=RUINED))
    assert d.findings[0].key == "degenerate"
    assert d.severity == "bad"
    assert "while the curves look fine" in d.headline
    assert "learnt" not in d
    assert "no longer end" in d.findings[0].meaning


@pytest.mark.parametrize("signal", ["samples/eos_rate", "samples/repetition", "samples/ref_logp"])
def test_one_signal_alone_is_enough(tmp_path: Path, signal: str) -> None:
    assert "degenerate" in keys(make(tmp_path, answers={signal: RUINED[signal]}))


def test_destroyed_shows_even_where_intervals_are_missing(tmp_path: Path) -> None:
    run = make(tmp_path / "a", train=PERFECT, answers=RUINED)
    bare = Run.create(tmp_path / "b")
    bare.recipe = run.recipe
    for row in run.metrics:
        bare.log({k: v for k, v in row.items() if not k.endswith(("_low", "_high", "_n"))})
    assert "degenerate" in keys(bare)


@pytest.mark.parametrize("seed", SEEDS)
def test_overfit(tmp_path: Path, seed: int) -> None:
    def u(t: float) -> float:
        return 0.69 - 0.6 * t if t < 0.3 else 0.51 + 0.7 * (t - 0.3)

    d = diagnose(make(tmp_path, seed, train={"loss": to(0.1, 0.69)}, held_out={"loss": u}))
    (finding,) = (f for f in d.findings if f.key == "overfit")
    assert "step 30" in finding.title or "step 20" in finding.title or "step 40" in finding.title
    assert "early_stopping_patience" in finding.remedy[0]


@pytest.mark.parametrize("seed", SEEDS)
def test_right_order_by_a_hair(tmp_path: Path, seed: int) -> None:
    tiny = {"rewards/margins": to(0.06), "rewards/accuracies": to(0.95, 0.5)}
    assert "barely" in keys(make(tmp_path, seed, train=tiny, pairs=5000))


def test_words_going_wrong_are_worth_a_look(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, answers={"samples/ref_logp": to(-1.0, -0.3)}))
    assert [f.key for f in d.findings] == ["drift", "learnt"]
    assert "less naturally" in d.findings[0].meaning


def test_words_going_wrong_in_a_few_answers(tmp_path: Path) -> None:
    """A fall of 0.7 nats, measured to 0.7 either way: beyond the noise, and large enough to matter. One of 0.2 is not,
    however well it is measured, nor one of 0.4 that is within its noise."""

    def said(name: str, end: float, deviation: float) -> bool:
        sound = SOUND | {"samples/ref_logp": (to(end, -0.1), deviation)}
        return "drift" in diagnose(make(tmp_path / name, 1, sound=sound, prompts=24))

    assert said("fell", -1.0, 1.2)
    assert not said("a little", -0.3, 0.1)
    assert not said("noise", -0.5, 3.0)


@pytest.mark.parametrize(("limit", "setting", "value"), [(6, "max_new_tokens", 128), (256, "", None)])
def test_a_limit_that_answers_run_into(tmp_path: Path, limit: int, setting: str, value: int | None) -> None:
    """Below what the method takes by itself, that is the limit to write."""
    cut = {"samples/eos_rate": to(0.1, 0.1)}
    d = diagnose(make(tmp_path, answers=cut, recipe={"max_new_tokens": limit}))
    (finding,) = (f for f in d.findings if f.key == "never_end")
    assert (finding.remedies[0].setting, finding.remedies[0].value) == (setting, value)


def test_answers_that_never_end(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, answers={"samples/eos_rate": to(0.05, 0.05)}))
    assert "never_end" in d
    assert "degenerate" not in d
    assert d.headline.endswith("But: most answers never end by themselves.")


def test_longer_answers(tmp_path: Path) -> None:
    assert "longer" in keys(make(tmp_path, answers={"samples/length": to(140, 60)}))


def test_the_judge_disagrees(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, answers={"samples/score": to(0.2, 0.7)}))
    assert "worse_score" in d
    assert "But: the judge" in d.headline


def test_gradient_spikes(tmp_path: Path) -> None:
    run = make(tmp_path)
    rows = run.metrics
    for step in (30, 50, 70):
        rows[step]["grad_norm"] = 40.0
    (tmp_path / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    (finding,) = (f for f in diagnose(run).findings if f.key == "spikes")
    assert "30, 50, 70" in finding.evidence[0]


def test_guard(tmp_path: Path) -> None:
    reason = "guard: 62% of the answers no longer end (3% at the start)"
    stop = {"kind": "degenerate", "text": reason}
    d = diagnose(make(tmp_path, status={"state": "stopped", "step": 31, "reason": reason, "stop": stop}))
    assert d.findings[0].key == "guard"
    assert "step 31" in d.headline
    assert d.findings[0].evidence == (reason,)


def test_stopped_by_hand_is_no_alarm(tmp_path: Path) -> None:
    stop = {"kind": "interrupted", "text": "interrupted"}
    d = diagnose(make(tmp_path, status={"state": "stopped", "step": 31, "reason": "interrupted", "stop": stop}))
    assert [f.key for f in d.findings] == ["learnt", "stopped"]


def test_failed(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, status={"state": "failed", "step": 12, "reason": "loss is nan in batch 12"}))
    assert d.headline == "The run failed at step 12 of 100."
    assert d.findings[0].evidence == ("loss is nan in batch 12",)


def test_still_running(tmp_path: Path) -> None:
    assert "unfinished" in keys(make(tmp_path, status={"state": "running", "step": 31}))


def test_no_rows(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo"}
    d = diagnose(run)
    assert (d.headline, d.severity) == ("Nothing has been measured yet.", "info")


def test_only_step_0(tmp_path: Path) -> None:
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo"}
    run.log({"step": 0, "loss": 0.6931, "eval_loss": 0.6931, "eval_rewards/margins": 0.0})
    assert diagnose(run).severity == "info"


def test_no_evaluation_says_so(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, drop=("eval_", "samples/")))
    assert "training comparisons" in d.headline
    assert d.severity == "info"
    (finding,) = (f for f in d.findings if f.key == "unmeasured")
    assert "held-out" in finding.meaning
    assert "sampled" in finding.meaning


@pytest.mark.parametrize("loss_type", ["simpo", "orpo", "cpo"])
def test_reference_free_losses(tmp_path: Path, loss_type: str) -> None:
    beta = 2.0 if loss_type == "simpo" else 0.1
    run = make(tmp_path, drop=("samples/kl",), recipe={"loss_type": loss_type, "beta": beta})
    assert keys(run) == ["learnt"]


def sft(folder: Path, seed: int, final: float, held_out: float) -> Run:
    return make(
        folder,
        seed,
        train={"loss": to(final, 2.4), "mean_token_accuracy": to(0.7, 0.4)},
        held_out={"loss": to(held_out, 2.4), "mean_token_accuracy": to(0.65, 0.4)},
        drop=("rewards", "logps", "eval_rewards", "eval_logps"),
        recipe={"method": "sft", "loss_type": None, "beta": None},
    )


@pytest.mark.parametrize("seed", SEEDS)
def test_sft(tmp_path: Path, seed: int) -> None:
    good, noise = diagnose(sft(tmp_path / "a", seed, 1.5, 1.6)), diagnose(sft(tmp_path / "b", seed, 2.39, 2.4))
    assert [(f.key, f.said_as) for f in good.findings] == [("learnt", "learnt_examples")]
    assert "answers it never saw" in good.headline
    assert "learnt" not in noise or noise.severity == "good"  # 5% of noise passes for learning
    settings = " ".join(r for f in noise.findings for r in f.remedy)
    assert "beta" not in settings


def test_unpaired_losses_have_a_margin_between_groups(tmp_path: Path) -> None:
    """Without a pair's margin its interval is that of a difference of means: sqrt(0.3^2 + 0.4^2) = 0.5."""
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo", "loss_type": "kto"}
    for step, chosen, rejected in ((0, 0.0, 0.0), (10, 0.6, -0.2)):
        row: dict[str, float] = {"step": step, "eval_rewards/margins": chosen - rejected}
        for key, value, half in (("chosen", chosen, 0.3), ("rejected", rejected, 0.4)):
            half *= step > 0
            row |= {f"eval_rewards/{key}": value, f"eval_rewards/{key}_n": 50}
            row |= {f"eval_rewards/{key}_low": value - half, f"eval_rewards/{key}_high": value + half}
        run.log(row)
    (finding,) = (f for f in diagnose(run).findings if f.key == "learnt")
    assert finding.evidence[0] == "margin on held-out data: 0.00 → 0.80 (0.30 to 1.30), 50 measured"


def test_training_rows_with_intervals_are_still_different_examples(tmp_path: Path) -> None:
    """Rows of a margin that scatters about 0 by far more than each claims: nothing was learnt."""
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo"}
    for step in range(40):
        value = (-1) ** step * 0.5 + (0.2 if step > 35 else 0)
        bounds = {"rewards/margins_low": value - 0.01, "rewards/margins_high": value + 0.01, "rewards/margins_n": 32}
        run.log({"step": step, "rewards/margins": value} | bounds)
    assert "learnt" not in keys(run)


def test_noise_rarely_passes_for_learning(tmp_path: Path) -> None:
    """A run without any effect: at most a few of 40 may claim one (2.5% are expected)."""
    flat = NOTHING | {
        "rewards/margins": to(0.0),
        "rewards/accuracies": to(0.5, 0.5),
        "loss": to(math.log(2), math.log(2)),
    }
    still = {"samples/score": to(0.5, 0.5)}
    found = [diagnose(make(tmp_path / str(s), s, train=flat, answers=still, steps=20)) for s in range(40)]
    assert sum(d.severity in ("good", "bad") for d in found) <= 4


def test_one_noisy_row_decides_nothing(tmp_path: Path) -> None:
    """The last training row of a run without evaluation is wild: the verdict is the same."""
    run = make(tmp_path / "a", drop=("eval_", "samples/"))
    before: Diagnosis = diagnose(run)
    run.log({"step": 101, "rewards/margins": -9.0, "rewards/accuracies": 0.0, "loss": 9.0, "rewards/chosen": -9.0})
    assert [f.key for f in diagnose(run).findings] == [f.key for f in before.findings]
