"""Whole short runs: what a run folder holds, that step 0 is exact, that learning happens, that bad things are named."""

import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

import runs
from prefiere.api.use import export
from prefiere.console import Display
from prefiere.evaluate.guards import degenerate
from prefiere.evaluate.sampled import AnswerEvaluator, Answers, repetition
from prefiere.launch import launch
from prefiere.plan.examples import ExampleData
from prefiere.run import Run
from prefiere.settings import DPO, SFT
from prefiere.train import checkpoint
from prefiere.train.engine import TrainingError

QUIET = Display(quiet=True)
LOSS_AT_START = {"sigmoid": math.log(2), "ipo": 25.0, "hinge": 1.0, "robust": math.log(2), "kto": 0.5}


def go(tmp: Path, method=DPO, **options) -> Run:
    return launch(runs.settings(tmp, method, **options), display=QUIET).run


@pytest.mark.parametrize("loss_type", ["sigmoid", "ipo", "hinge", "robust", "simpo", "orpo", "cpo", "kto"])
def test_every_loss_runs_and_learns(tmp_path, loss_type) -> None:
    run = go(
        tmp_path,
        loss_type=loss_type,
        max_steps=12,
        beta=0.1,
        learning_rate=3e-3,
        warmup_steps=0.0,
        guard=False,
        batch_size=16,
    )
    first, last = run.metrics[0], run.metrics[-1]
    assert first["step"] == 0
    assert last["step"] == 12
    assert runs.unknown_columns(run.metrics) == set()
    assert last["loss"] < first["loss"]
    assert last["rewards/margins"] > first["rewards/margins"]
    if loss_type in LOSS_AT_START:
        assert first["loss"] == pytest.approx(LOSS_AT_START[loss_type], abs=1e-5)
    if loss_type in ("sigmoid", "ipo", "hinge", "robust"):
        assert first["rewards/accuracies"] == first["eval_rewards/accuracies"] == 0.5
    assert AutoModelForCausalLM.from_pretrained(run.model) is not None


@pytest.mark.parametrize(
    ("options", "tolerance"),
    [
        ({}, 1e-6),
        ({"tokens_per_microbatch": 40}, 1e-6),
        ({"lora": True, "lora_dropout": 0.3}, 1e-6),
        ({"lora": True, "use_dora": True}, 1e-6),
        ({"attn": "padded"}, 1e-6),
        ({"gradient_checkpointing": True}, 1e-6),
        ({"dtype": "bfloat16"}, 2e-3),
        ({"dtype": "bfloat16", "lora": True, "tokens_per_microbatch": 50}, 2e-3),
    ],
)
def test_the_first_loss_is_ln_2(tmp_path, options, tolerance) -> None:
    row = go(tmp_path, max_steps=1, **options).metrics[0]
    for name in ("loss", "eval_loss"):
        assert row[name] == pytest.approx(math.log(2), abs=tolerance)
    for name in ("rewards/accuracies", "eval_rewards/accuracies"):
        assert row[name] == 0.5
    assert row["samples/kl"] == pytest.approx(0, abs=1e-4 if tolerance < 1e-3 else 0.2)


