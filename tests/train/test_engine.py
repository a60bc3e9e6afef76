"""Hardware changes speed, never the result: micro-batches, padding, processes and precision against whole updates."""

import json
import math
import os
import subprocess
import sys
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from prefiere.algorithms.dpo import Pairs
from prefiere.algorithms.kto import Unpaired, mismatch
from prefiere.algorithms.offline import Unmoved
from prefiere.algorithms.sft import Imitate
from prefiere.kernels import attention
from prefiere.kernels.memory import OutOfMemory
from prefiere.kernels.split import Split
from prefiere.models.reference import sequence_logps
from prefiere.models.shard.spread import full, mesh_of, own, shard
from prefiere.models.trunk import Trunk
from prefiere.objectives.preference import LOSSES
from prefiere.processes import gradients as messages
from prefiere.train.engine import Engine, TrainingError
from prefiere.world import World, leave_group
from random_groups import store

GROUPS = {k: store(12, k, partly=True) for k in (1, 2)}


def engine(
    model=None, *, budget=10_000, packed=True, compute=None, max_grad_norm=None, adapt=False, lora=False,
    checkpointing=False, spread=False, **options,
) -> Engine:  # fmt: skip
    model = model or tiny.model("llama")
    attention.register()
    if packed:
        model.set_attn_implementation(attention.NAME)
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(model, LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False))
    trunk = Trunk(model, packed=packed).train()
    if checkpointing:
        trunk.checkpoint_gradients()
        if lora:
            trunk.lm.enable_input_require_grads()
    if spread:
        shard(trunk, mesh_of(trunk.device, 2, 1, "full"))
    # SGD with rate 1 makes the gradient visible as the change of the weights.
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=1.0)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    return Engine(
        trunk, optimizer, schedule, world=World.open(cpu=True), compute=compute,
        max_grad_norm=max_grad_norm, budget=budget, adapt=adapt, **options,
    )  # fmt: skip


def reference(groups, seed=1) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(-40, 10, (len(groups), groups.k)).astype(np.float32)


def objective(name: str):
    if name == "sft":
        return GROUPS[1], Imitate()
    if name == "kto":
        other = mismatch(GROUPS[1], 0, 10**6)
        return GROUPS[1], Unpaired(other, reference(GROUPS[1]), reference(other, 2), 0.1, {})
    loss = LOSSES[name]
    return GROUPS[2], Pairs(loss, {"beta": 0.1}, 0.1, reference(GROUPS[2]), rpo_alpha=0.3 if name == "sigmoid" else 0.0)


def step(e: Engine, groups, goal) -> tuple[float, dict[str, torch.Tensor]]:
    def weights() -> dict[str, torch.Tensor]:
        return {n: full(p.detach()).clone() for n, p in e.trunk.named_parameters() if p.requires_grad}

    before = weights()
    update = e.update(groups, np.arange(len(groups)), goal)
    return update.metrics["loss"].mean, {n: before[n] - p for n, p in weights().items()}


SHARED = list(product(("sft", "sigmoid", "kto"), ("full", "lora"), ("plain", "checkpointed")))
"""What is trained by two processes that share the weights: an objective, what of the model, and how."""


ROWS = [("sft", "full", "plain", False), ("kto", "lora", "checkpointed", False), ("sigmoid", "full", "plain", True)]
"""What is trained by two processes that share the tokens of each row: as above, and whether they share the weights."""
KTO = 1


def trainer(trained: str, how: str, **options) -> Engine:
    return engine(budget=150, lora=trained == "lora", checkpointing=how == "checkpointed", **options)


def assert_equal(one, two, tolerance: float = 1e-5) -> None:
    assert one[0] == pytest.approx(two[0], rel=tolerance)
    whole = math.sqrt(sum(float(g.norm()) ** 2 for g in one[1].values()))
    for name, g in one[1].items():
        assert (g - two[1][name]).norm() <= tolerance * max(float(g.norm()), 0.01 * whole), name


