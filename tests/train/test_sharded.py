"""Weights, or the tokens of rows, spread over two processes: whole runs against one process, and checkpoints that
either kind takes up."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import PeftModel
from torch.distributed.fsdp import CPUOffloadPolicy
from transformers import AutoModelForCausalLM

import runs
from ending import QUIET, assert_near, killed, weights
from prefiere.estimate.estimate import estimate
from prefiere.estimate.simulate import simulate
from prefiere.estimate.workload import longest, workload
from prefiere.evaluate.functions import Answered
from prefiere.evaluate.judges import Judge
from prefiere.launch import launch
from prefiere.models.shard import spread, store
from prefiere.models.shard.spread import own
from prefiere.models.trunk import Trunk
from prefiere.plan.device import Device
from prefiere.publish.step import write_step
from prefiere.run import Run
from prefiere.settings import DPO, SFT, Reward, Settings
from prefiere.train import checkpoint, setup
from prefiere.train.engine import Engine
from prefiere.world import leave_group

CASES: dict[str, tuple[Any, dict[str, Any]]] = {
    "sft": (SFT, {"model": "tied", "gradient_checkpointing": True, "lora": False}),
    "dpo": (DPO, {"tokens_per_microbatch": 120, "save_steps": 2, "max_steps": 4, "judge": "rewarding:graded"}),
    "kto": (DPO, {"loss_type": "kto", "tokens_per_microbatch": 120, "lora": True, "gradient_checkpointing": True}),
    "reward": (Reward, {}),
    "reward-lora": (Reward, {"lora": True, "model": "tied"}),
    "ppo": ("ppo", {"model": "ragged", "num_ppo_epochs": 1}),
    "ppo-lora": ("ppo", {"lora": True, "num_ppo_epochs": 1, "reward": "mounted"}),
    "grpo": ("grpo", {"model": "ragged", "batch_size": 3, "gradient_checkpointing": True}),
    "dpo-on": (DPO, {"model": "adapter"}),
}

ROWS = {"sft": "none", "dpo": "full", "kto": "none", "reward": "none"}
"""What two processes run again, sharing the tokens of each row, and whether they share the weights as well."""

ALONE_SHORT = "sft"
"""The case in which shard is not said, and the second process alone has too little memory for all weights."""


def given(tmp: Path, name: str, **options: Any) -> Settings:
    method, asked = CASES[name]
    asked = {"max_steps": 2, **asked, **options}
    for key in ("model", "reward"):
        if asked.get(key) in ("tied", "ragged", "mounted", "adapter"):
            asked[key] = str(tmp / asked[key])
    made: Settings = (runs.policy_settings if isinstance(method, str) else runs.settings)(tmp, method, **asked)
    return made


def models(tmp: Path) -> None:
    """What the cases train: a model, one whose answers end early, one whose head is its embeddings, and two adapters of
    the first: one that rewards, and one to go on from."""
    runs.model_folder(tmp / "model")
    runs.ragged_folder(tmp / "ragged")
    runs.model_folder(tmp / "tied", tie_word_embeddings=True)
    made = launch(runs.settings(tmp, Reward, lora=True, max_steps=1, out=str(tmp / "rewarding")), display=QUIET).run
    made.model.rename(tmp / "mounted")
    made = launch(runs.settings(tmp, SFT, lora=True, max_steps=1, out=str(tmp / "tuning")), display=QUIET).run
    made.model.rename(tmp / "adapter")


@contextmanager
def short_of_memory() -> Iterator[None]:
    """This process finds 1 MiB free: the weights of a tiny model fit, and not with gradients and moments."""
    real = Device.of

    def of(*args: Any, **options: Any) -> Device:
        return replace(real(*args, **options), memory=2**20)

    Device.of = of  # type: ignore[method-assign]
    try:
        yield
    finally:
        Device.of = real  # type: ignore[method-assign]


def weighed(s: Settings, out: Path) -> None:
    """A run that writes down, after each update, how many bytes this process holds: of the trunk's weights, of the
    optimizer's moments, and of the weights before they were spread, and how many answers it has scored."""
    real, spread, scores, read = Engine.update, setup.shard, Judge.scores, list[int]()
    scored = [0]

    def update(self: Engine, *args: Any) -> Any:
        found = real(self, *args)
        held = sum(own(p).nbytes for p in self.trunk.parameters())
        moments = sum(own(x).nbytes for state in self.optimizer.state.values() for x in state.values() if x.ndim)
        out.write_text(json.dumps([held, moments, sum(read[:1]), scored[0]]))
        return found

    def noted(trunk: Trunk, mesh: Any, **options: Any) -> None:
        read.append(sum(p.nbytes for p in trunk.parameters() if not p.is_meta))
        spread(trunk, mesh, **options)

    def counted(self: Judge, asked: Answered) -> Any:
        scored[0] += len(asked.completions)
        return scores(self, asked)

    Engine.update, setup.shard, Judge.scores = update, noted, counted  # type: ignore[method-assign]
    try:
        launch(s, display=QUIET)
    finally:
        Engine.update, setup.shard, Judge.scores = real, spread, scores  # type: ignore[method-assign]


