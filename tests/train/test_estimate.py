"""An estimate books what really is allocated; it proposes what makes a run fit, and loads no weights."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch

import quantized
import runs
from prefiere.data.batch import pack
from prefiere.models.load import load_policy
from prefiere.settings import DPO, SFT, Reward
from prefiere.train.estimate import CARDS, Workload, _backward, estimate, longest, simulate, until_it_fits
from prefiere.train.forecast import card_of, workload
from prefiere.train.ledger import Ledger
from prefiere.train.progress import Display

QUIET = Display(quiet=True)


def work(tmp_path: Path, method=DPO, **options) -> Workload:
    """The workload of a short run."""
    if not (tmp_path / "model").exists():
        quantized.mistral(tmp_path / "model")
    return workload(runs.settings(tmp_path, method, **options), None, 2**34, QUIET)


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
    weights, trained, hollow = simulate(w, groups, 1)
    assert parts == 1
    real, _ = load_policy(
        w.source, compute=w.compute, adapter=w.adapters[0] if w.adapters else None,
        gradient_checkpointing=w.settings.gradient_checkpointing, packed=True,
    )  # fmt: skip
    ledger = Ledger()
    for tensor in (*real.parameters(), *real.buffers()):
        ledger.book(tensor)
    held = ledger.now
    _backward(real, pack(groups), w, ledger)
    assert trained == sum(p.numel() for p in real.parameters() if p.requires_grad)
    assert weights == pytest.approx(held, rel=0.05)
    assert hollow.peak - weights == pytest.approx(ledger.peak - held, rel=0.08)
    if "quantize" not in options:  # bitsandbytes' kernel is not counted
        assert hollow.flops == pytest.approx(ledger.flops, rel=0.05)


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


def test_checkpointing_few_bits_and_small_batches_need_less(tmp_path) -> None:
    w = work(tmp_path, lora=True, dtype="bfloat16")
    plain = estimate(w, None).memory
    checkpointed = estimate(work(tmp_path, lora=True, dtype="bfloat16", gradient_checkpointing=True), None).memory
    assert checkpointed.update < 0.8 * plain.update
    assert estimate(work(tmp_path, quantize="nf4", dtype="bfloat16"), None).memory.weights < plain.weights
    assert estimate(replace(w, budget=100), None).memory.update < 0.8 * plain.update


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
    assert workload(s, CARDS["t4"], 2**34, QUIET).compute == torch.float16
    assert workload(s, CARDS["l4"], 2**34, QUIET).compute == torch.bfloat16