@pytest.mark.parametrize("name", [n for n, loss in LOSSES.items() if loss.needs_reference])
def test_before_the_first_update_what_is_known_is_what_a_forward_pass_finds(name, monkeypatch) -> None:
    """The policy is its reference: every metric and weight, in any order, without a pass over the model."""
    groups, goal = objective(name)
    e, asked = engine(budget=60), np.asarray([7, 2, 11, 0, 5])
    goal.reference = sequence_logps(e.trunk, groups, budget=100)
    if name == "kto":
        goal.reference_mismatched = sequence_logps(e.trunk, goal.mismatched, budget=100)
    measured = e.measure(groups, goal, asked)
    monkeypatch.setattr(e.trunk, "forward", None)
    known = e.measure(groups, Unmoved(goal), asked)
    assert known.index.tolist() == asked.tolist()
    assert known.values.keys() == measured.values.keys()
    for found, told in ((known.values, measured.values), (known.weights, measured.weights)):
        for key, values in found.items():
            if key != "rewards/accuracies":  # of rounding that is a matter of chance
                np.testing.assert_allclose(values, told[key], atol=2e-4, rtol=1e-5, err_msg=key)
    if name != "kto":
        assert not known.values["rewards/margins"].any()
        assert known.values["rewards/accuracies"].tolist() == [0.5] * 5


@pytest.mark.parametrize("name", ["sft", *LOSSES])
@pytest.mark.parametrize("budget", [1, 60, 200])
def test_microbatches_change_nothing(name, budget) -> None:
    groups, goal = objective(name)
    whole = step(engine(), groups, goal)
    parts = engine(budget=budget)
    cut = step(parts, *objective(name))
    assert_equal(whole, cut, 2e-5)


@pytest.mark.parametrize("name", ["sft", "sigmoid", "kto"])
def test_padded_rows_change_nothing(name) -> None:
    assert_equal(step(engine(), *objective(name)), step(engine(packed=False), *objective(name)), 2e-5)


def test_the_loss_is_the_mean_over_the_update_written_out() -> None:
    """DPO by hand: for each pair two plain forwards, a sum of log-probs, -log sigmoid; weighted mean; autograd."""
    groups, goal = objective("sigmoid")
    goal.rpo_alpha = 0.0
    model = tiny.model("llama").double()
    losses, weights = [], []
    for i, g in enumerate(groups):
        ratios = []
        for j, (completion, mask) in enumerate(zip(g.completions, g.masks, strict=True)):
            row = torch.tensor([*g.prompt, *completion])[None]
            logits = model(input_ids=row).logits[0, len(g.prompt) - 1 : -1]
            logp = torch.log_softmax(logits, -1)[torch.arange(len(completion)), torch.tensor(completion).long()]
            ratios.append((logp * torch.tensor(mask)).sum() - float(goal.reference[i, j]))
        losses.append(-torch.nn.functional.logsigmoid(0.1 * (ratios[0] - ratios[1])))
        weights.append(g.weight)
    w = torch.tensor(weights, dtype=torch.float64)
    loss = (torch.stack(losses) * w).sum() / w.sum()
    loss.backward()
    expected = {n: p.grad.float() for n, p in model.named_parameters()}
    mean, actual = step(engine(), groups, goal)
    assert mean == pytest.approx(loss.item(), rel=1e-5)
    assert_equal((0.0, expected), (0.0, {n.removeprefix("model."): g for n, g in actual.items()}), 2e-5)


def test_gradients_are_clipped_to_the_norm() -> None:
    groups, goal = objective("sft")
    _, free = step(engine(), groups, goal)
    norm = math.sqrt(sum(float(g.norm()) ** 2 for g in free.values()))
    _, clipped = step(engine(max_grad_norm=norm / 4), groups, goal)
    assert math.sqrt(sum(float(g.norm()) ** 2 for g in clipped.values())) == pytest.approx(norm / 4, rel=1e-3)


