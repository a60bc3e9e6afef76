"""Reference log-probs against plain forwards, and the key that they are kept under."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model

import tiny
from prefiere.models.reference import cached_logps, model_key, sequence_logps
from prefiere.models.trunk import Trunk
from random_groups import store


@pytest.mark.parametrize("budget", [1, 60, 10_000])
def test_log_probs_are_sums_of_plain_forwards(budget: int) -> None:
    model, groups = tiny.model("llama"), store(7, 2, partly=True)
    mine = sequence_logps(Trunk(model, packed=False), groups, budget=budget)
    for i, g in enumerate(groups):
        for j, (completion, mask) in enumerate(zip(g.completions, g.masks, strict=True)):
            row = torch.tensor(np.concatenate([g.prompt, completion]))[None].long()
            logp = torch.log_softmax(model(row).logits[0].detach().double(), -1)[len(g.prompt) - 1 : -1]
            said = logp[torch.arange(len(completion)), torch.tensor(completion).long()]
            assert mine[i, j] == pytest.approx(float(said[torch.tensor(mask)].sum()), abs=1e-4)


def lora(model: torch.nn.Module, seed: int = 0, **options) -> Trunk:
    torch.manual_seed(seed)
    config = LoraConfig(r=4, target_modules=["q_proj", "v_proj"], **options)
    return Trunk(get_peft_model(model, config), packed=False)


def test_an_adapter_counts_once_it_adds_something() -> None:
    plain = model_key(Trunk(tiny.model("llama"), packed=False))
    fresh = lora(tiny.model("llama"), seed=1)
    assert model_key(fresh) == plain
    groups = store(3, 2)
    before = sequence_logps(Trunk(tiny.model("llama"), packed=False), groups, budget=100)
    assert np.array_equal(sequence_logps(fresh, groups, budget=100), before), "equal keys, equal log-probs"
    with torch.no_grad():
        next(p for n, p in fresh.named_parameters() if "lora_B" in n).add_(1e-3)
    trained = model_key(fresh)
    assert trained != plain
    with torch.no_grad():
        next(p for n, p in fresh.named_parameters() if "lora_A" in n).add_(1e-3)
    assert model_key(fresh) not in (plain, trained)
    assert model_key(lora(tiny.model("llama"), use_dora=True)) != plain


def test_the_key_covers_weights_types_configuration_and_rows() -> None:
    model = tiny.model("llama")
    keys = [model_key(Trunk(model, packed=packed)) for packed in (True, False)]
    keys.append(model_key(Trunk(tiny.model("llama", seed=1), packed=False)))
    keys.append(model_key(Trunk(tiny.model("llama", dtype=torch.bfloat16), packed=False)))
    keys.append(model_key(Trunk(tiny.model("llama", rms_norm_eps=1e-3), packed=False)))
    assert len({tuple(k.values()) for k in keys}) == 5
    model.config._name_or_path = "elsewhere"
    assert model_key(Trunk(model, packed=False)) == keys[1]


def test_masks_count_among_the_tokens() -> None:
    assert store(5, 2, partly=True).fingerprint() != store(5, 2).fingerprint()


def test_values_are_computed_once(tmp_path, monkeypatch) -> None:
    monkeypatch.setenv("PREFIERE_CACHE", str(tmp_path))
    values, calls = np.random.default_rng(0).normal(size=(5, 2)).astype(np.float32), []

    def settle(kept: np.ndarray | None) -> np.ndarray:
        calls.extend([1] if kept is None else [])
        return values if kept is None else kept

    for key in ({"a": "1"}, {"a": "1"}, {"a": "2"}):
        again = cached_logps(key, settle)
        assert again.dtype == np.float32
        assert np.array_equal(again, values)
    assert len(calls) == 2
