"""An estimate books what really is allocated; it proposes what makes a run fit, and loads no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quantized
import runs
from prefiere.console import Display
from prefiere.estimate.cards import CARDS, card_of
from prefiere.estimate.counter import CostCounter
from prefiere.estimate.estimate import estimate, until_it_fits
from prefiere.estimate.simulate import backward, simulate
from prefiere.estimate.workload import Workload, longest, workload
from prefiere.kernels.split import Split
from prefiere.models.classifier import load_reward
from prefiere.models.load import load_policy
from prefiere.plan.device import Device
from prefiere.plan.plan import resolve
from prefiere.settings import DPO, SFT, Reward
from prefiere.tokens.pack import pack
from sharing import by_all

QUIET = Display(quiet=True)
HERE = replace(Device.of(torch.device("cpu")), memory=2**34)


def work(tmp_path: Path, method=DPO, **options) -> Workload:
    """The workload of a short run."""
    if not (tmp_path / "model").exists():
        quantized.mistral(tmp_path / "model")
    return workload(runs.settings(tmp_path, method, **options), HERE, QUIET)


@pytest.mark.parametrize(
    "options",
    [
        {"lora": False, "dtype": "float32"},
        {"lora": False, "dtype": "bfloat16"},
        {"lora": True, "dtype": "bfloat16"},
        {"lora": True, "dtype": "float32", "gradient_checkpointing": True},
        {"quantize": "nf4", "dtype": "bfloat16"},
        {"model": "gptq", "dtype": "bfloat16"},
    ],
    ids=str,
)
def test_the_booked_update_is_the_real_one(tmp_path, options) -> None:
    """The same ledger on a real model: all that an update allocates, but for kernels' own choices."""
    if options.get("model") == "gptq":
        base = quantized.mistral(tmp_path / "base")
        options = {**options, "model": str(quantized.folder(base, tmp_path / "gptq", group_size=32)[0])}
    w = work(tmp_path, **options)
    groups, parts, _ = longest(w)
    found = simulate(w, groups, 1)
    assert parts == 1
    real, _ = load_policy(
        w.plan.policy, compute=w.plan.dtype, adapter=w.plan.adapter,
        gradient_checkpointing=w.plan.settings.gradient_checkpointing, packed=True,
    )  # fmt: skip
    ledger = CostCounter()
    for tensor in (*real.parameters(), *real.buffers()):
        ledger.book(tensor)
    held = ledger.now
    backward(real, pack(groups), w.plan, ledger)
    assert found.trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    if "quantize" not in options:  # bitsandbytes holds its scales outside of the parameters
        assert found.trunk == held
    assert found.update.peak - found.trunk == pytest.approx(ledger.peak - held, rel=0.08)
    if "quantize" not in options:  # bitsandbytes' kernel is not counted
        assert found.update.flops == pytest.approx(ledger.flops, rel=0.05)


@pytest.mark.parametrize("checkpointing", [False, True])
def test_what_a_process_holds_that_shares_the_tokens_of_a_row(tmp_path, checkpointing) -> None:
    """The same of the last of two, which are threads: about half of the activations."""
    options = {"lora": True, "dtype": "float32", "gradient_checkpointing": checkpointing}
    alone = work(tmp_path, **options)
    groups, _, _ = longest(alone)
    settings = alone.plan.settings.model_copy(update={"sequence_parallel_size": 2})
    found = simulate(replace(alone, plan=replace(alone.plan, settings=settings)), groups, 1)
    trunks = [
        load_policy(
            alone.plan.policy, compute=torch.float32, adapter=alone.plan.adapter,
            gradient_checkpointing=checkpointing, packed=True,
        )[0]
        for _ in range(2)
    ]  # fmt: skip

    def held(split: Split) -> tuple[int, int]:
        ledger, trunk = CostCounter(), trunks[split.place]
        for tensor in (*trunk.parameters(), *trunk.buffers()):
            ledger.book(tensor)
        before, trunk.split = ledger.now, split
        backward(trunk, pack(groups), alone.plan, ledger)
        return ledger.peak - before, ledger.flops

    peak, flops = by_all(2, held)[1]
    assert found.update.flops == pytest.approx(flops, rel=0.05)
    assert found.update.peak - found.trunk == pytest.approx(peak, rel=0.08)
    whole = simulate(alone, groups, 1)
    assert found.update.peak - found.trunk < 0.7 * (whole.update.peak - whole.trunk)