@pytest.mark.long
def test_two_processes_equal_one(tmp_path: Path) -> None:
    one = {name: step(engine(budget=150), *objective(name)) for name in ("sft", "sigmoid", "kto")}
    in_processes(2, tmp_path)
    for name, (loss, gradients) in one.items():
        two = torch.load(tmp_path / f"{name}.pt", weights_only=True)
        assert_equal((loss, gradients), (two["loss"], two["gradients"]), 2e-5)
        assert two["world_size"] == 2
        assert two["early"] > len(gradients) / 2, "more than half of them go out before the backward has ended"
    for case in SHARED:
        two = torch.load(tmp_path / f"{'-'.join(case)}.pt", weights_only=True)
        assert two["part"] < 0.6, "a process holds about half of the weights"
        one_process = step(trainer(*case[1:]), *objective(case[0]))
        assert all(float(g.norm()) > 0 for g in one_process[1].values())
        assert_equal(one_process, (two["loss"], two["gradients"]), 1e-5)
    for number in range(len(ROWS)):
        assert_as_shared(number, tmp_path)


@pytest.mark.long
def test_two_teams_of_two_equal_one(tmp_path: Path) -> None:
    """Each has its own micro-batches; what its two processes find counts once, KTO's baseline included."""
    in_processes(4, tmp_path)
    assert_as_shared(KTO, tmp_path)


def in_processes(count: int, out: Path) -> None:
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OUT": str(out)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(count), __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]


def assert_as_shared(number: int, out: Path) -> None:
    """What one process makes of a case of `ROWS` is what several wrote that share the tokens of each row."""
    name, trained, how, _ = ROWS[number]
    two, e = torch.load(out / f"rows-{number}.pt", weights_only=True), trainer(trained, how)
    measured = e.measure(*objective(name)).values["loss"]
    np.testing.assert_allclose(two["measured"], measured, rtol=1e-5, atol=1e-5)
    assert_equal(step(e, *objective(name)), (two["loss"], two["gradients"]), 1e-5)
    assert two["tokens"] == objective(name)[0].lengths.sum(), "each token counts once"


def _in_a_process_group() -> None:
    if os.environ["WORLD_SIZE"] == "4":
        _share_tokens(*ROWS[KTO], Path(os.environ["OUT"]) / f"rows-{KTO}.pt")
        leave_group()
        return
    messages.BUCKET_BYTES = 20_000  # many of them
    real, early = messages._Pass.complete, [0]

    def complete(self: Any, place: int) -> None:
        real(self, place)
        early.append(len(self._sent))

    messages._Pass.complete = complete  # type: ignore[method-assign]
    for name in ("sft", "sigmoid", "kto"):
        e = engine(budget=150)
        loss, gradients = step(e, *objective(name))
        if e.world.main:
            saved = {"loss": loss, "gradients": gradients, "world_size": e.world.size, "early": max(early)}
            torch.save(saved, Path(os.environ["OUT"]) / f"{name}.pt")
    for case in SHARED:
        e = trainer(*case[1:], spread=True)
        weights = list(e.trunk.parameters())
        part = sum(own(p).numel() for p in weights) / sum(p.numel() for p in weights)
        loss, gradients = step(e, *objective(case[0]))
        if e.world.main:
            saved = {"loss": loss, "gradients": gradients, "part": part}
            torch.save(saved, Path(os.environ["OUT"]) / f"{'-'.join(case)}.pt")
    for number, case in enumerate(ROWS):
        _share_tokens(*case, Path(os.environ["OUT"]) / f"rows-{number}.pt")
    leave_group()


def _share_tokens(name: str, trained: str, how: str, spread: bool, out: Path) -> None:
    e, updates = trainer(trained, how, spread=spread), list[Any]()
    e.world.form_teams(2)
    team, real = e.world.team, e.update
    e.trunk.split = Split(team.place, team.size, team.exchange, team.add)
    e.update = lambda *given: updates.append(real(*given)) or updates[0]  # type: ignore[method-assign]
    measured = e.measure(*objective(name)).values["loss"]
    loss, gradients = step(e, *objective(name))
    if e.world.main:
        saved = {"loss": loss, "gradients": gradients, "measured": measured.tolist(), "tokens": updates[0].tokens}
        torch.save(saved, out)


