"""A base in few bits on a GPU: gradients after an evaluation are those of the dense weights that it stands for."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

import quantized
from prefiere.models import quantize
from prefiere.models.adapter import Adapter
from prefiere.models.load import load_policy
from prefiere.models.source import Source, find_model
from prefiere.models.trunk import Trunk
from prefiere.sample.local import generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import pack
from random_groups import store

pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")]

BATCH = pack(store(6, 2, vocab=300))
# As on a processor: the tiny model's logits are far from uniform, which makes 16-bit rounding as large as it gets.
TOLERANCES = {torch.float32: (1e-6, 2e-5), torch.bfloat16: (2e-3, 0.12), torch.float16: (5e-4, 0.02)}


def adapter() -> Adapter:
    """LoRA that is not the identity, so that every one of its gradients is there."""
    return Adapter.of({"r": 4, "lora_alpha": 8, "target_modules": "all-linear", "init_lora_weights": False})


def loss_and_gradients(trunk: Trunk, dtype: torch.dtype) -> tuple[float, dict[str, torch.Tensor]]:
    with torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        loss = -trunk(BATCH.to("cuda")).logp_N.mean()
    loss.backward()
    found = {n.replace(".base_layer", ""): p.grad for n, p in trunk.named_parameters() if p.grad is not None}
    return float(loss.detach()), found


def used(source: Source, dtype: torch.dtype) -> Trunk:
    """A trunk that was evaluated and has generated, which is when some back-ends stop giving gradients."""
    torch.manual_seed(0)
    trunk, _ = load_policy(source, compute=dtype, adapter=adapter(), device="cuda")
    with torch.no_grad(), torch.autocast("cuda", dtype, enabled=dtype != torch.float32):
        trunk.eval()(BATCH.to("cuda"))
        generate(trunk.lm, [np.asarray([5, 6, 7], np.int32)], Sampling(max_new_tokens=4), Vocabulary((2,)))
    return trunk.train()


def dense_twin(trunk: Trunk, base: Source) -> Trunk:
    """The same model with dense fp32 weights in place of the quantized ones."""
    twin, _ = load_policy(base, compute=torch.float32, adapter=adapter(), device="cuda")
    layers, theirs = dict(trunk.lm.named_modules()), dict(trunk.named_parameters())
    for name, module in twin.lm.named_modules():
        if name.endswith("base_layer"):
            module.weight.data = quantize.weight_of(layers[name]).clone()
    for name, p in twin.named_parameters():
        if not name.endswith("base_layer.weight"):
            p.data = theirs[name].detach().float().clone()
    return twin


@pytest.mark.parametrize("dtype", TOLERANCES, ids=str)
@pytest.mark.parametrize("held", ["nf4", "int8", "gptq", "awq"])
def test_it_trains_as_the_dense_weights_it_stands_for(tmp_path, held, dtype) -> None:
    base = find_model(quantized.mistral(tmp_path / "base"))
    if held in ("nf4", "int8"):
        source = replace(base, quantize=held)
    else:
        source = find_model(quantized.folder(tmp_path / "base", tmp_path / held, held, symmetric=held == "gptq")[0])
    trunk = used(source, dtype)
    loss, gradients = loss_and_gradients(trunk, dtype)
    expected, exact = loss_and_gradients(dense_twin(trunk, base), torch.float32)
    of_loss, of_gradient = TOLERANCES[dtype]
    if held == "int8":  # on a GPU its products round activations to 127 steps of each row's largest, in fp16
        of_loss, of_gradient = 0.02, 0.25
    assert len(exact) == 28
    assert exact.keys() == gradients.keys()
    assert loss == pytest.approx(expected, rel=of_loss)
    for key, g in exact.items():
        assert g.norm() > 0, key
        off = (gradients[key] - g).norm() / g.norm()
        assert off <= of_gradient, f"{key}: {off:.2g}"


@pytest.mark.parametrize("held", ["nf4", "int8", "gptq"])
def test_sampled_log_probs_are_those_of_a_packed_forward(tmp_path, held) -> None:
    """In fp32. int8 rounds activations, and how depends on those beside them."""
    base = find_model(quantized.mistral(tmp_path / "base"))
    source = replace(base, quantize=held)
    if held == "gptq":
        source = find_model(quantized.folder(tmp_path / "base", tmp_path / held, held)[0])
    trunk = used(source, torch.float32).eval()
    prompts = [np.arange(5, 5 + n, dtype=np.int32) for n in (3, 8, 11)]
    for s in generate(trunk.lm, prompts, Sampling(2, max_new_tokens=30), Vocabulary((2,))):
        group = PromptGroup(prompts[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),))
        with torch.no_grad():
            logp = trunk(pack([group]).to("cuda")).logp_N.cpu().numpy()
        np.testing.assert_allclose(s.logp, logp, atol=0.5 if held == "int8" else 1e-4)


@pytest.mark.parametrize("held", ["nf4", "gptq"])
def test_training_and_evaluation_take_one_path(tmp_path, held) -> None:
    base = find_model(quantized.mistral(tmp_path / "base"))
    source = replace(base, quantize=held)
    if held == "gptq":
        source = find_model(quantized.folder(tmp_path / "base", tmp_path / held, held)[0])
    trunk = used(source, torch.float32)
    with torch.no_grad():
        assert torch.equal(trunk.train()(BATCH.to("cuda")).logp_N, trunk.eval()(BATCH.to("cuda")).logp_N)
