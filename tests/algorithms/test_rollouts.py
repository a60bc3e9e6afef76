"""Answers come through a protocol: any `Rollouts` can be put in, is told what it must know, and is believed in nothing
that can be checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from threading import Barrier
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import runs
from prefiere.algorithms.rollout import Rollout, shares, step_seed
from prefiere.asked.endpoint import EndpointError
from prefiere.console import Display
from prefiere.launch import launch
from prefiere.models.trunk import Trunk
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Rollouts, Sample, Sampling, by_all
from prefiere.tokens.schedule import members
from prefiere.train.engine import TrainingError
from prefiere.train.loop import Loop
from prefiere.train.setup import make_evaluator, make_ready
from updates import method_of

MEASURED = ("seconds", "tokens_per_second", "peak_memory_mb")
GRPO: dict[str, Any] = {"max_steps": 2, "sample_steps": 2, "batch_size": 4, "num_generations": 4, "learning_rate": 1e-2}


def weights(trunk: nn.Module) -> float:
    return float(sum(p.detach().double().abs().sum() for p in trunk.parameters()))


class Recording:
    """Passes everything on, and writes down what it was asked."""

    limit: float | None = None

    def __init__(self, inner: Rollouts):
        self.inner, self.calls = inner, list[tuple[Any, ...]]()
        self.published, self.asked = list[tuple[int, float]](), list[tuple[list[np.ndarray], Any]]()

    def check(self, trunk: nn.Module) -> str:
        self.calls.append(("check",))
        return self.inner.check(trunk)

    def publish(self, trunk: nn.Module, version: int) -> None:
        self.calls.append(("publish", version))
        self.published.append((version, weights(trunk)))
        self.inner.publish(trunk, version)

    def sample(
        self,
        prompts: Sequence[np.ndarray],
        sampling: Sampling,
        *,
        version: int,
        numbers: Sequence[int] | None = None,
        progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:
        self.calls.append(("sample", version, sampling))
        self.asked.append((list(prompts), numbers))
        return self.inner.sample(prompts, sampling, version=version, numbers=numbers, progress=progress)

    def close(self) -> None:
        self.calls.append(("close",))
        self.inner.close()


def figures(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    return [{k: v for k, v in r.items() if k not in MEASURED and not k.startswith("time/")} for r in rows]


def test_rollouts_are_told_versions_and_change_nothing_by_being_wrapped(tmp_path) -> None:
    """Two steps of GRPO with answers along the run, before it and after it."""
    plain = launch(runs.policy_settings(tmp_path, "grpo", **GRPO), display=Display(quiet=True)).run
    m = method_of(tmp_path, "grpo", out=str(tmp_path / "wrapped"), **GRPO)
    recording = Recording(m.session.rollouts)
    m.session = replace(m.session, rollouts=recording)
    make_ready(m.session, 0)
    assert Loop(m.session, m, make_evaluator(m.session)).run() is None

    seed, along = m.settings.seed, Sampling(m.settings.samples_per_prompt, max_new_tokens=8, seed=m.settings.seed)
    steps = [Sampling(4, max_new_tokens=8, seed=step_seed(seed, step)) for step in range(2)]
    assert recording.calls == [
        ("publish", 0), ("check",), ("publish", 0), ("sample", 0, along),
        ("publish", 0), ("sample", 0, steps[0]), ("publish", 1), ("sample", 1, steps[1]),
        ("publish", 2), ("sample", 2, along),
    ]  # fmt: skip
    by_version = {v: {w for other, w in recording.published if other == v} for v in range(3)}
    assert [len(w) for w in by_version.values()] == [1, 1, 1], "one version, one set of weights"
    assert len(set.union(*by_version.values())) == 3
    for prompts, numbers in recording.asked[1:3]:
        assert [p.tolist() for p in prompts] == [m.prompts.ids[i].tolist() for i in numbers]
    assert figures(m.session.run.metrics) == figures(plain.metrics)
    assert m.session.run.samples == plain.samples


class Canned:
    """Gives every prompt the same answers, with log-probs of -1 a token, from one version."""

    limit: float | None = None

    def __init__(self, answers: Sequence[np.ndarray], behind: int = 0):
        self.answers, self.behind = answers, behind

    def check(self, trunk: nn.Module) -> str:
        return ""

    def publish(self, trunk: nn.Module, version: int) -> None: ...

    def sample(self, prompts: Sequence[np.ndarray], sampling: Sampling, *, version: int, **_: Any) -> list[Sample]:
        return [
            Sample(i, j, a, np.full(len(a), -1, np.float32), True, version - self.behind)
            for i in range(len(prompts))
            for j, a in enumerate(self.answers[: sampling.samples])
        ]

    def close(self) -> None: ...


def log_probs(lm: Any, prompt: np.ndarray, answer: np.ndarray) -> np.ndarray:
    """float64 [L], by a plain forward of transformers' model."""
    ids = torch.tensor([*prompt, *answer])[None].long()
    with torch.no_grad():
        logp = torch.log_softmax(lm.eval()(ids).logits[0, len(prompt) - 1 : -1].double(), -1)
    return logp[torch.arange(len(answer)), torch.from_numpy(answer).long()].numpy()