def test_a_run_from_an_adapter_starts_at_that_adapter(tmp_path) -> None:
    first = go(tmp_path, lora=True, learning_rate=2e-2, max_steps=6, out=str(tmp_path / "first"))
    second = go(tmp_path, model=str(first.folder), out=str(tmp_path / "second"), max_steps=3)
    assert second.metrics[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert second.metrics[0]["eval_logps/chosen"] == pytest.approx(first.metrics[-1]["eval_logps/chosen"], rel=1e-4)
    assert json.loads((second.model / "adapter_config.json").read_text())["base_model_name_or_path"] == str(
        tmp_path / "model"
    )


def test_the_folder_holds_what_it_promises(tmp_path) -> None:
    run = go(tmp_path, max_steps=5)
    rows = run.metrics
    assert [r["step"] for r in rows] == [0, 1, 2, 3, 4, 5]
    needed = {
        "loss", "rewards/chosen", "rewards/rejected", "rewards/margins", "rewards/accuracies", "logps/chosen",
        "logps/rejected", "grad_norm", "learning_rate", "tokens_per_second", "peak_memory_mb", "epoch", "seconds",
    }  # fmt: skip
    assert needed <= rows[-1].keys()
    for name in ("loss", "rewards/margins", "rewards/accuracies"):
        low, mean, high = (rows[-1][f"eval_{name}{part}"] for part in ("_low", "", "_high"))
        assert low <= mean <= high
        assert rows[-1][f"eval_{name}_n"] == 6
    assert rows[-1]["eval_rewards/margins"] == pytest.approx(
        rows[-1]["eval_rewards/chosen"] - rows[-1]["eval_rewards/rejected"], abs=1e-6
    )
    assert {"eos_rate", "length", "repetition", "ref_logp", "kl"} <= {
        k.removeprefix("samples/") for k in rows[-1] if k.startswith("samples/")
    }
    assert {s["step"] for s in run.samples} == {0, 1, 2, 3, 4, 5}
    assert len([s for s in run.samples if s["step"] == 0]) == 4
    names = [c["name"] for c in run.environment["choices"]]
    assert {"dtype", "lora", "learning_rate", "tokens_per_microbatch", "rows"} <= set(names)
    assert all(c["why"] for c in run.environment["choices"])
    assert run.data["examples"] == {"train": 18, "eval": 6}
    assert run.recipe["learning_rate"] == 1e-3
    assert run.environment["vocabulary"] == AutoModelForCausalLM.from_pretrained(run.model).config.vocab_size
    assert run.status["state"] == "finished"


@pytest.mark.parametrize(("said", "kept"), [(9, [5, 9]), ([9, 5], [9, 5]), (None, [5])])
def test_a_saved_model_stops_where_it_was_taught_to(tmp_path, said, kept) -> None:
    """By another program as well, whose `generate` reads the generation configuration alone."""
    s = runs.settings(tmp_path, max_steps=1, sample_steps=0, eval_size=0)
    GenerationConfig(eos_token_id=said, pad_token_id=0).save_pretrained(s.model)
    assert AutoTokenizer.from_pretrained(s.model).eos_token_id == 5
    launch(s, display=QUIET)
    assert GenerationConfig.from_pretrained(tmp_path / "run" / "model").eos_token_id == kept
    adapted = s.model_copy(update={"lora": True, "out": str(tmp_path / "adapted")})
    launch(adapted, display=QUIET)
    export(adapted.out, tmp_path / "out", merge=True, quiet=True)
    assert GenerationConfig.from_pretrained(tmp_path / "out").eos_token_id == kept


def test_no_prompt_is_on_both_sides(tmp_path) -> None:
    row = {"prompt": "1?", "chosen": "perro.", "rejected": "pan."}
    rows = [{**row, "prompt": f"{i % 8}?", "rejected": f"pan {'x' * i}."} for i in range(40)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    data = runs.session(tmp_path, eval_size=10).data
    assert isinstance(data, ExampleData)
    assert data.eval is not None
    assert not set(data.train.prompt_keys) & set(data.eval.prompt_keys)
    assert len(data.train) + len(data.eval) == 40


def test_intervals_are_clustered_by_prompt(tmp_path) -> None:
    """Every pair ten times over: the interval must be about as wide as that of the distinct pairs."""
    runs.pairs_file(tmp_path / "few.jsonl", n=12)
    few = (tmp_path / "few.jsonl").read_text()
    (tmp_path / "many.jsonl").write_text(few * 10)
    widths = {}
    for name in ("few", "many"):
        run = go(tmp_path, eval_data=str(tmp_path / f"{name}.jsonl"), out=str(tmp_path / name), max_steps=3)
        row = run.metrics[-1]
        widths[name] = row["eval_rewards/margins_high"] - row["eval_rewards/margins_low"]
    assert widths["many"] == pytest.approx(widths["few"], rel=0.02)


def test_sft_learns_its_data(tmp_path) -> None:
    run = go(tmp_path, SFT, max_steps=30, learning_rate=1e-2, batch_size=18, warmup_steps=0.0)
    first, last = run.metrics[0], run.metrics[-1]
    assert last["loss"] < 0.5 * first["loss"]
    assert last["mean_token_accuracy"] > 0.5
    assert "samples/ref_logp" not in last


def test_examples_that_are_dropped_or_cut_are_in_the_account(tmp_path, capsys) -> None:
    rows = [json.loads(line) for line in runs.pairs_file(tmp_path / "x").read_text().splitlines()]
    rows[3]["chosen"] = ""
    rows[4]["rejected"] = rows[4]["chosen"]
    rows[5]["chosen"] = "perro " * 200
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = launch(runs.settings(tmp_path, max_length=64), display=Display()).run
    said = capsys.readouterr().err
    assert "2 dropped" in said or "1 dropped" in said
    assert "1 example with a completion cut from the right" in said
    account = run.data["train"]
    assert sum(account["read"]["dropped"].values()) == 2
    assert any("pairs.jsonl:4" in p for p in account["read"]["problems"])
    assert sum(run.data["examples"].values()) == 22
    assert account["tokens"]["truncated_completions"]["count"] == 1


def test_nothing_left_is_an_error_that_says_what_happened(tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "b"}\n' * 3)
    with pytest.raises(ValueError, match=r"no example to learn from.*3 dropped"):
        go(tmp_path)


def test_one_prompt_cannot_be_split(tmp_path) -> None:
    (tmp_path / "pairs.jsonl").write_text('{"prompt": "a", "chosen": "b", "rejected": "c"}\n')
    with pytest.raises(ValueError, match="eval_size=0"):
        go(tmp_path)
    assert go(tmp_path, eval_size=0, max_steps=2).status["state"] == "finished"


def test_a_nan_loss_fails_the_run_with_a_name(tmp_path, monkeypatch) -> None:
    from prefiere.algorithms import dpo

    real = dpo.reference_logps
    monkeypatch.setattr(dpo, "reference_logps", lambda s, store: np.full_like(real(s, store), np.nan))
    ended = []
    with pytest.raises(TrainingError, match=r"not finite.*pairs\.jsonl:\d+"):
        launch(runs.settings(tmp_path), display=QUIET, on_end=ended.append)
    assert ended[0].status["state"] == "failed"
    assert "not finite" in ended[0].status["reason"]


@pytest.mark.parametrize("loss", ["sigmoid", "kto"])
def test_the_reference_is_asked_only_of_what_an_update_sees(tmp_path, monkeypatch, loss) -> None:
    """A few updates on much data do not wait for a pass over all of it, and are the same updates."""
    from prefiere.algorithms import dpo

    asked = []
    real = dpo.reference_logps
    monkeypatch.setattr(dpo, "reference_logps", lambda s, store: asked.append(len(store)) or real(s, store))
    given = {"max_steps": 2, "batch_size": 4, "eval_size": 6, "loss_type": loss}
    few = go(tmp_path, **given, out=str(tmp_path / "few"))
    assert set(asked) == {6, 8}
    monkeypatch.setattr(dpo, "visited", lambda n, *args, **options: np.arange(n))
    whole = go(tmp_path, **given, out=str(tmp_path / "whole"))
    for name in ("loss", "eval_loss"):
        np.testing.assert_allclose([r[name] for r in few.metrics], [r[name] for r in whole.metrics], rtol=1e-5)


def answers(**signals: float) -> dict[str, float]:
    n = 64
    noise = np.random.default_rng(0).normal(0, 0.05, n)
    values = {k: np.clip(v + noise, 0, 1) if k != "ref_logp" else v + noise for k, v in signals.items()}
    return Answers([], values, np.arange(n)).columns()


HEALTHY = {"eos_rate": 0.95, "repetition": 0.05, "ref_logp": -0.5}


@pytest.mark.parametrize(
    ("change", "says"),
    [
        ({}, None),
        ({"ref_logp": -0.9}, None),
        ({"eos_rate": 0.8}, None),
        ({"ref_logp": -2.5}, "less likely under the reference"),
        ({"eos_rate": 0.3}, "reach an end"),
        ({"repetition": 0.6}, "repeat themselves"),
    ],
)
def test_the_guard(change, says) -> None:
    stop = degenerate(answers(**HEALTHY), answers(**{**HEALTHY, **change}))
    assert (stop is None) if says is None else (says in stop.text)
    assert stop is None or stop.kind == "degenerate"


def test_a_guarded_run_stops_without_a_model_and_goes_on_when_told_to(tmp_path, monkeypatch) -> None:
    real = AnswerEvaluator.__call__

    def broken(self, trunk, reference, **kwargs):
        made = real(self, trunk, reference, **kwargs)
        if broken.calls:
            made.signals["ref_logp"] -= 5.0
        broken.calls += 1
        return made

    broken.calls = 0
    monkeypatch.setattr(AnswerEvaluator, "__call__", broken)
    s = runs.settings(tmp_path, max_steps=6, sample_steps=2, samples_per_prompt=3)
    outcome = launch(s, display=QUIET)
    assert outcome.stopped == outcome.run.stop
    assert outcome.stopped.kind == "degenerate"
    assert outcome.stopped.text == outcome.run.status["reason"]
    assert outcome.run.status["step"] == 2
    assert not outcome.run.model.exists()
    as_before_stops_had_kinds(outcome.run)
    assert launch(s, display=QUIET).stopped == outcome.stopped
    assert outcome.run.status["step"] == 2
    as_before_stops_had_kinds(outcome.run)
    assert launch(s.model_copy(update={"guard": False}), display=QUIET).stopped is None


def as_before_stops_had_kinds(run: Run) -> None:
    """The folder as an earlier version left it: sentences alone, in status.json and in the last checkpoint."""
    run.status = {k: v for k, v in run.status.items() if k != "stop"}
    state = checkpoint.found(run.checkpoints)[-1] / "state.json"
    state.write_text(json.dumps(json.loads(state.read_text()) | {"stop": run.status["reason"]}))


@pytest.mark.parametrize(
    ("tokens", "share"),
    [([1, 2, 3], 0.0), ([1, 2, 3, 4, 5, 6], 0.0), ([1, 1, 1, 1, 1, 1], 3 / 4), ([1, 2, 3, 1, 2, 3], 1 / 4)],
)
def test_repetition_by_hand(tokens, share) -> None:
    """[1,2,3,1,2,3] has trigrams 123 231 312 123: one of four stood before. Six ones: three of four."""
    assert repetition(np.asarray(tokens)) == pytest.approx(share)


@pytest.mark.long
def test_the_caches_are_reused_only_where_they_may_be(tmp_path, monkeypatch) -> None:
    cache = tmp_path / "cache"
    monkeypatch.setenv("PREFIERE_CACHE", str(cache))

    def new(name: str, **options) -> tuple[int, int]:
        """How many entries of token ids and of reference log-probs a run adds."""
        before = set(cache.glob("*[0-9a-f]"))
        launch(runs.settings(tmp_path, out=str(tmp_path / "runs" / name), **{"max_steps": 5, **options}), display=QUIET)
        added = [p.name.split("-")[0] for p in set(cache.glob("*[0-9a-f]")) - before]
        return added.count("tokens"), added.count("reference")

    assert new("first") == (1, 2)  # log-probs of what is trained on, and of what is held out
    assert new("rate", learning_rate=2e-3, beta=0.3, batch_size=4) == (0, 0)
    assert new("short", max_steps=1) == (0, 1)  # fewer are seen
    assert new("long", max_length=24) == (1, 2)
    assert new("seed", seed=1) == (0, 2)  # others are held out
    assert new("lora", lora=True, lora_r=4) == (0, 0)
    assert new("other lora", lora=True, lora_r=8, lora_target_modules=["q_proj"]) == (0, 0)
    runs.pairs_file(tmp_path / "pairs.jsonl", seed=5)
    assert new("data") == (1, 2)
    assert new("on_bad", on_bad="drop")[1] == 0
    runs.model_folder(tmp_path / "model", seed=3)
    assert new("model") == (0, 2)


@pytest.mark.parametrize("kind", ["tokens", "reference"])
def test_a_damaged_cache_changes_nothing(tmp_path, monkeypatch, kind) -> None:
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path / "cache"))
    whole = go(tmp_path, out=str(tmp_path / "whole")).metrics
    for folder in (tmp_path / "cache").glob(f"{kind}-*[0-9a-f]"):
        big = max(folder.iterdir(), key=lambda f: f.stat().st_size)
        big.write_bytes(big.read_bytes()[:-8] + b"\0" * 8)
    again = go(tmp_path, out=str(tmp_path / "again")).metrics

    def lasting(rows: list[dict]) -> list[dict]:
        return [{k: v for k, v in row.items() if "second" not in k and k != "peak_memory_mb"} for row in rows]

    assert lasting(whole) == lasting(again)


