"""Causes before symptoms: remedies name the setting that is farthest off, and no page praises a fault."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from prefiere.doctor.case import Case
from prefiere.doctor.diagnose import Diagnosis, diagnose
from prefiere.doctor.dials import readings
from prefiere.doctor.prescribe import prescribe
from prefiere.doctor.rules.start import before_run, first_row
from prefiere.doctor.standstill import still
from prefiere.run import Run
from prefiere.settings import DPO
from synthetic_runs import (
    BOTH_FALL,
    PERFECT,
    RUINED,
    STUCK,
    beginning,
    make,
    make_policy,
    make_reward,
    sound_calibration,
    to,
)


def planned(run: Run, automatic: float = 1e-5, **data: Any) -> Run:
    """A run whose plan says what "auto" comes to, with an account of its data."""
    run.environment = {"plan": {"automatic": {"learning_rate": automatic}}}
    run.data = data
    return run


def moved(run: Run, share: float) -> Run:
    """A run whose last row says how far its weights moved."""
    run.log({**run.metrics[-1], "step": run.metrics[-1]["step"] + 1, "weights/moved": share})
    return run


def keys(run: Run) -> list[str]:
    return [f.key for f in diagnose(run).findings]


def told(d: Diagnosis, key: str) -> Any:
    return next(f for f in d.findings if f.key == key)


# -- dials ------------------------------------------------------------------------------------------------------------


def test_the_farthest_setting_stands_first() -> None:
    """beta=20 is 200 times 0.1, where ten times is sound: log 200 / log 10 = 2.30; rate 4e-5: log 4 / log 5 = 0.86."""
    recipe = {"method": "dpo", "beta": 20.0, "learning_rate": 4e-5, "max_grad_norm": None}
    first, second, third = readings(recipe, {"learning_rate": 1e-5})
    assert first.dial.name == "max_grad_norm"
    assert (second.dial.name, round(second.farness, 2), second.odd, second.push) == ("beta", 2.3, True, -1)
    assert (third.dial.name, round(third.farness, 2), third.odd) == ("learning_rate", 0.86, False)
    assert readings({"method": "dpo", "learning_rate": "auto"}, {"learning_rate": 1e-5}) == ()


@pytest.mark.parametrize(
    ("recipe", "odd"),
    [
        ({"method": "ppo", "kl_coef": 0.0, "kl_loss_coef": 0.05}, {}),
        ({"method": "grpo", "kl_coef": 0.05, "kl_loss_coef": 0.0}, {}),
        ({"method": "ppo", "kl_coef": 0.05, "kl_loss_coef": 0.05}, {}),
        ({"method": "ppo", "kl_coef": 0.0, "kl_loss_coef": 5.0}, {"kl_loss_coef": 2.0}),
        ({"method": "ppo", "kl_coef": 0.0, "kl_loss_coef": 0.0}, {"kl_coef": -1.25}),
        ({"method": "grpo", "kl_coef": 0.0, "kl_loss_coef": 0.0}, {"kl_loss_coef": -1.25}),
        ({"method": "dpo", "num_train_epochs": 200.0, "max_steps": 100}, {}),
        ({"method": "dpo", "num_train_epochs": 25.0, "max_steps": None}, {"num_train_epochs": 2.0}),
    ],
)
def test_a_setting_that_another_one_replaces_is_not_read(recipe: dict[str, Any], odd: dict[str, float]) -> None:
    """5 is 100 times the usual price, where ten times is sound, and 25 epochs are 5 squared: both are 2 in logs."""
    found = {r.dial.name: r.farness for r in readings(recipe, {}) if r.odd}
    assert found == pytest.approx(odd)


@pytest.mark.parametrize(
    ("recipe", "steps", "odd"),
    [
        ({"method": "dpo", "warmup_steps": 0.1}, 20, {}),
        ({"method": "dpo", "warmup_steps": 10}, 20, {}),  # half of them: the end of what is sound
        ({"method": "dpo", "warmup_steps": 10}, None, {}),  # of how many?
        ({"method": "dpo", "warmup_steps": 50}, 20, {"warmup_steps": 2.0}),  # 2.5 is 25 times 0.1, and 5 times sound
        ({"method": "dpo", "warmup_steps": 1}, 1, {}),
        ({"method": "dpo", "warmup_steps": [3], "lora_dropout": {}, "beta": 10**400, "weight_decay": True}, 9, {}),
        ({"method": "dpo", "warmup_steps": 0.9}, None, {"warmup_steps": 1.365}),
        ({"method": "ppo", "critic_warmup_steps": 16}, 16, {"critic_warmup_steps": 2.0}),
        ({"method": "ppo", "critic_warmup_steps": 5}, 16, {}),
        ({"method": "dpo", "lora_alpha": 32e4, "lora": True}, 16, {"lora_alpha": 4.0}),
        ({"method": "dpo", "lora_alpha": 32e4, "lora": False}, 16, {}),
    ],
)
def test_what_a_setting_amounts_to(recipe: dict[str, Any], steps: int | None, odd: dict[str, float]) -> None:
    found = {r.dial.name: round(r.farness, 3) for r in readings(recipe, {}, steps) if r.odd}
    assert found == odd


@pytest.mark.parametrize(
    ("name", "value", "usual", "making"),
    [
        ("warmup_steps", 1000, "warmup_steps=0.1", make),
        ("warmup_steps", 0.95, "warmup_steps=0.1", make),
        ("lora_dropout", 0.9, "lora_dropout=0", make),
        ("max_grad_norm", 1e-4, "max_grad_norm=1", make),
        ("critic_warmup_steps", 100, "critic_warmup_steps=0", make_policy),
        ("critic_learning_rate", 1e-9, "critic_learning_rate=auto", make_policy),
        ("temperature", 0.01, "temperature=1", make_policy),
    ],
)
def test_each_setting_that_holds_a_run_back_is_named_with_its_value(
    tmp_path: Path, name: str, value: float, usual: str, making: Any
) -> None:
    """The rate is the automatic one, and is not blamed."""
    still = {"samples/reward": to(0.1, 0.1), "samples/score": to(0.5, 0.5), "samples/kl": to(0.01)}
    course = {"answers": still} if making is make_policy else {"train": STUCK, "spread": 0.02}
    run = planned(making(tmp_path, recipe={name: value}, **course))
    run.environment = {"plan": {"automatic": {"learning_rate": 1e-5, "critic_learning_rate": 5e-5}}}
    d = diagnose(run)
    assert d.findings[0].about == name
    assert d.findings[0].cause
    assert d.findings[0].remedy[0].split(",")[0] == usual
    assert not any("learning_rate" in r and "critic" not in r for f in d.findings for r in f.remedy)
    assert "inf" not in str(d.to_dict()).replace("info", "")


@pytest.mark.parametrize(("plan", "odd"), [({"adapter": None}, False), ({"adapter": "new"}, True), ({}, True)])
def test_settings_of_an_adapter_that_auto_did_not_choose_are_not_read(
    tmp_path: Path, plan: dict[str, Any], odd: bool
) -> None:
    run = make(tmp_path, recipe={"lora": "auto", "lora_alpha": 32e4})
    run.environment = {"plan": plan | {"automatic": {"learning_rate": 1e-5}}}
    assert ("lora_alpha" in {d.dial.name for d in Case(run).dials if d.odd}) is odd


def test_a_kl_that_costs_nothing_is_no_fault_without_harm(tmp_path: Path) -> None:
    once = {"kl_coef": 0.0, "kl_loss_coef": 0.05}
    assert "unusual_setting" not in keys(planned(make_policy(tmp_path / "a", recipe=once)))
    free = {"kl_coef": 0.0, "kl_loss_coef": 0.0}
    finding = told(diagnose(planned(make_policy(tmp_path / "b", recipe=free))), "unusual_setting")
    assert (finding.severity, finding.remedy[0].split(",")[0]) == ("info", "kl_coef=0.05")
    harmed = diagnose(planned(make_policy(tmp_path / "c", answers={"samples/score": to(0.3, 0.5)}, recipe=free)))
    assert (harmed.findings[0].about, harmed.severity) == ("kl_coef", "bad")


@pytest.mark.parametrize("seed", range(6))
def test_few_held_out_pairs_do_not_say_that_nothing_was_learnt(tmp_path: Path, seed: int) -> None:
    """At 65% right the interval of 24 pairs is 47% to 83%: it holds one half, and says nothing of the epochs."""
    right = {"rewards/accuracies": to(0.65, 0.5), "rewards/margins": to(0.6)}
    d = diagnose(planned(make(tmp_path, seed, train=right, pairs=24, recipe={"num_train_epochs": 6.0})))
    assert d.severity != "bad"
    assert told(d, "unusual_setting").about == "num_train_epochs"


def test_a_setting_under_which_nothing_was_learnt(tmp_path: Path) -> None:
    """The interval of 300 pairs at 50% is 45% to 55%; the page says that, and no more."""
    flat = {"rewards/accuracies": to(0.5, 0.5), "rewards/margins": to(0.0), "loss": to(math.log(2), math.log(2))}
    d = diagnose(planned(make(tmp_path, held_out=flat, recipe={"num_train_epochs": 6.0})))
    finding = told(d, "setting_too_high")
    assert (finding.about, finding.severity) == ("num_train_epochs", "bad")
    assert "no better than by a coin" in finding.meaning
    assert "loses what it knew" not in finding.meaning
    assert any("held-out" in line for line in finding.evidence)


@pytest.mark.parametrize(
    ("answers", "severity"),
    [
        ({"samples/reward": to(0.1, 0.1), "samples/score": to(0.5, 0.5), "samples/kl": to(0.01)}, "warning"),
        ({"samples/score": to(0.3, 0.5)}, "bad"),
    ],
)
def test_answers_drawn_too_hot_are_named_whatever_came_of_them(
    tmp_path: Path, answers: dict[str, Any], severity: str
) -> None:
    """They are noise: nothing may come of it, or harm. The usual temperature is prescribed in either case."""
    flat = {"reward": to(0.1, 0.1), "policy/approxkl_avg": to(8e-4, 8e-4)}
    d = diagnose(planned(make_policy(tmp_path, rollouts=flat, answers=answers, recipe={"temperature": 5.0})))
    assert (d.findings[0].about, d.findings[0].severity) == ("temperature", severity)
    assert {p.remedy.setting: p.remedy.value for p in prescribe(d)} == {"temperature": 1.0}


def test_a_cold_temperature_is_not_blamed_for_harm_that_a_rate_did(tmp_path: Path) -> None:
    """Too cold a policy tries nothing new; it does not run away. Of one setting the page speaks once."""
    ruined = {"samples/score": to(0.1, 0.5), "samples/kl": to(60.0)}
    cold = {"temperature": 0.3, "learning_rate": 1e-4}
    d = diagnose(planned(make_policy(tmp_path, answers=ruined, recipe=cold)))
    assert (d.findings[0].key, d.findings[0].about) == ("rate_too_high", "learning_rate")
    assert "temperature" not in {f.about for f in d.findings if f.severity == "bad"}


def test_a_setting_that_may_do_either_is_named_once(tmp_path: Path) -> None:
    flat = {"rewards/accuracies": to(0.5, 0.5), "rewards/margins": to(0.0), "loss": to(math.log(2), math.log(2))}
    d = diagnose(planned(make_reward(tmp_path, held_out=flat, recipe={"center_rewards_coefficient": 50.0})))
    assert [(f.key, f.severity) for f in d.findings if f.about == "center_rewards_coefficient"] == [
        ("setting_too_high", "bad")
    ]


# -- 1: the rate is blamed only where it is off -----------------------------------------------------------------------


def test_a_standstill_with_a_sound_rate_is_not_the_rates_fault(tmp_path: Path) -> None:
    run = moved(planned(make(tmp_path, train=STUCK, spread=0.02)), 0.008)
    d = diagnose(run)
    assert not any("learning_rate" in r for f in d.findings for r in f.remedy)
    assert d.severity != "good"


@pytest.mark.parametrize("setting", [{"beta": 20.0}, {"learning_rate": 1e-8}, {"label_smoothing": 0.45}])
def test_a_standstill_names_the_setting_that_holds_it_back(tmp_path: Path, setting: dict[str, Any]) -> None:
    d = diagnose(planned(make(tmp_path, train=STUCK, spread=0.02, recipe=setting)))
    (name,) = setting
    assert d.findings[0].about == name
    assert d.findings[0].cause
    usual = {"beta": "beta=0.1", "learning_rate": "learning_rate=auto", "label_smoothing": "label_smoothing=0"}[name]
    assert d.findings[0].remedy[0].startswith(usual)


def test_a_flat_policy_whose_price_is_too_high(tmp_path: Path) -> None:
    flat = {"rollouts": {"reward": to(0.1, 0.1), "policy/approxkl_avg": to(8e-4, 8e-4)}}
    still = {"samples/reward": to(0.1, 0.1), "samples/score": to(0.5, 0.5), "samples/kl": to(0.01)}
    d = diagnose(planned(make_policy(tmp_path, **flat, answers=still, recipe={"kl_coef": 20.0})))
    assert d.findings[0].about == "kl_coef"
    assert "kl_coef=0.05" in d.findings[0].remedy[0]
    assert not any("learning_rate" in r for f in d.findings for r in f.remedy)


# -- 2, 3, 4, 5: no green on too little, on what was trained on, on one side, on a broken start -----------------------


def test_four_held_out_pairs_are_no_praise(tmp_path: Path) -> None:
    strong = {"rewards/accuracies": lambda t: 0.5 if t == 0 else 1.0, "rewards/margins": to(6.0)}
    d = diagnose(make(tmp_path, train=strong, pairs=4))
    assert "few_held_out" in d
    assert d.severity == "warning"
    assert "learnt" not in d or told(d, "learnt").severity == "info"


@pytest.mark.parametrize(
    ("examples", "recipe", "size"),
    [
        ({"train": 90, "eval": 10}, {"eval_size": 0.1}, 25),
        ({"train": 1990, "eval": 10}, {"eval_size": 10}, 100),
        ({"train": 36, "eval": 4}, {"eval_size": 0.1}, None),
        ({"train": 900, "eval": 4}, {"eval_data": "held.jsonl"}, None),
        ({"train": "many"}, {}, None),
    ],
)
def test_how_to_keep_enough_aside(
    tmp_path: Path, examples: dict[str, Any], recipe: dict[str, Any], size: int | None
) -> None:
    """What is advised is another size than the run had, and one that its data allows."""
    run = planned(make(tmp_path, pairs=4, recipe=recipe), examples=examples)
    (remedy,) = told(diagnose(run), "few_held_out").remedies
    assert (remedy.setting, remedy.value) == (("eval_size", size) if size else ("", None))
    changed = {c.remedy.setting: c.remedy.value for c in prescribe(diagnose(run))}
    assert changed == ({"eval_size": size} if size else {})


@pytest.mark.parametrize(
    ("beta", "margin", "stayed"), [(0.1, 0.012, True), (0.001, 0.012, False), (0.001, 1e-4, True), (5.0, 0.03, False)]
)
def test_a_small_beta_makes_small_margins_of_a_model_that_moved(
    tmp_path: Path, beta: float, margin: float, stayed: bool
) -> None:
    """A margin is beta times the change of the log-probs: 0.012 is 0.12 of them, or 12."""
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo", "beta": beta}
    for step, value in ((0, 0.0), (10, margin)):
        bounds = {f"eval_rewards/margins_{end}": value for end in ("low", "high")}
        run.log({"step": step, "eval_rewards/margins": value, "eval_rewards/margins_n": 100} | bounds)
    assert still(Case(run)) is stayed


def test_that_a_change_may_be_chance_is_no_comfort_beside_a_ruin(tmp_path: Path) -> None:
    noisy = {"train": {"rewards/accuracies": to(0.55, 0.5), "rewards/margins": to(0.01)}, "pairs": 60}
    sound = diagnose(make(tmp_path / "a", **noisy))
    assert "within_noise" in sound
    assert told(sound, "within_noise").severity == "warning"
    apart = {"samples/ref_logp": to(-6.0, -1.0), "samples/repetition": to(0.9, 0.02), "samples/kl": to(300.0)}
    ruined = diagnose(make(tmp_path / "b", answers=apart, **noisy))
    assert ruined.severity == "bad"
    assert "within_noise" not in ruined


def test_what_was_trained_on_is_no_other_task(tmp_path: Path) -> None:
    apart = {"right": 0.97, "low": 0.95, "high": 1.0, "n": 200, "alike": 0.0}
    assert "another_task" in diagnose(planned(make(tmp_path / "a"), apart=apart))
    known = {"examples": 101, "of": 101, "sources": []}
    both = diagnose(planned(make(tmp_path / "b"), apart=apart, known_answers=known))
    assert "known_answers" in both
    assert "another_task" not in both


def test_an_accuracy_that_holds_a_coin_is_no_praise(tmp_path: Path) -> None:
    """The margin rises beyond its noise, and 52% of 300 pairs do not."""
    d = diagnose(make(tmp_path, train={"rewards/accuracies": to(0.52, 0.5), "rewards/margins": to(0.4)}))
    assert d.severity != "good"
    assert "learnt" not in d


def test_held_out_answers_that_stand_in_training_are_no_praise(tmp_path: Path) -> None:
    d = diagnose(planned(make(tmp_path), known_answers={"examples": 101, "of": 101}))
    assert d.severity == "warning"
    assert "100% of the held-out examples were trained on" in d.headline
    assert told(d, "learnt").severity == "info"
    assert "never saw" not in str(told(d, "learnt"))
    assert diagnose(planned(make(tmp_path / "b"), known_answers={"examples": 3, "of": 101})).severity == "good"
    some = {"examples": 2, "of": 9, "sources": ["held.jsonl:1", "held.jsonl:4"]}
    d = diagnose(planned(make(tmp_path / "c"), known_answers=some))
    assert told(d, "known_answers").lines == ("held.jsonl:1", "held.jsonl:4")


def test_one_side_alone_is_no_margin(tmp_path: Path) -> None:
    """KTO without a bad answer held out: the reward of the good ones is not a margin."""
    run = Run.create(tmp_path)
    run.recipe = {"method": "dpo", "loss_type": "kto"}
    for step, chosen in ((0, 0.0), (10, 0.6)):
        bounds = {"eval_rewards/chosen_low": chosen - 0.1, "eval_rewards/chosen_high": chosen + 0.1}
        run.log({"step": step, "eval_rewards/chosen": chosen, "eval_rewards/chosen_n": 50} | bounds)
    run.data = {
        "train": {"audit": {"faults": {"records": 60, "desirable": {"count": 59}, "undesirable": {"count": 1}}}}
    }
    d = diagnose(run)
    assert "learnt" not in d
    assert told(d, "one_sided").cause


@pytest.mark.parametrize(
    ("good", "bad", "weights", "said", "set_to"),
    [
        (200, 200, (1.0, 1.0), None, None),
        (200, 200, (1000.0, 1.0), "lopsided", ("desirable_weight", 1.0)),
        (200, 200, (1.0, 40.0), "lopsided", ("undesirable_weight", 1.0)),
        (300, 100, (0.0, 1.0), "lopsided", ("desirable_weight", 0.33)),
        (300, 100, (0.5, 0.0), "lopsided", ("undesirable_weight", 1.5)),
        (300, 100, (0.0, 0.0), None, None),  # nothing weighs anything: there is no heavier side
        (200, 200, (10.0, 1.0), None, None),
        (380, 12, (1.0, 1.0), "one_sided", None),
        (380, 12, (1.0, 31.0), None, None),  # as the remedy has it
        (380, 4, (1.0, 95.0), "one_sided", None),  # four answers are no more by weighing more
        (380, 12, (1.0, 1e5), "one_sided", None),
        (380, 12, ("x", 31.0), "one_sided", None),  # a recipe that a stranger wrote
    ],
)
def test_what_each_kind_of_single_answers_weighs(
    tmp_path: Path, good: int, bad: int, weights: tuple[Any, Any], said: str | None, set_to: Any
) -> None:
    """Number times weight, of which either kind has a twentieth at least."""
    names = ("desirable_weight", "undesirable_weight")
    run = planned(make(tmp_path, recipe={"loss_type": "kto"} | dict(zip(names, weights, strict=True))))
    run.data = faulty(pairs=0, desirable={"count": good}, undesirable={"count": bad})
    found = {f.key: f for f in diagnose(run).findings}
    assert [k for k in ("one_sided", "lopsided") if k in found] == ([said] if said else [])
    if set_to is not None:
        remedy = found["lopsided"].remedies[0]
        assert (remedy.setting, remedy.value) == set_to


@pytest.mark.parametrize(("loss", "said"), [("kto", True), ("sigmoid", False)])
def test_of_pairs_each_kind_is_half_and_only_kto_weighs_them(tmp_path: Path, loss: str, said: bool) -> None:
    run = planned(make(tmp_path, recipe={"loss_type": loss, "desirable_weight": 50.0, "undesirable_weight": 1.0}))
    run.data = faulty()
    assert ("lopsided" in keys(run)) is said


def test_a_remedy_names_the_setting_that_decided(tmp_path: Path) -> None:
    """Few prompts because sample_prompts says so; held out by eval_size, and not from a file of its own."""
    few = make_policy(tmp_path / "a", recipe={"sample_prompts": 12, "eval_size": 60}, prompts=12)
    assert told(diagnose(few), "few_held_out").remedies[0].setting == "sample_prompts"
    assert "eval_size" in told(diagnose(make(tmp_path / "b", pairs=12)), "few_held_out").remedy[0]
    for name, recipe, said in (("c", {"eval_data": "held.jsonl"}, True), ("d", {"eval_size": 60}, False)):
        run = planned(make(tmp_path / name, recipe=recipe), known_answers={"examples": 101, "of": 101})
        assert any("instead of eval_data" in r for r in told(diagnose(run), "known_answers").remedy) is said


@pytest.mark.parametrize(("by", "said_as"), [(make, ""), (make_reward, ""), (make_policy, "learnt_reward")])
def test_what_was_learnt_from_is_said(tmp_path: Path, by: Any, said_as: str) -> None:
    """People preferred nothing where there were examples alone, or a function."""
    assert told(diagnose(by(tmp_path)), "learnt").said_as == said_as


@pytest.mark.parametrize(
    ("cause", "symptom"), [("one_prompt", "repeated"), ("repeated", "shortcut_word")], ids=lambda k: str(k)
)
def test_what_repeats_explains_what_it_gives_away(tmp_path: Path, cause: str, symptom: str) -> None:
    run = planned(make(tmp_path))
    data = faulty(shortcut={"word": "indeed", "side": "chosen", "pairs": 300, "of": 302, "low": 0.97})
    counted = data["train"]["audit"]
    counted["duplicates"] = 400
    if cause == "one_prompt":
        counted["faults"]["same_text"] = {"prompt": {"count": 480, "text": "nan"}}
    run.data = data
    found = keys(run)
    assert cause in found
    assert symptom not in found


def test_a_broken_start_is_no_praise(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, answers={"samples/repetition": to(0.5, 0.5)}))
    assert "start_broken" in d
    assert d.severity == "warning"


# -- 6: a stop by the guard names the setting -------------------------------------------------------------------------


@pytest.mark.parametrize("setting", [{"learning_rate": 3e-3}, {"max_grad_norm": None}, {"beta": 0.001}])
def test_a_guards_stop_names_the_setting_that_pushed(tmp_path: Path, setting: dict[str, Any]) -> None:
    stop = {"kind": "degenerate", "text": "guard: 62% of the answers no longer end"}
    status = {"state": "stopped", "step": 31, "reason": stop["text"], "stop": stop}
    d = diagnose(planned(make(tmp_path, train=PERFECT, answers=RUINED, status=status, recipe=setting)))
    (name,) = setting
    assert d.findings[0].about == name
    wanted = {"learning_rate": "learning_rate=auto", "max_grad_norm": "max_grad_norm=1", "beta": "beta=0.1"}[name]
    assert all(f.remedy[0].startswith(wanted) for f in d.findings if f.severity == "bad")


@pytest.mark.parametrize("loss", [{}, {"loss_type": "simpo", "beta": 2.0}])
def test_harm_within_the_sound_range_names_the_rate_where_it_is_above_the_automatic_one(
    tmp_path: Path, loss: dict[str, Any]
) -> None:
    """At twice the automatic rate nothing is odd, yet less of it comes first; about the automatic one, three tenths of
    what was used."""
    gone = {"state": "stopped", "stop": {"kind": "degenerate", "text": "guard: 1.1 nats less likely"}}

    def first(name: str, rate: float) -> str:
        run = planned(make(tmp_path / name, status=gone, recipe={"learning_rate": rate, **loss}))
        run.log({**run.metrics[-1], "step": run.metrics[-1]["step"] + 1, "learning_rate": rate})
        return next(r.text for r in told(diagnose(run), "guard").remedies if r.setting == "learning_rate")

    assert first("twice", 2e-5).startswith("learning_rate=auto")
    assert first("usual", 1e-5) == "learning_rate=3e-06"
    run = planned(make(tmp_path / "b", status=gone, recipe={"learning_rate": 2e-5, **loss}))
    assert told(diagnose(run), "guard").remedies[0].setting == "learning_rate"


# -- 7: the account of the data is read -------------------------------------------------------------------------------


def faulty(**faults: Any) -> dict[str, Any]:
    return {"train": {"audit": {"records": 500, "faults": {"records": 500, "pairs": 500, **faults}}}}


@pytest.mark.parametrize(
    ("key", "faults"),
    [
        ("template_in_text", {"markup": {"count": 480, "sources": ["a:1"]}}),
        ("damaged_text", {"damaged": {"count": 100, "sources": ["a:1"]}}),
        ("one_text", {"same_text": {"chosen": {"count": 150, "text": "I cannot help."}}}),
        ("shortcut_word", {"shortcut": {"word": "indeed", "side": "chosen", "pairs": 300, "of": 302, "low": 0.97}}),
        ("same_words", {"nearly_same": {"count": 90, "sources": []}}),
    ],
)
def test_what_the_texts_show_is_said(tmp_path: Path, key: str, faults: dict[str, Any]) -> None:
    d = diagnose(planned(make(tmp_path), **faulty(**faults)))
    assert told(d, key).cause
    assert d.severity in ("warning", "bad")


def test_a_few_faults_in_the_texts_are_none(tmp_path: Path) -> None:
    few = {"markup": {"count": 10}, "damaged": {"count": 10}, "nearly_same": {"count": 10}}
    same = {"same_text": {"chosen": {"count": 20, "text": "x"}}, "shortcut": {"word": "a", "of": 300, "low": 0.7}}
    assert diagnose(planned(make(tmp_path), **faulty(**few, **same))).severity == "good"


# -- 8: no contradictions ---------------------------------------------------------------------------------------------


def test_damage_is_no_normal_fall(tmp_path: Path) -> None:
    d = diagnose(make(tmp_path, train=PERFECT | BOTH_FALL, answers=RUINED))
    assert d.severity == "bad"
    assert "both_fall" not in d


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("setting", [{}, {"learning_rate": 3e-3}, {"beta": 0.001}, {"beta": 20.0}])
def test_remedies_push_one_way(tmp_path: Path, seed: int, setting: dict[str, Any]) -> None:
    for i, (train, answers) in enumerate(((PERFECT, RUINED), (STUCK, None), (BOTH_FALL, None))):
        d = diagnose(planned(make(tmp_path / str(i), seed, train=train, answers=answers, recipe=setting)))
        assert len({r.push for f in d.findings for r in f.remedies} - {0}) <= 1


# -- 9, 11, 12 --------------------------------------------------------------------------------------------------------


def test_a_critic_of_a_constant_reward_is_not_dead(tmp_path: Path) -> None:
    flat = {"reward": to(1.0, 1.0), "reward_std": to(0.0), "val/explained_variance": to(-0.02, -0.05)}
    assert "dead_critic" not in keys(make_policy(tmp_path, rollouts=flat))


def test_at_chance_length_is_not_to_blame(tmp_path: Path) -> None:
    at_chance = sound_calibration(0.5, baseline=0.52) | {"accuracy": [0.5, 0.46, 0.54]}
    flat = {"rewards/accuracies": to(0.5, 0.5), "rewards/margins": to(0.0)}
    assert "mostly_length" not in keys(make_reward(tmp_path, train=flat, calibration=at_chance))


@pytest.mark.parametrize(("harder", "odd"), [(0, True), (2, True), (3, False), (20, False)])
def test_gradients_of_two_kinds_are_no_odd_examples(tmp_path: Path, harder: int, odd: bool) -> None:
    """100 gradients about 0.2, three of them 3.0; of the rest so many are 1.5: beyond five of a hundred that are large,
    they are those of the harder examples."""
    run = make(tmp_path)
    rows = run.metrics
    for i, row in enumerate(rows[1:]):
        row["grad_norm"] = 3.0 if i in (30, 50, 70) else 1.5 if i % 5 == 1 and i // 5 < harder else 0.2
    (tmp_path / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    assert len(rows) == 101
    assert ("spikes" in keys(run)) is odd


def test_gradients_that_are_mostly_zero_are_no_odd_examples(tmp_path: Path) -> None:
    """A saturated loss: most gradients vanish, some do not."""
    run = make(tmp_path)
    rows = run.metrics
    rng = np.random.default_rng(0)
    for i, row in enumerate(rows[1:]):
        row["grad_norm"] = float(rng.uniform(0.2, 1.0)) if i % 5 == 0 else 0.0
    (tmp_path / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    assert "spikes" not in keys(run)


# -- swapped labels ---------------------------------------------------------------------------------------------------


def with_pairs(run: Run, margins: np.ndarray, *, split: str = "eval", labels: np.ndarray | None = None) -> Run:
    said = [{} if labels is None or p == 1 else {"label": float(p)} for p in (margins if labels is None else labels)]
    run.log_pairs(
        [
            {"step": 100, "split": split, "source": f"pairs.jsonl:{i + 1}", "margin": float(m), "tokens": [9, 9]} | one
            for i, (m, one) in enumerate(zip(margins, said, strict=True))
        ]
    )
    return run


@pytest.mark.parametrize("swapped", [0.1, 0.2, 0.3, 0.4])
def test_two_clouds_are_swapped_labels(tmp_path: Path, swapped: float) -> None:
    rng = np.random.default_rng(0)
    side = np.where(np.arange(200) < 200 * swapped, -1, 1)
    d = diagnose(with_pairs(make(tmp_path), side * rng.normal(2.0, 0.4, 200)))
    finding = told(d, "labels_swapped")
    assert f"{100 * swapped:.0f}%" in finding.title
    assert d.severity == "warning"


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("mean", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_one_cloud_is_not(tmp_path: Path, seed: int, mean: float) -> None:
    """Noise about 0, a weak signal, a strong one."""
    margins = np.random.default_rng(seed).normal(mean, 1.0, 200)
    assert "labels_swapped" not in keys(with_pairs(make(tmp_path), margins))


@pytest.mark.parametrize(("digits", "said"), [(2, True), (0, False)])
def test_margins_that_rounding_left_few_values_of_are_no_clouds(tmp_path: Path, digits: int, said: bool) -> None:
    """As a tiny rate or beta leaves: nothing lies between values that are whole."""
    rng = np.random.default_rng(0)
    margins = np.where(np.arange(200) % 5 == 0, -1, 1) * np.round(rng.normal(2.0, 0.4, 200), digits)
    assert ("labels_swapped" in keys(with_pairs(make(tmp_path), margins))) is said


@pytest.mark.parametrize(("digits", "said"), [(2, True), (0, False)])
def test_rewards_of_single_answers_that_rounding_left_few_values_of_are_no_clouds(
    tmp_path: Path, digits: int, said: bool
) -> None:
    good = np.arange(200) % 2 == 0
    towards = np.where(np.arange(200) // 2 % 5 == 0, -1, 1) * np.where(good, 1, -1)
    reward = np.round(towards * np.random.default_rng(0).normal(2.0, 0.4, 200), digits)
    run = make(tmp_path)
    run.log_pairs(
        [
            {"step": 100, "split": "eval", "source": f"d:{i}", "reward": float(r), "label": float(g), "tokens": [4]}
            for i, (r, g) in enumerate(zip(reward, good, strict=True))
        ]
    )
    assert ("labels_swapped" in keys(run)) is said


def test_many_margins_of_few_digits_are_read_all_the_same(tmp_path: Path) -> None:
    """Eight thousand of four decimals share many values, and are a thousand steps of these each."""
    side = np.where(np.arange(8000) % 5 == 0, -1, 1)
    margins = np.round(side * np.random.default_rng(0).normal(0.15, 0.03, 8000), 4)
    assert "labels_swapped" in keys(with_pairs(make(tmp_path), margins))


def test_the_lines_that_look_swapped_are_named(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    run = make(tmp_path)
    margins = np.where(np.arange(200) % 5 == 0, -1, 1) * rng.normal(2.0, 0.3, 200)
    finding = told(diagnose(with_pairs(with_pairs(run, margins), margins, split="train")), "labels_swapped")
    assert set(finding.lines) == {f"pairs.jsonl:{i + 1}" for i in range(0, 200, 5)}


@pytest.mark.parametrize(("low", "said"), [(0.75, True), (0.84, True), (0.9, False), (0.97, False)])
def test_no_more_labels_are_reversed_than_words_leave_room_for(tmp_path: Path, low: float, said: bool) -> None:
    """A fifth of 200 is 15% at least; of what words tell, 97% say that 3% may be reversed at most."""
    rng = np.random.default_rng(0)
    run = with_pairs(make(tmp_path), np.where(np.arange(200) % 5 == 0, -1, 1) * rng.normal(2.0, 0.3, 200))
    run.data = faulty(words={"right": low + 0.01, "low": low, "high": 0.99, "n": 500})
    assert ("labels_swapped" in keys(run)) is said


def test_a_label_that_prefers_the_other_answer_is_no_swapped_one(tmp_path: Path) -> None:
    """A quarter of the labels is 0.1, and there the model rightly ranks the other answer higher."""
    labels = np.where(np.arange(200) % 4 == 0, 0.1, 1.0)
    margins = np.where(labels < 0.5, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    assert "labels_swapped" in keys(with_pairs(make(tmp_path / "a"), margins))
    assert "labels_swapped" not in keys(with_pairs(make(tmp_path / "b"), margins, labels=labels))


def test_swapped_labels_among_soft_ones_are_named(tmp_path: Path) -> None:
    """Every fifth of the labels is the wrong way round, whichever answer it prefers."""
    labels = np.where(np.arange(200) % 4 == 0, 0.1, 1.0)
    wrong = np.arange(200) % 5 == 0
    margins = np.where((labels < 0.5) != wrong, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    run = with_pairs(make(tmp_path), margins, labels=labels)
    finding = told(diagnose(with_pairs(run, margins, split="train", labels=labels)), "labels_swapped")
    assert set(finding.lines) == {f"pairs.jsonl:{i + 1}" for i in range(0, 200, 5)}


def test_ties_are_no_evidence_of_swapped_labels(tmp_path: Path) -> None:
    """Of a tie the model may favour either answer, however firmly."""
    tie = np.arange(200) % 4 == 0
    margins = np.where(tie, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    run = with_pairs(make(tmp_path), margins, labels=np.where(tie, 0.5, 1.0))
    assert "labels_swapped" not in keys(run)


@pytest.mark.parametrize(("share", "named"), [(3e-6, False), (0.009, True)])
def test_a_model_that_was_not_trained_says_nothing_of_its_labels(tmp_path: Path, share: float, named: bool) -> None:
    """Its margins are rounding, in two clouds or not."""
    margins = np.where(np.arange(200) % 5 == 0, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    run = moved(with_pairs(make(tmp_path), margins), share)
    assert ("labels_swapped" in keys(run)) is named


def worded(run: Run, count: int, share: float = 0.2) -> Run:
    """A run whose data's words contradict so many labels, those of every fourth line."""
    said = {"share": share, "low": share - 0.05, "high": share + 0.05, "n": 300, "between": 2, "count": count}
    lines = [f"pairs.jsonl:{4 * i + 1}" for i in range(count)]
    run.data = {"train": {"audit": {"faults": {"records": 300, "words": {"reversed": said | {"sources": lines}}}}}}
    return run