def test_two_steps_on_answers_that_came_from_elsewhere(tmp_path) -> None:
    """The policy moves from the answer without vowels to the one with them; drift is that of the log-probs given."""
    m = method_of(tmp_path, "grpo", **{**GRPO, "learning_rate": 1e-3, "kl_coef": 0.0})
    tokenizer, lm = m.session.tokenizer, m.session.trunk.lm
    good, bad = (
        np.asarray([*tokenizer(text, add_special_tokens=False).input_ids, tokenizer.eos_token_id], np.int32)
        for text in ("casa", "the")
    )
    m.session = replace(m.session, rollouts=Canned([good, bad, good, bad]))
    prompts = list(m.prompts.ids)

    def preference() -> float:
        return float(np.mean([log_probs(lm, p, good).sum() - log_probs(lm, p, bad).sum() for p in prompts]))

    before = preference()
    asked = [prompts[int(i)] for i in members(len(prompts), 4, seed=m.settings.seed, step=0)]
    drift = np.concatenate([np.abs(-1 - log_probs(lm, p, a)) for p in asked for a in (good, bad, good, bad)])
    first = m.step(0)
    assert first.metrics["sampler_drift"].mean == pytest.approx(drift.mean(), rel=1e-5)
    assert first.metrics["completions/mean_length"].mean == (len(good) + len(bad)) / 2
    assert first.metrics["completions/eos_rate"].mean == 1
    m.step(1)
    assert preference() > before + 0.05


@pytest.mark.parametrize(("kl_coef", "passes"), [(0.0, 2), (0.1, 3)])
@pytest.mark.parametrize("lora", [False, True])
def test_the_policy_is_read_once_where_its_only_update_reads_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, lora: bool, kl_coef: float, passes: int
) -> None:
    """A rollout in two micro-batches: the reference and the update read it, and the policy before it only where the
    reward asks for its log-probs. Either way they are those of a plain forward before the update."""
    m = method_of(tmp_path, "grpo", **{**GRPO, "kl_coef": kl_coef, "lora": lora, "tokens_per_microbatch": 120})
    lm, kept = m.session.trunk.lm, list[Rollout]()
    m.step(0)  # away from the start, where policy and reference are one
    estimate, forward, read = m.estimate, Trunk.forward, list[int]()

    def noted(reward_CL: torch.Tensor, rollout: Rollout) -> Any:
        kept.append(rollout)
        expected.extend(log_probs(lm, g.prompt, c) for g in rollout.store for c in g.completions)
        return estimate(reward_CL, rollout)

    def counted(self: Trunk, batch: Any, **options: Any) -> Any:
        read.append(batch.completions)
        return forward(self, batch, **options)

    expected = list[np.ndarray]()
    m.estimate = noted
    monkeypatch.setattr(Trunk, "forward", counted)
    update = m.step(1)
    assert sum(read) == passes * 16
    np.testing.assert_allclose(kept[0].tokens["logp"], np.concatenate(expected), atol=1e-5)
    assert update.metrics["val/ratio"].total == len(kept[0].tokens["logp"])
    assert update.metrics["objective/kl"].mean > 0
    assert np.isfinite(kept[0].tokens["entropy"]).all()


def test_answers_of_another_policy_are_refused(tmp_path) -> None:
    m = method_of(tmp_path, "grpo", **GRPO)
    answer = np.asarray([9, m.session.tokenizer.eos_token_id], np.int32)
    m.session = replace(m.session, rollouts=Canned([answer] * 4, behind=1))
    with pytest.raises(TrainingError, match="answers came from version 2 of the policy, and version 3 was asked"):
        m.step(3)


@pytest.mark.parametrize("fails", [False, True])
def test_rollouts_are_closed_however_a_run_ends(tmp_path, monkeypatch, fails) -> None:
    closed = []
    monkeypatch.setattr(LocalRollouts, "close", lambda self: closed.append(True))
    settings = runs.policy_settings(tmp_path, "grpo", **{**GRPO, "max_steps": 1, "sample_steps": 0})
    if fails:
        settings = settings.model_copy(update={"reward": "rewarding:raises"})
        with pytest.raises(ValueError, match="raises"):
            launch(settings, display=Display(quiet=True))
    else:
        launch(settings, display=Display(quiet=True))
    assert closed == [True]


@pytest.mark.parametrize(("groups", "k", "size"), [(1, 4, 2), (3, 4, 2), (2, 3, 5), (5, 2, 3), (4, 3, 2)])
def test_every_answer_is_drawn_by_one_process_and_all_draw_alike(groups, k, size) -> None:
    dealt = [shares(groups, k, rank, size, split=True) for rank in range(size)]
    each = [[(int(p), s.first + j) for s in own for p in s.prompts for j in range(s.samples)] for own in dealt]
    assert sorted(answer for one in each for answer in one) == [(p, j) for p in range(groups) for j in range(k)]
    assert max(map(len, each)) - min(map(len, each)) <= 1
    whole = [p.tolist() for rank in range(size) for p, _, n in shares(groups, k, rank, size, split=False) if n == k]
    assert sorted(p for part in whole for p in part) == list(range(groups)), "of a server, prompts are never split"


@dataclass
class Two:
    """What a world of two threads does."""

    meeting: Barrier
    said: list[str]

    def barrier(self) -> None:
        self.meeting.wait(timeout=20)

    def gather(self, items: list[str]) -> list[str]:
        self.said += items
        self.meeting.wait(timeout=20)
        return self.said


def test_what_fails_one_process_stops_all() -> None:
    world: Any = Two(Barrier(2), [])

    def failing() -> int:
        raise EndpointError("no answer")

    with ThreadPoolExecutor(2) as pool:
        ends = [pool.submit(by_all, world, draw) for draw in (failing, lambda: 1)]
    assert [str(end.exception()) for end in ends] == ["no answer"] * 2