def test_evaluation_over_uneven_batches_is_per_example() -> None:
    groups, goal = objective("sigmoid")
    whole = engine().measure(groups, goal)
    cut = engine(budget=70).measure(groups, goal)
    assert cut.index.tolist() == list(range(12))
    for name, values in whole.values.items():
        np.testing.assert_allclose(cut.values[name], values, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("budget", [60, 10_000])
def test_the_baseline_of_kto_is_the_mean_over_the_whole_update(budget) -> None:
    """By hand: a plain float64 forward of each prompt with its lent answer, less the reference, at the start."""
    other = mismatch(GROUPS[1], 0, 10**6)
    lent = np.full((12, 1), -130.0, np.float32)
    model = tiny.model("llama").double()
    ratios = []
    for g in other:
        completion, mask = g.completions[0], torch.tensor(g.masks[0])
        logits = model(input_ids=torch.tensor([[*g.prompt, *completion]])).logits[0, len(g.prompt) - 1 : -1]
        logp = torch.log_softmax(logits.detach(), -1)[torch.arange(len(completion)), torch.tensor(completion).long()]
        ratios.append(float(logp[mask].sum()) + 130.0)
    goal = Unpaired(other, reference(GROUPS[1]), lent, 0.1, {})
    e = engine(budget=budget)
    update = e.update(GROUPS[1], np.arange(12), goal)
    assert np.mean(ratios) > 0
    assert goal.baseline == pytest.approx(np.mean(ratios), rel=1e-5)
    assert update.metrics["kl"].mean == pytest.approx(np.mean(ratios), rel=1e-5)


def test_out_of_memory_halves_the_budget_and_repeats_the_update(monkeypatch) -> None:
    whole = step(engine(), *objective("sft"))
    said: list[str] = []
    e = engine(budget=400, adapt=True, notice=said.append)
    real = Engine.forward

    def forward(self, objective, batch):
        if len(batch.tokens_T) > 110:
            raise torch.OutOfMemoryError("no memory")
        return real(self, objective, batch)

    monkeypatch.setattr(Engine, "forward", forward)
    assert_equal(whole, step(e, *objective("sft")), 2e-5)
    assert e.budget.tokens == 100
    assert len(said) == 2


def test_out_of_memory_on_one_example_says_what_to_do(monkeypatch) -> None:
    def forward(self, objective, batch):
        raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 1 bytes")

    monkeypatch.setattr(Engine, "forward", forward)
    with pytest.raises(OutOfMemory, match="max_length"):
        step(engine(adapt=True), *objective("sft"))
    with pytest.raises(OutOfMemory, match="tokens_per_microbatch"):
        step(engine(adapt=False), *objective("sft"))


def test_a_nan_stops_and_names_the_example() -> None:
    groups, goal = objective("sigmoid")
    goal.reference[7, 0] = np.nan
    with pytest.raises(TrainingError, match=r"not finite.*random:7\b"):
        step(engine(), groups, goal)


def test_fp16_backs_off_until_it_fits_and_loses_no_update() -> None:
    """A loss so large that fp16 overflows at the first scale, 65,536."""
    groups, goal = objective("sft")

    class Steep(Imitate):
        def __call__(self, out, batch):
            result = goal(out, batch)
            return result._replace(terms=[t._replace(values=100 * t.values) for t in result.terms])

    steep = Steep()
    exact = step(engine(), groups, steep)
    e = engine(compute=torch.float16)
    loss, gradients = step(e, groups, steep)
    assert e.backoffs > 0, "nothing overflowed: the test does not test"
    assert 1 <= e.scaler.get_scale() < 65536
    assert loss == pytest.approx(exact[0], rel=0.01)
    name = "model.lm_head.weight"
    assert (gradients[name] - exact[1][name]).norm() < 0.02 * exact[1][name].norm()


def test_a_scale_below_one_stops_the_run() -> None:
    groups, goal = objective("sigmoid")
    goal.reference[3] = [np.inf, 0]
    with pytest.raises(TrainingError, match="loss scale is below 1"):
        step(engine(compute=torch.float16), groups, goal)


if __name__ == "__main__":
    _in_a_process_group()
    print(json.dumps({"done": True}))