def test_labels_that_words_contradict_are_told_without_the_model(tmp_path: Path) -> None:
    """A model that learnt nothing may have had nothing to learn from."""
    finding = told(d := diagnose(worded(make(tmp_path), 60)), "words_reversed")
    assert (d.severity, finding.cause, len(finding.lines)) == ("warning", True, 60)
    assert "20%" in finding.title
    assert "60 lines" in finding.meaning


def test_lines_of_both_witnesses_are_named_by_one_finding(tmp_path: Path) -> None:
    margins = np.where(np.arange(200) % 5 == 0, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    run = worded(with_pairs(with_pairs(make(tmp_path), margins), margins, split="train"), 10)
    d = diagnose(run)
    assert "words_reversed" not in d
    lines = {f"pairs.jsonl:{i + 1}" for i in range(0, 200, 5)} | {f"pairs.jsonl:{4 * i + 1}" for i in range(10)}
    assert set(told(d, "labels_swapped").lines) == lines


@pytest.mark.parametrize(("loss", "given"), [("sigmoid", True), ("kto", False)])
def test_a_remedy_that_the_loss_refuses_is_not_given(tmp_path: Path, loss: str, given: bool) -> None:
    """KTO smooths no labels, so that a recipe with label_smoothing would be refused."""
    margins = np.where(np.arange(200) % 5 == 0, -1, 1) * np.random.default_rng(0).normal(2.0, 0.3, 200)
    run = with_pairs(make(tmp_path), margins)
    run.recipe = DPO(model="m", data="d", out="o", loss_type=loss).model_dump()
    finding = told(d := diagnose(run), "labels_swapped")
    assert any("label_smoothing" in line for line in finding.remedy) is given
    assert any(p.remedy.setting == "label_smoothing" for p in prescribe(d)) is given


def test_labels_without_a_pattern(tmp_path: Path) -> None:
    """A sound rate, weights that moved, and a coin on held-out pairs."""
    flat = {"rewards/margins": to(0.0), "rewards/accuracies": to(0.5, 0.5), "loss": to(0.72, math.log(2))}
    d = diagnose(moved(planned(make(tmp_path, train={"rewards/margins": to(0.9)}, held_out=flat, spread=0.3)), 0.01))
    assert told(d, "no_pattern").cause
    assert d.findings[0].key == "no_pattern"


@pytest.mark.parametrize(
    ("rate", "share", "trained"),
    [(1e-6, 2e-5, True), (1e-6, 1e-6, False), (1e-6, 0.0, False), (1e-2, 0.0025, True), (1e-2, 0.0015, False)],
)
def test_what_a_trained_model_is_goes_with_its_rate(tmp_path: Path, rate: float, share: float, trained: bool) -> None:
    """A large model has a small rate, and its weights move little, whatever it learns: that is no standstill."""
    flat = {"rewards/margins": to(0.0), "rewards/accuracies": to(0.5, 0.5), "loss": to(0.72, math.log(2))}
    own = {"train": {"rewards/margins": to(0.9)}, "held_out": flat, "spread": 0.3, "recipe": {"learning_rate": rate}}
    run = make(tmp_path, **own)
    rows = [row | {"learning_rate": rate} for row in run.metrics]
    (run.folder / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    d = diagnose(moved(planned(run, automatic=rate), share))
    assert ("no_pattern" in d) is trained


@pytest.mark.parametrize(
    ("words", "pairs", "key", "cause"),
    [
        ([0.51, 0.47, 0.55, 400], 400, "no_pattern", True),
        ([0.60, 0.58, 0.62, 2000], 2000, "pattern_missed", True),
        ([0.60, 0.54, 0.66, 300], 60, "weak_pattern", False),
    ],
)
def test_where_nothing_was_learnt_words_are_the_second_witness(
    tmp_path: Path, words: list[float], pairs: int, key: str, cause: bool
) -> None:
    """Words that tell nothing leave the labels to blame; words that tell more than the model, beyond the noise of both,
    leave the model; words that may only tell more leave both."""
    flat = {"rewards/margins": to(0.0), "rewards/accuracies": to(0.5, 0.5), "loss": to(0.72, math.log(2))}
    run = make(tmp_path, train={"rewards/margins": to(0.9)}, held_out=flat, spread=0.3)
    half = np.random.default_rng(0).normal(0, 1, pairs)
    run = with_pairs(run, half - np.median(half))
    run.environment = {"plan": {"automatic": {"learning_rate": 1e-5}}}
    run.data = faulty(words=dict(zip(("right", "low", "high", "n"), words, strict=True)))
    d = diagnose(moved(run, 0.01))
    assert told(d, key).cause is cause
    assert not {"no_pattern", "pattern_missed", "weak_pattern", "words_tell", "words_silent"} - {key} & set(keys(run))
    assert d.severity != "good"


@pytest.mark.parametrize(("margin", "named"), [(0.0, True), (-0.9, False)])
def test_random_labels_may_be_wrong_by_luck(tmp_path: Path, margin: float, named: bool) -> None:
    """37% of 60 are 26 to 50%: a coin does so once in 20. Where margins fall, held-out pairs contradict the others."""
    held = {"rewards/margins": to(margin), "rewards/accuracies": to(0.3, 0.5), "loss": to(0.72, math.log(2))}
    run = make(tmp_path, train={"rewards/margins": to(0.9)}, held_out=held, spread=0.3, pairs=60)
    d = diagnose(moved(planned(run), 0.01))
    assert ("no_pattern" in d) is named


@pytest.mark.parametrize(
    ("against", "pairs", "low", "named"),
    [
        (0.0, 200, 0.45, True),
        (0.0, 60, 0.45, False),  # too few of these, too
        (0.8, 200, 0.45, False),  # it ranks 79% of them rightly
        (0.0, 200, 0.58, False),  # words tell the labels
    ],
)
def test_of_few_held_out_pairs_those_not_learnt_from_yet_speak(
    tmp_path: Path, against: float, pairs: int, low: float, named: bool
) -> None:
    flat = {"rewards/margins": to(0.0), "rewards/accuracies": to(0.5, 0.5), "loss": to(0.72, math.log(2))}
    run = make(tmp_path, train={"rewards/margins": to(0.9)}, held_out=flat, spread=0.3, pairs=31)
    half = np.random.default_rng(0).normal(0, 1, pairs)
    run = with_pairs(run, half - np.median(half) + against)
    run.environment = {"plan": {"automatic": {"learning_rate": 1e-5}}}
    run.data = faulty(words={"right": low + 0.05, "low": low, "high": low + 0.1, "n": 270})
    assert ("no_pattern" in diagnose(moved(run, 0.01))) is named


@pytest.mark.parametrize(
    ("low", "high", "said"), [(0.45, 0.55, "words_silent"), (0.48, 1.0, None), (0.6, 1.0, "words_tell")]
)
def test_of_an_interval_that_holds_everything_words_say_nothing(
    tmp_path: Path, low: float, high: float, said: str | None
) -> None:
    """All of four pairs told is 100%, and no coin."""
    run = planned(make(tmp_path), **faulty(words={"right": (low + high) / 2, "low": low, "high": high, "n": 60}))
    assert {"words_silent", "words_tell"} & set(keys(run)) == ({said} if said else set())


def test_words_that_tell_as_much_as_the_model_are_information(tmp_path: Path) -> None:
    run = planned(make(tmp_path), **faulty(words={"right": 0.8, "low": 0.78, "high": 0.82, "n": 2000}))
    d = diagnose(run)
    assert (d.severity, told(d, "words_tell").severity) == ("good", "info")
    assert "as many as this model" in told(d, "words_tell").title
    run.data = faulty(words={"right": 0.6, "low": 0.58, "high": 0.62, "n": 2000})
    assert "as many as this model" not in told(diagnose(run), "words_tell").title


# -- the start --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("key", "start"),
    [
        ("answers_elsewhere", {"prompt_matters": 0.05, "prompt_in_own": 2.5}),
        ("foreign_answers", {"chosen_logp": -5.0}),
        ("too_alike", {"likeness": -0.04}),
        ("too_alike", {"likeness": -0.3, "too_alike": 0.5}),  # half of them, which the mean does not show
        (
            "some_elsewhere",
            {"prompt_matters": 1.2, "prompt_in_own": 2.5, "prompt_ignored": 0.3, "prompt_ignored_own": 0.0},
        ),
    ],
)
def test_what_was_wrong_before_training(tmp_path: Path, key: str, start: dict[str, float]) -> None:
    assert told(diagnose(beginning(make(tmp_path), **start)), key).cause


@pytest.mark.parametrize(
    ("sure", "ignored", "named"),
    [(True, None, True), (False, None, False), (False, 0.3, True), (False, 0.09, False), (True, 0.0, True)],
)
def test_what_words_alone_do_not_show_takes_a_model_to_agree(
    tmp_path: Path, sure: bool, ignored: float | None, named: bool
) -> None:
    """Of its own answers up to 10% fit another prompt as well; 30% of the data's are more than that, 9% are not."""
    start = {} if ignored is None else {"prompt_ignored": ignored, "prompt_ignored_own": 0.0}
    run = beginning(make(tmp_path), **start)
    part = {"strays": 90, "n": 300, "share": 0.8, "by_chance": 0.3, "sure": sure, "count": 72, "sources": ["d:1"]}
    run.data = {"train": {"audit": {"faults": {"elsewhere": part}}}}
    assert ("answers_astray" in keys(run)) is named
    if named:
        assert "(by chance: 30%)" in told(diagnose(run), "answers_astray").evidence[0]
        run.data = {"train": {"audit": {"faults": {"elsewhere": part | {"by_chance": None}}}}}
        assert "(by chance: –)" in told(diagnose(run), "answers_astray").evidence[0]


@pytest.mark.parametrize(
    ("logp", "vocabulary", "severity"),
    [(-10.5, 32_000, "bad"), (-10.2, 32_000, "warning"), (-10.5, None, "warning"), (-10.5, True, "warning"),
     (-10.5, "x", "warning"), (-10.5, 0, "warning"), (-10.5, -3, "warning"), (-10.5, 10**400, "warning")],
)  # fmt: skip
def test_answers_less_likely_than_blind_tokens_are_no_language_to_the_model(
    tmp_path: Path, logp: float, vocabulary: Any, severity: str
) -> None:
    """ln 32,000 = 10.37 nats. Its tokenizer may belong to another model, as it writes sound tokens itself."""
    run = beginning(make(tmp_path), chosen_logp=logp)
    run.environment = {"vocabulary": vocabulary}
    finding = told(diagnose(run), "foreign_answers")
    assert finding.severity == severity
    assert any("tokenizer is wrong" in r for r in finding.remedy) is (severity == "bad")


@pytest.mark.parametrize(("part", "key"), [("echoed", "prompt_in_answer"), ("of_a_page", "web_marks")])
def test_what_was_counted_in_answers_explains_that_they_look_foreign(tmp_path: Path, part: str, key: str) -> None:
    run = beginning(make(tmp_path), chosen_logp=-5.0)
    assert "foreign_answers" in keys(run)
    run.data = faulty(to_learn={"count": 100}, **{part: {"count": 90, "sources": ["d:1"]}})
    assert (key in keys(run), "foreign_answers" in keys(run)) == (True, False)


@pytest.mark.parametrize(
    ("count", "n", "by_chance", "believed"),
    [(160, 380, 0.02, False), (140, 380, 0.02, True), (160, 380, 0.04, True), (8, 12, 0.0, False), (7, 12, 0.0, True),
     (0, 380, 0.02, True), (500, 380, 0.0, True), (None, 380, 0.0, True)],
)  # fmt: skip
@pytest.mark.parametrize(
    ("key", "start"),
    [
        ("answers_elsewhere", {"prompt_matters": 0.05, "prompt_in_own": 2.5}),
        ("some_elsewhere", {"prompt_matters": 1, "prompt_in_own": 2, "prompt_ignored": 0.3, "prompt_ignored_own": 0}),
    ],
)  # fmt: skip
def test_a_model_is_not_believed_against_words_that_speak_of_their_prompts(
    tmp_path: Path, key: str, start: dict[str, float], count: Any, n: int, by_chance: float, believed: bool
) -> None:
    """35% of the answers, beyond chance and the interval: 160 of 380 are 37.2% at least, 140 are 32%, 8 of 12 are 39%
    and 7 are 32%."""
    run = beginning(make(tmp_path), **start)
    run.data = faulty(placed={"count": count, "n": n, "by_chance": by_chance})
    assert (key in keys(run)) is believed
    said = before_run(first_row(Case(run)), vocabulary=None, account=run.data["train"])
    assert (key in {f.key for f in said}) is believed


@pytest.mark.parametrize(("place", "side"), [("placed", "Answers"), ("placed_other", "Rejected answers")])
@pytest.mark.parametrize(
    ("count", "others", "by_chance", "said"),
    [(4, 340, 0.022, True), (0, 380, 0.006, True), (20, 340, 0.022, False), (60, 300, 0.2, False),
     (4, 150, 0.022, False), (0, 0, 0.0, False), (0, 381, 0.006, False)],
)  # fmt: skip
def test_answers_that_speak_of_their_own_prompts_by_chance_alone(
    tmp_path: Path, place: str, side: str, count: int, others: int, by_chance: float, said: bool
) -> None:
    """Of 380: 4 are 0.4 to 2.7%, about what chance has; 20 are 3.4% at least, more than that; 60 are too many for any
    such claim; and where few have words of other prompts, nothing shows."""
    run = make(tmp_path)
    run.data = faulty(**{place: {"count": count, "n": 380, "others": others, "by_chance": by_chance}})
    assert ("answers_astray" in keys(run)) is said
    if said:
        assert told(diagnose(run), "answers_astray").title.startswith(f"{side} stand")


def test_answers_in_no_language_fit_no_prompt_and_are_not_misplaced(tmp_path: Path) -> None:
    ignored = {"prompt_matters": 0.9, "prompt_in_own": 2.5, "prompt_ignored": 0.4, "prompt_ignored_own": 0.0}
    d = diagnose(beginning(make(tmp_path), chosen_logp=-9.0, **ignored))
    assert ("foreign_answers" in d, "some_elsewhere" in d) == (True, False)


@pytest.mark.parametrize(
    "start",
    [
        {"prompt_matters": 2.4, "prompt_in_own": 2.5},
        {"prompt_matters": 0.05, "prompt_in_own": 0.1},  # a weak model: neither depends on the prompt
        {"prompt_matters": 0.2, "prompt_in_own": 2.5},  # from 0.1 to 0.3: most answers are stock, the rest belong
        {"prompt_matters": 0.4},  # nothing to hold it against
        {"chosen_logp": -2.0},
        {"likeness": -0.4},
        {"likeness": -0.4, "too_alike": 0.3},  # from 0.2 on
        {
            "prompt_matters": 1.2,
            "prompt_in_own": 2.5,
            "prompt_ignored": 0.18,
            "prompt_ignored_own": 0.0,
        },  # from 0.08 on
        {"prompt_matters": 1.2, "prompt_in_own": 2.5, "prompt_ignored": 0.5, "prompt_ignored_own": 0.4},  # as its own
        {"prompt_matters": 0.2, "prompt_in_own": 0.4, "prompt_ignored": 0.5, "prompt_ignored_own": 0.0},  # a weak model
        {"prompt_matters": 1.2, "prompt_in_own": 2.5, "prompt_ignored": 0.5},  # nothing to hold it against
    ],
)
def test_a_sound_start(tmp_path: Path, start: dict[str, float]) -> None:
    assert diagnose(beginning(make(tmp_path), **start)).severity == "good"


@pytest.mark.parametrize("by", [make, make_policy])
def test_a_model_of_random_weights_has_learnt_no_language(tmp_path: Path, by: Any) -> None:
    """ln 32,000 = 10.37 nats: random weights write at about 9.9, a model that has read a little at 4."""
    for own, guesses in ((-9.9, True), (-4.0, False)):
        run = by(tmp_path / f"{own}", answers={"samples/ref_logp": to(own, own)})
        run.environment = {"vocabulary": 32_000}
        d = diagnose(run)
        assert ("no_language" in d) is guesses
        assert d.headline.startswith("The model had learnt no language") is guesses
        assert ("learnt" in d) is not guesses
        run.environment = {}
        assert "no_language" not in diagnose(run)


def test_preferred_answers_tell_where_none_were_sampled(tmp_path: Path) -> None:
    for logp, guesses in ((-10.4, True), (-5.0, False)):
        run = beginning(make(tmp_path / f"{logp}", drop=("samples/",)), chosen_logp=logp)
        run.environment = {"vocabulary": 32_000}
        assert ("no_language" in diagnose(run)) is guesses


# -- rewards ----------------------------------------------------------------------------------------------------------


def answered(run: Run, reward: np.ndarray, score: np.ndarray) -> Run:
    """A run with these rewards and judge's scores of its first answers."""
    run.log_samples([{"step": 0, "reward": float(r), "score": float(s)} for r, s in zip(reward, score, strict=True)])
    return run


def test_a_reward_that_is_upside_down(tmp_path: Path) -> None:
    score = np.random.default_rng(0).normal(size=48)
    assert "reward_upside_down" in keys(answered(make_policy(tmp_path / "a"), -score, score))
    assert "reward_upside_down" not in keys(answered(make_policy(tmp_path / "b"), score, score))
    noise = np.random.default_rng(1).normal(size=48)
    assert "reward_upside_down" not in keys(answered(make_policy(tmp_path / "c"), noise, score))


@pytest.mark.parametrize(
    ("score", "named"),
    [
        ([1, 1, 1, 1, 1, 0, 0, 0, 0, 0], True),  # one order in 252 is as bad
        ([1, 1, 1, 1, 1, 1, 0, 0, 0, 0], True),
        ([1, 1, 1, 1, 1, 1, 1, 1, 1, 0], False),  # one in 10: the answer that differs may do so by chance
        ([1] * 49 + [0], False),
        ([0.1, 0.2, 0.3, 0.4, 0.5, 0.6], True),  # one in 720
        ([0.1, 0.2, 0.3, 0.4, 0.5], False),
        ([1e308, -1e308, 1e308, -1e308, 0, 1], False),  # beyond what can be multiplied
        ([1, 1, 1, 0, 0, 0], False),  # one in 20
    ],
)
def test_a_reward_that_is_upside_down_on_few_answers(tmp_path: Path, score: list[float], named: bool) -> None:
    run = answered(make_policy(tmp_path), -np.asarray(score, float), np.asarray(score, float))
    assert ("reward_upside_down" in keys(run)) is named


def test_a_reward_that_tells_sampled_answers_apart_is_not_constant(tmp_path: Path) -> None:
    """At a temperature at which all rollouts are alike, nothing is wrong with the reward."""

    def flat(folder: Path, rewards: list[float]) -> Run:
        run = make_policy(folder)
        rows = [{**row, "reward_std": 0.0, "reward": 0.5} for row in run.metrics]
        (folder / "metrics.jsonl").write_text("")
        run._append("metrics.jsonl", rows)
        return answered(Run(folder), np.asarray(rewards), np.zeros(len(rewards)))

    assert "reward_constant" in keys(flat(tmp_path / "a", [0.5] * 24))
    assert "reward_constant" not in keys(flat(tmp_path / "b", [0.0, 1.0] * 12))


def test_a_reward_that_is_noise(tmp_path: Path) -> None:
    run = make_policy(tmp_path)
    rows = run.metrics
    rows[0]["start/reward_retest"] = 0.1
    (tmp_path / "metrics.jsonl").unlink()
    for row in rows:
        run.log(row)
    d = diagnose(run)
    assert d.findings[0].key == "reward_noisy"


def test_rewards_out_of_all_proportion(tmp_path: Path) -> None:
    """Nine in ten lie within 1: a few set a spread of 6. Right and wrong answers, of which few are right, do not."""
    range_of_1 = {"reward_p05": to(0.0), "reward_p95": to(1.0, 1.0), "reward_outliers": to(0.02, 0.02)}
    few = make_policy(tmp_path / "a", rollouts=range_of_1 | {"reward_std": to(6.0, 6.0)}, noise=0.0)
    assert "reward_outliers" in keys(few)
    sparse = make_policy(tmp_path / "b", rollouts=range_of_1 | {"reward_std": to(2.0, 2.0)}, noise=0.0)
    assert "reward_outliers" not in keys(sparse)
