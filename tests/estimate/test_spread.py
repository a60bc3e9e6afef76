"""What an estimate says of several GPUs: each holds all, they share, or it does not fit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

import runs
from prefiere.console import Display
from prefiere.estimate.cards import card_of
from prefiere.estimate.estimate import Forecast, estimate, forecast, until_it_fits
from prefiere.estimate.workload import workload
from prefiere.plan.device import Device
from prefiere.settings import DPO

QUIET = Display(quiet=True)


def test_a_small_model_is_whole_on_each(tmp_path: Path) -> None:
    found = forecast(runs.settings(tmp_path, DPO), "h100", QUIET, gpus=4, nodes=2)
    assert found.fits
    assert found.shard == "none"
    assert found.spread == "8 GPUs, 4 on each of 2 nodes: each holds all weights and the optimizer (shard=none)"


@pytest.mark.parametrize(
    ("room", "how", "fits"), [(1.3, "none", True), (0.95, "hybrid", True), (0.75, "full", True), (0.02, "full", False)]
)
def test_what_does_not_fit_on_one_is_shared(tmp_path: Path, room: float, how: str, fits: bool) -> None:
    """Room, in what a process needs that holds all of it. Two GPUs of a node share 12.5 of its 20.9 MB, and put two
    layers and the ends together meanwhile (18.4 MB); on two nodes four do (14.2 MB)."""
    card, model = card_of("h100"), runs.model_folder(tmp_path / "wide", hidden_size=256, intermediate_size=512)
    device = Device("cuda", 2**40, True, processes=4, nodes=2)
    settings = runs.settings(tmp_path, model=str(model), lora=False, sample_steps=0, tokens_per_microbatch=64)
    whole = estimate(workload(settings, device, QUIET), card).memory.peak
    small = replace(device, memory=int(room * whole))
    _, work, _, enough = until_it_fits(workload(settings, small, QUIET), card, small.memory)
    assert (work.plan.shard, enough) == (how, fits)


def test_shares_of_weights_and_moments_add_up(tmp_path: Path) -> None:
    card, alone = card_of("h100"), Device("cuda", 2**40, True)
    one = estimate(workload(runs.settings(tmp_path, DPO), alone, QUIET), card).memory
    for processes, nodes, shard, parts in [
        (4, 1, "full", 4),
        (4, 2, "hybrid", 2),
        (4, 2, "full", 4),
        (4, 2, "none", 1),
    ]:
        device = replace(alone, processes=processes, nodes=nodes)
        each = estimate(workload(runs.settings(tmp_path, DPO, shard=shard), device, QUIET), card).memory
        assert each.weights == pytest.approx(one.weights / parts, abs=8)
        assert each.trained == pytest.approx(one.trained / parts, abs=8)


def test_what_rests_on_the_processor_is_booked_there(tmp_path: Path) -> None:
    """Weights, moments and gradients of a part; each GPU keeps what is put together, and nothing between updates."""
    card, four = card_of("h100"), Device("cuda", 2**40, True, processes=4)
    settings = runs.settings(tmp_path, DPO, lora=False, sample_steps=0, shard="full")
    work = workload(settings, four, QUIET)
    on, off = (
        estimate(w, card).memory
        for w in (work, workload(settings.model_copy(update={"cpu_offload": True}), four, QUIET))
    )
    gradients = on.trained // 2  # fp32, where the moments are two of these
    assert (off.weights, off.trained, on.host) == (0, 0, 0)
    assert off.host == pytest.approx(on.weights + on.trained + gradients, abs=8)
    assert on.update - gradients < off.update < on.update
    assert off.peak < on.peak - on.weights - on.trained


def test_a_base_that_is_spread_is_not_told_to_be_quantized(tmp_path: Path) -> None:
    """Both at once is refused: that is no advice, and no error of the estimate."""
    device = Device("cuda", 2**10, True, processes=4)
    settings = runs.settings(tmp_path, DPO, lora=True, sample_steps=0, tokens_per_microbatch=64, shard="full")
    made, _, _, fits = until_it_fits(workload(settings, device, QUIET), card_of("h100"), device.memory)
    assert not fits
    assert made == ["gradient_checkpointing=true", "lora_r=4"]


@pytest.mark.long
def test_full_training_rests_on_the_processor_before_rows_are_cut(tmp_path: Path) -> None:
    card, settings = card_of("h100"), runs.settings(tmp_path, DPO, lora=False, sample_steps=0)
    device = Device("cuda", 2**40, True, processes=4)
    asked = settings.model_copy(update={"shard": "full", "gradient_checkpointing": True, "tokens_per_microbatch": 32})
    room = estimate(workload(asked, device, QUIET), card).memory.peak - 1
    small = replace(device, memory=room)
    made, work, found, fits = until_it_fits(workload(settings, small, QUIET), card, room)
    assert fits
    assert made[-1] == "cpu_offload=true"
    assert work.plan.settings.cpu_offload
    shown = Forecast(found, room, card, made, fits, small, work.plan.shard).spread
    assert shown is not None
    assert shown.endswith("GiB of each node's own memory (cpu_offload)")