@pytest.fixture(scope="module")
def tmp(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every case as run by one process, and by two that share its weights; both as killed after a checkpoint."""
    tmp = tmp_path_factory.mktemp("sharded")
    models(tmp)
    for name in CASES:
        weighed(given(tmp, name, out=str(tmp / f"{name}-one")), tmp / f"{name}-alone.json")
    killed(given(tmp, "dpo", out=str(tmp / "dpo-plain")), 3)
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "WHERE": str(tmp)}
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", __file__]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=600, check=False)
    assert (tmp / "done").exists(), done.stderr[-6000:]
    assert done.returncode != 0, "the last process was to be killed"
    return tmp


def _in_a_process_group() -> None:
    tmp = Path(os.environ["WHERE"])
    for name in CASES:
        s = given(tmp, name, out=str(tmp / f"{name}-two"), shard="auto" if name == ALONE_SHORT else "full")
        with short_of_memory() if name == ALONE_SHORT and os.environ["RANK"] == "1" else nullcontext():
            weighed(s, tmp / f"{name}-{os.environ['RANK']}.json")
    for name, shard in ROWS.items():
        launch(given(tmp, name, out=str(tmp / f"{name}-rows"), shard=shard, sequence_parallel_size=2), display=QUIET)
    killed(given(tmp, "dpo", out=str(tmp / "dpo-parts"), shard="full"), 3)
    if os.environ["RANK"] == "0":
        for copy in ("dpo-across", "dpo-rest"):
            shutil.copytree(tmp / "dpo-parts", tmp / copy)
    for name in ("dpo-parts", "dpo-plain"):
        launch(given(tmp, "dpo", out=str(tmp / name), shard="full"), display=QUIET)
    policies, fully = list[Any](), spread.fully_shard

    def noted(*args: Any, **options: Any) -> Any:
        policies.append(options["offload_policy"])
        return fully(*args, **options)

    spread.fully_shard = noted  # type: ignore[assignment]
    launch(given(tmp, "dpo", out=str(tmp / "dpo-rest"), cpu_offload=True), display=QUIET)
    spread.fully_shard = fully
    assert policies
    assert all(isinstance(p, CPUOffloadPolicy) for p in policies)
    (tmp / "done").touch()
    real, written = store.write_parts, list[int]()

    def write(*args: Any) -> None:
        written.append(1)
        if len(written) == 2 and os.environ["RANK"] == "1":
            os.kill(os.getpid(), signal.SIGKILL)
        real(*args)

    checkpoint.store.write_parts = write
    launch(given(tmp, "dpo", out=str(tmp / "dpo-shot"), shard="full"), display=QUIET)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_two_processes_that_share_the_weights_equal_one(tmp: Path, name: str) -> None:
    one, two = Run.open(tmp / f"{name}-one"), Run.open(tmp / f"{name}-two")
    assert two.environment["plan"]["shard"] == "full"
    assert one.environment["plan"]["shard"] == "none"
    assert_near(one, two, 1e-6)
    for row in two.metrics[1:]:
        assert row.get("val/ratio", 1.0) == 1.0, "on a first pass nothing has changed yet"


@pytest.mark.long
@pytest.mark.parametrize("name", ROWS)
def test_two_processes_that_share_the_tokens_of_a_row_equal_one(tmp: Path, name: str) -> None:
    one, two = Run.open(tmp / f"{name}-one"), Run.open(tmp / f"{name}-rows")
    assert two.environment["world_size"] == 2
    assert two.recipe["sequence_parallel_size"] == 2
    assert_near(one, two, 1e-6)


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpo", "ppo", "ppo-lora", "grpo"])
def test_every_answer_is_scored_by_one_process(tmp: Path, name: str) -> None:
    """By a judge, by rewards that are functions, and by one that is mounted on the sharded base."""
    alone, *both = (json.loads((tmp / f"{name}-{who}.json").read_text())[-1] for who in ("alone", 0, 1))
    assert sum(both) == alone
    assert min(both) > alone / 4


@pytest.mark.long
def test_what_was_shared_loads_in_plain_transformers_and_peft(tmp: Path) -> None:
    AutoModelForCausalLM.from_pretrained(tmp / "sft-two" / "model")
    base = AutoModelForCausalLM.from_pretrained(tmp / "model")
    PeftModel.from_pretrained(base, tmp / "kto-two" / "model")


@pytest.mark.long
def test_stopped_and_resumed_by_two_is_uninterrupted_to_the_last_bit(tmp: Path) -> None:
    runs.assert_same_run(Run.open(tmp / "dpo-two"), Run.open(tmp / "dpo-parts"))


@pytest.mark.long
def test_a_run_goes_on_with_its_weights_resting_on_the_processor(tmp: Path) -> None:
    """From a checkpoint of a run without that, to the last bit. Here all is on a processor anyway."""
    runs.assert_same_run(Run.open(tmp / "dpo-two"), Run.open(tmp / "dpo-rest"))


@pytest.mark.long
def test_a_shared_run_goes_on_alone_and_the_other_way_round(tmp: Path) -> None:
    one = Run.open(tmp / "dpo-one")
    assert_near(one, Run.open(tmp / "dpo-plain"), 1e-6)
    alone = launch(given(tmp, "dpo", out=str(tmp / "dpo-across"), shard="full"), display=QUIET).run
    assert_near(one, alone, 1e-6)


@pytest.mark.long
def test_a_kill_while_parts_are_written_leaves_the_checkpoint_before(tmp: Path) -> None:
    shot = Run.open(tmp / "dpo-shot")
    assert [p.name for p in checkpoint.found(shot.checkpoints)] == ["step-00000002"]
    assert checkpoint.damage(shot.checkpoints / "step-00000002") is None
    assert_near(Run.open(tmp / "dpo-one"), launch(given(tmp, "dpo", out=str(shot.folder)), display=QUIET).run, 1e-6)


@pytest.mark.long
def test_a_step_of_a_shared_run_is_written_as_a_model(tmp: Path) -> None:
    for kind in ("one", "two"):
        write_step(Run.open(tmp / f"dpo-{kind}"), 2, tmp / f"step-{kind}")
    one, two = weights(tmp / "step-one"), weights(tmp / "step-two")
    assert one.keys() == two.keys()
    assert all(torch.allclose(x, two[n], atol=1e-6) for n, x in one.items())


@pytest.mark.long
@pytest.mark.parametrize("name", ["dpo", "sft", "reward-lora"])
def test_an_estimate_books_what_each_process_holds(tmp: Path, name: str) -> None:
    device = Device("cpu", 2**34, False, processes=2)
    work = workload(given(tmp, name, out=str(tmp / "new"), shard="full"), device, QUIET)
    sim, booked = simulate(work, longest(work)[0], 1), estimate(work, None).memory
    held, moments, *_ = zip(*(json.loads((tmp / f"{name}-{rank}.json").read_text()) for rank in (0, 1)), strict=True)
    assert sum(held) == pytest.approx(sim.trunk, rel=0.02), "buffers are on each"
    assert max(held) == pytest.approx(booked.weights - sim.beside - sim.reference / 2, rel=0.1)
    assert sum(moments) == 8 * sim.trained
    assert max(moments) == pytest.approx(booked.trained, rel=0.1)


@pytest.mark.long
@pytest.mark.parametrize("name", CASES)
def test_the_first_process_alone_reads_the_weights(tmp: Path, name: str) -> None:
    """But where others join them: a critic's. An adapter to go on from, which is the reference too, each may read."""
    (_, _, first, _), (_, _, second, _) = (json.loads((tmp / f"{name}-{rank}.json").read_text()) for rank in (0, 1))
    assert first > 0
    if name.startswith("ppo"):
        assert second == first
    else:
        assert second <= (2 * sum(x.nbytes for x in weights(tmp / "adapter").values()) if name == "dpo-on" else 0)


@pytest.mark.long
def test_no_code_lies_in_the_parts(tmp: Path) -> None:
    """torch's own format keeps the places of parts in a pickle."""
    step = checkpoint.found(Run.open(tmp / "dpo-two").checkpoints)[-1]
    kinds = {p.name: p.suffix for p in step.iterdir()}
    assert set(kinds.values()) == {".json", ".pt", ".safetensors"}
    assert len([n for n in kinds if n.startswith("shard-")]) == 2
    assert json.loads((step / "manifest.json").read_text())["files"].keys() == kinds.keys() - {"manifest.json"}


if __name__ == "__main__":
    _in_a_process_group()
    leave_group()