def test_no_weight_is_read(tmp_path) -> None:
    w = work(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    assert estimate(w, None).memory.weights > 0


@pytest.mark.parametrize("method", [SFT, Reward])
def test_other_methods(tmp_path, method) -> None:
    found = estimate(work(tmp_path, method, lora=True, sample_steps=0), None)
    assert found.memory.sampling == 0
    assert found.memory.peak > found.memory.weights + found.memory.update > 0
    assert found.seconds > 0


@pytest.mark.long
def test_checkpointing_few_bits_and_small_batches_need_less(tmp_path) -> None:
    w = work(tmp_path, lora=True, dtype="bfloat16")
    plain = estimate(w, None).memory
    checkpointed = estimate(work(tmp_path, lora=True, dtype="bfloat16", gradient_checkpointing=True), None).memory
    assert checkpointed.update < 0.8 * plain.update
    assert estimate(work(tmp_path, quantize="nf4", dtype="bfloat16"), None).memory.weights < plain.weights
    assert (
        estimate(work(tmp_path, lora=True, dtype="bfloat16", tokens_per_microbatch=100), None).memory.update
        < 0.8 * plain.update
    )


@pytest.mark.long
def test_changes_are_proposed_until_it_fits(tmp_path) -> None:
    w = work(tmp_path, lora=True)
    whole = estimate(w, CARDS["t4"]).memory.peak
    made, changed, found, fits = until_it_fits(w, CARDS["t4"], whole)
    assert (made, changed, fits) == ([], w, True)
    made, changed, found, fits = until_it_fits(w, CARDS["t4"], whole // 2)
    assert fits
    assert made[0].startswith("tokens_per_microbatch=")
    assert found.memory.peak <= whole // 2
    again = work(tmp_path, lora=True, **dict(m.split("=") for m in made))
    assert estimate(again, CARDS["t4"]).memory.peak == pytest.approx(found.memory.peak, rel=0.1)
    assert not until_it_fits(w, CARDS["t4"], 1000)[3]


def test_cards_by_name() -> None:
    assert card_of("T4") is CARDS["t4"]
    assert card_of("cpu") is None
    assert not CARDS["t4"].bf16
    with pytest.raises(ValueError, match="--gpu potato: there are t4, v100"):
        card_of("potato")


def test_a_card_without_bfloat16_computes_in_fp16(tmp_path) -> None:
    quantized.mistral(tmp_path / "model")
    s = runs.settings(tmp_path, lora=True)
    cards = [Device("cuda", CARDS[name].memory, CARDS[name].bf16) for name in ("t4", "l4")]
    assert [resolve(s, card).dtype for card in cards] == [torch.float16, torch.bfloat16]


@pytest.mark.parametrize("lora", [False, True])
def test_a_decoder_that_learns_to_score(tmp_path, lora) -> None:
    """Its update is booked as the packed row that it is, whether or not PEFT wraps its head."""
    quantized.mistral(tmp_path / "model")
    w = workload(runs.settings(tmp_path, Reward, lora=lora), HERE, QUIET)
    groups, _, _ = longest(w)
    found = simulate(w, groups, 1)
    real, _ = load_reward(w.plan.policy, compute=w.plan.dtype, adapter=w.plan.adapter)
    ledger = CostCounter()
    for tensor in (*real.parameters(), *real.buffers()):
        ledger.book(tensor)
    held = ledger.now
    backward(real, pack(groups), w.plan, ledger)
    assert found.update.flops == pytest.approx(ledger.flops, rel=0.05)
    assert found.update.peak - found.trunk == pytest.approx(ledger.peak - held, rel=0.08)


def test_an_encoder_that_learns_to_score(tmp_path) -> None:
    bert = runs.encoder_folder(tmp_path / "model")
    w = workload(runs.settings(tmp_path, Reward, model=str(bert)), HERE, QUIET)
    found = simulate(w, longest(w)[0], 1)
    session = runs.session(tmp_path, Reward, model=str(bert))
    assert found.trained == sum(p.numel() for p in session.trunk.parameters() if p.requires_grad)
    assert found.update.peak > found.weights


def test_unpacking_few_bits_takes_time(tmp_path) -> None:
    """On a slow memory: each weight is unpacked in the forward, in the recomputation and in the backward."""
    base = quantized.mistral(tmp_path / "base")
    few = str(quantized.folder(base, tmp_path / "gptq", group_size=32)[0])
    given = {"lora": True, "lora_target_modules": ["q_proj"], "dtype": "float16", "gradient_checkpointing": True}
    dense, packed = (simulate(w, longest(w)[0], 1).update for w in (work(tmp_path, model=str(base), **given),
                                                                     work(tmp_path, model=few, **given)))  # fmt: skip
    weights = 14 * 64 * 64  # at least: the tiny model's are larger
    assert packed.traffic - dense.traffic > 3 * 2 * weights
    assert packed.seconds(1e15, 1e9, 0) > dense.seconds(1e15, 1e9, 0)
