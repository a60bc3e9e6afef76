"""Runs whose answers come from a server: the same as with the own sampler where they must be, stopped where the server
answers from other weights, and continued once it is mended."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.torch import load_file

import runs
from prefiere.asked import endpoint
from prefiere.console import Display
from prefiere.launch import Outcome, launch
from prefiere.plan.roles import servers_of
from prefiere.sample.local import LocalRollouts
from prefiere.sample.sampling import Sample, Sampling
from prefiere.sample.served import FLOOR, prompt_seed
from prefiere.settings import GRPO
from serving import Reply, RolloutServer

OPTIONS: dict[str, Any] = {
    "lora": True, "lora_r": 4, "max_steps": 3, "batch_size": 4, "num_generations": 4, "learning_rate": 3e-2,
    "warmup_steps": 0, "sample_steps": 0, "logging_steps": 1, "save_steps": 100,
}  # fmt: skip


@pytest.fixture(autouse=True)
def impatient(monkeypatch) -> None:
    monkeypatch.setattr(endpoint.time, "sleep", lambda seconds: None)


@pytest.fixture
def server(tmp_path) -> Iterator[RolloutServer]:
    runs.policy_settings(tmp_path, "grpo")  # which makes the model
    with RolloutServer(tmp_path / "model") as made:
        yield made


def run(tmp_path: Path, server: RolloutServer | None, method: str = "grpo", **options: Any) -> Outcome:
    given = {**OPTIONS, "rollouts": server.url if server else None, **options}
    return launch(runs.policy_settings(tmp_path, method, **given), display=Display(quiet=True))


def column(outcome: Outcome, name: str) -> list[float]:
    return [row[name] for row in outcome.run.metrics if name in row]


def seeded_as_a_server(monkeypatch) -> None:
    """Let the own sampler draw each prompt's answers from the seed that a server would get, with importance weights as
    for one: this model likes the padding, which no sampler draws, so that they are not quite 1."""
    monkeypatch.setattr(LocalRollouts, "limit", 1.0)
    real = LocalRollouts.sample

    def sample(
        self: Any, prompts: Sequence[np.ndarray], sampling: Sampling, *, version: int,
        numbers: Sequence[int] | None = None, progress: Callable[[int], None] | None = None,
    ) -> list[Sample]:  # fmt: skip
        found = []
        for i, prompt in enumerate(prompts):
            number = i if numbers is None else numbers[i]
            alone = replace(sampling, seed=prompt_seed(sampling.seed, number))
            found += [replace(s, prompt=i) for s in real(self, [prompt], alone, version=version)]
        return found

    monkeypatch.setattr(LocalRollouts, "sample", sample)


@pytest.mark.parametrize(
    ("method", "lora"),
    [("grpo", True), *(pytest.param(m, lora, marks=pytest.mark.long) for m, lora in (("ppo", True), ("grpo", False)))],
)
def test_a_served_run_is_the_run_with_the_own_sampler(tmp_path, server, monkeypatch, method, lora) -> None:
    """Same answers, and weights after three steps, up to the rounding of two forwards."""
    options = {"sample_steps": 3, "num_generations": 4, "num_ppo_epochs": 2, "lora": lora}
    options |= {} if lora else {"learning_rate": 3e-3}
    with RolloutServer(tmp_path / "model") as second:
        served = run(tmp_path, server, method, rollouts=[server.url, second.url], **options)
        assert len(second.routes("completions")) > 8, "each takes its share"
    seeded_as_a_server(monkeypatch)
    own = run(tmp_path, None, method, out=str(tmp_path / "own"), **options)
    assert [row["completion"] for row in served.run.samples] == [row["completion"] for row in own.run.samples]
    a, b = runs.weights(served.run), runs.weights(own.run)
    assert max(float((a[n] - b[n]).abs().max()) for n in a) < 1e-4
    start = {} if lora else load_file(tmp_path / "model" / "model.safetensors")
    moved = [float((t - start[n] if start else t).abs().max()) for n, t in b.items() if start or "lora_B" in n]
    assert max(moved) > (3e-2 if lora else 5e-3), "the policy has learnt"
    for name in ("sampler_drift", "val/ratio", "loss/policy_avg", "objective/kl", "tis/clipfrac"):
        assert column(served, name) == pytest.approx(column(own, name), rel=1e-3, abs=1e-5), name
    assert runs.unknown_columns(served.run.metrics) == set()


def test_each_version_has_a_name_and_a_path_of_its_own_and_none_is_left(tmp_path, server) -> None:
    done = run(tmp_path, server)
    loaded = server.routes("load_lora_adapter")
    assert len({b["lora_name"] for b in loaded}) == len({b["lora_path"] for b in loaded}) == len(loaded) == 3
    assert all(Path(b["lora_path"]).is_absolute() for b in loaded)
    assert not server.adapters, "it was asked to forget them all"
    assert not (done.run.folder / "adapters").exists()
    said = {c["name"]: c for c in done.run.environment["choices"]}["rollouts"]
    assert said["value"] == FLOOR
    assert server.url in said["why"]
    assert done.run.environment["plan"]["rollouts"] == [server.url]


def test_a_server_reads_all_weights_anew_or_says_how_it_would(tmp_path, server) -> None:
    """Each version is read once, and nothing is left of it; a server that keeps the one before is stopped at once."""
    full = {"lora": False, "learning_rate": 3e-3}
    done = run(tmp_path, server, **full)
    read = [b["kwargs"]["weights_path"] for b in server.routes("/collective_rpc")]
    assert len(set(read)) == len(server.routes("/reset_prefix_cache")) == len(read) == 3
    assert not (done.run.folder / "adapters").exists()
    assert {b["model"] for b in server.routes("completions")} == {"base"}
    server.behind, server.reloaded = 1, []
    stopped = run(tmp_path, server, out=str(tmp_path / "behind"), **full)
    assert stopped.stopped is not None
    assert "answers from other weights than it was given" in stopped.stopped.text
    server.fails["/collective_rpc"] = lambda truth: (404, b"Not Found")
    with pytest.raises(ValueError, match=r"404 Not Found.* VLLM_SERVER_DEV_MODE=1 in its environment, or .* lora=true"):
        run(tmp_path, server, out=str(tmp_path / "cannot"), **full)
    assert not [*(tmp_path / "cannot").glob("adapters/*")], "a whole model is large"
    with pytest.raises(ValueError, match=r"max_staleness: this run trains every weight.*max_staleness=0, or lora=true"):
        run(tmp_path, server, out=str(tmp_path / "ahead"), max_staleness=1, **full)
    assert not (tmp_path / "ahead").exists()


@pytest.mark.long
def test_a_failing_server_stops_the_run_and_a_mended_one_continues_it(tmp_path, server) -> None:
    """First it answers from the weights of before, which is noticed within a step; then it dies, and another one takes
    over. The run ends as if nothing had happened."""
    whole = run(tmp_path, server, out=str(tmp_path / "whole"))
    real, loads = server._reply, len(server.routes("load_lora_adapter"))

    def stale(route: str, body: dict[str, Any]) -> Reply:
        server.behind = int(len(server.routes("load_lora_adapter")) == loads + 2)  # the second version of this run
        return real(route, body)

    server._reply = stale  # type: ignore[method-assign]
    stopped = run(tmp_path, server)
    assert stopped.stopped is not None
    assert stopped.stopped.kind == "rollouts"
    assert "answers from other weights than it was given" in stopped.stopped.text
    assert (stopped.run.status["state"], stopped.run.status["step"]) == ("stopped", 1)
    assert not stopped.run.model.exists()
    server._reply = real  # type: ignore[method-assign]
    server.behind = 0
    count = len(server.routes("completions"))

    def dead(truth: Reply) -> Reply:
        return truth if len(server.routes("completions")) < count + 14 else (500, b"\x1b[31mCUDA error\nlines")

    server.fails["completions"] = dead  # 8 of the check, 4 of the first step
    stopped = run(tmp_path, server)
    assert stopped.stopped is not None
    assert stopped.stopped.kind == "rollouts"
    assert "no answer after 5 tries (500 Internal Server Error: ⟨U+001B⟩[31mCUDA error lines)" in stopped.stopped.text
    assert "\n" not in stopped.stopped.text
    assert (stopped.run.status["state"], stopped.run.status["step"]) == ("stopped", 2)
    with RolloutServer(tmp_path / "model") as another:
        done = run(tmp_path, another)
        assert done.run.status["state"] == "finished"
        runs.assert_same_run(done.run, whole.run)


@pytest.mark.long
def test_a_run_goes_on_where_a_server_failed_the_answers_along_it(tmp_path, server) -> None:
    """Before the first update, after one in the middle, and after the last one: nothing is drawn twice or left out."""
    options: dict[str, Any] = {"sample_steps": 1, "samples_per_prompt": 2, "guard": False}
    whole = run(tmp_path, server, out=str(tmp_path / "whole"), **options)
    real = server._reply
    for step in (0, 2, 3):

        def dead(route: str, body: dict[str, Any], step: int = step) -> Reply:
            along = route == "completions" and body["n"] == 2 and body["model"].endswith(f"-v{step}")
            return (503, b"gone") if along else real(route, body)

        server._reply = dead  # type: ignore[method-assign]
        stopped = run(tmp_path, server, **options)
        assert stopped.stopped is not None
        assert stopped.stopped.kind == "rollouts"
        assert "no answer after 5 tries (503" in stopped.stopped.text
        assert (stopped.run.status["state"], stopped.run.status["step"]) == ("stopped", step)
        assert not stopped.run.model.exists()
    server._reply = real  # type: ignore[method-assign]
    done = run(tmp_path, server, **options)
    assert done.run.status["state"] == "finished"
    runs.assert_same_run(done.run, whole.run)


def test_a_server_of_another_model_is_refused_before_anything_is_written(tmp_path, server) -> None:
    server.model = runs.ragged_folder(tmp_path / "other", seed=5)
    with pytest.raises(ValueError, match=r"nats per token off what training says of them.*the run's model"):
        run(tmp_path, server)
    assert not (tmp_path / "run").exists()
    server.close()
    with pytest.raises(ValueError, match=r"no answer after 5 tries \(.*refused"):
        run(tmp_path, server)
    assert not (tmp_path / "run").exists()


def test_what_a_killed_process_left_with_the_server_goes(tmp_path, server) -> None:
    runs.kill(runs.policy_settings(tmp_path, "grpo", **OPTIONS, rollouts=server.url), after=1)
    for left in list(server.adapters):  # a kill closes nothing
        assert left.startswith("prefiere-")
    run(tmp_path, server)
    assert not server.adapters
    assert not (tmp_path / "run" / "adapters").exists()


def test_settings_that_no_server_can_follow_are_refused_in_a_line() -> None:
    some = {"model": "m", "data": "d", "out": "o", "reward": "r"}
    asked = GRPO(**some, rollouts="http://host:8000/v1")
    assert [s.address.url for s in servers_of(asked, adapted=True)] == ["http://host:8000/v1"]
    assert servers_of(asked, adapted=False) == servers_of(asked, adapted=True)
    with pytest.raises(ValueError, match="no address of an endpoint: write http://host:8000/v1"):
        servers_of(GRPO(**some, rollouts=["host:8000"]), adapted=True)
    with pytest.raises(ValueError, match="rollouts_folder is for rollout servers"):
        GRPO(**some, rollouts_folder="x")


@pytest.mark.long
def test_one_step_off_answers_are_asked_for_while_the_run_learns(tmp_path, server) -> None:
    """Answers of step t + 1 come from the weights of step t, which train meanwhile; a run that goes on begins anew."""
    settings = {"max_staleness": 1, "max_steps": 4}
    killed = {**OPTIONS, **settings, "rollouts": server.url, "save_steps": 2}
    runs.kill(runs.policy_settings(tmp_path, "grpo", **killed), after=3)
    stepped = len(server.asked)
    done = run(tmp_path, server, **settings)
    assert done.run.status["state"] == "finished"
    assert column(done, "staleness") == [0.0, 1.0, 0.0, 1.0], "it went on at step 2"
    assert column(done, "val/ratio") == [pytest.approx(1.0, abs=1e-5)] * 4
    drift, weighed = column(done, "sampler_drift"), column(done, "tis/clipfrac")
    assert min(drift[1], drift[3]) > 0.02 > max(drift[0], drift[2]), "an update away from what was sampled"
    assert len(weighed) == 4
    first = [(route, body.get("model", "")[-3:], body.get("n")) for route, body in server.asked[:stepped]]
    asked = [(route, model) for route, model, n in first if route[:4] == "load" or n == 4]
    assert [a for i, a in enumerate(asked) if a not in asked[:i]] == [
        ("load_lora_adapter", ""), ("completions", "-v0"), ("completions", "-v1"), ("completions", "-v2"),
    ]  # fmt: skip
    assert [model for _, model in asked if model == "-v0"] == ["-v0"] * 8, "two steps' prompts"


def test_one_step_off_a_server_with_the_weights_of_before_is_stopped_as_well(tmp_path, server) -> None:
    server.behind = 1
    stopped = run(tmp_path, server, max_staleness=1)
    assert stopped.stopped is not None
    assert stopped.stopped.kind == "rollouts"
    assert "answers from other weights than it was given" in stopped.stopped.text
    assert stopped.run.status["step"] == 1