def test_trackers_get_the_rows(tmp_path) -> None:
    pytest.importorskip("tensorboard")
    run = go(tmp_path, report_to=["tensorboard"])
    assert list(run.folder.rglob("events.out.tfevents*"))


def test_a_tracker_that_is_not_there_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match="pip install mlflow"):
        go(tmp_path, report_to=["mlflow"])


@pytest.mark.long
def test_torch_compile_changes_nothing_but_speed(tmp_path) -> None:
    one = go(tmp_path, out=str(tmp_path / "one"), max_steps=2)
    two = go(tmp_path, out=str(tmp_path / "two"), max_steps=2, torch_compile=True)
    assert two.metrics[-1]["loss"] == pytest.approx(one.metrics[-1]["loss"], abs=1e-4)
    assert torch.allclose(
        AutoModelForCausalLM.from_pretrained(one.model).lm_head.weight,
        AutoModelForCausalLM.from_pretrained(two.model).lm_head.weight,
        atol=1e-4,
    )


def test_a_model_with_few_positions(tmp_path) -> None:
    """GPT-2 has no rows beyond its position table: lengths are capped, lent answers cut, samples stop in time."""
    runs.model_folder(tmp_path / "model", family="gpt2", n_positions=48)
    rows = [{"prompt": f"{i} {'perro ' * 4}?", "chosen": "pan " * (8 + i), "rejected": "casa " * 9} for i in range(20)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    for loss_type in ("sigmoid", "kto"):
        run = go(tmp_path, loss_type=loss_type, out=str(tmp_path / loss_type), max_steps=2, max_new_tokens=100)
        assert run.status["state"] == "finished"
        choices = {c["name"]: c["value"] for c in run.environment["choices"]}
        assert choices["max_length"] == 48
        assert max(s["tokens"] for s in run.samples) < 48


def test_an_adapter_is_not_described_twice(tmp_path) -> None:
    first = go(tmp_path, lora=True, max_steps=1, out=str(tmp_path / "first"))
    with pytest.raises(ValueError, match=r"lora_r: .* is an adapter"):
        go(tmp_path, model=str(first.folder), lora_r=64, out=str(tmp_path / "second"))


def test_pairs_without_weight_teach_nothing(tmp_path) -> None:
    rows = [{"prompt": f"{i}?", "chosen": "pan.", "rejected": "casa.", "weight": float(i % 3 == 0)} for i in range(18)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(r) + "\n" for r in rows))
    run = go(tmp_path, batch_size=1, max_steps=12, eval_size=3)
    assert run.status["state"] == "finished"
    assert 0.0 in [row.get("grad_norm") for row in run.metrics]
