"""Every method on a base in few bits: trained, saved, loaded back, compared; stopped and resumed, bit for bit."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from peft import PeftModel
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, BitsAndBytesConfig, MistralConfig

import quantized
import runs
import tiny
from prefiere.algorithms.sft import Imitate
from prefiere.console import Display
from prefiere.kernels import attention
from prefiere.launch import launch
from prefiere.models.adapter import Adapter
from prefiere.models.load import load_policy
from prefiere.models.reference import Reference
from prefiere.models.reward_model import RewardModel, mount
from prefiere.models.source import Source, find_model
from prefiere.models.trunk import REFERENCE, REWARD, Trunk
from prefiere.plan.device import Device
from prefiere.settings import DPO, SFT, Reward
from prefiere.tokens.pack import pack
from prefiere.tokens.truncation import EncodeReport
from prefiere.train import checkpoint
from prefiere.train.engine import Engine
from prefiere.world import World
from random_groups import store

QUIET = Display(quiet=True)
BATCH = pack(store(4, 2, vocab=300))


def options(tmp_path: Path, held: str) -> dict[str, Any]:
    """A model held in this way, and the settings that ask for it."""
    base = quantized.mistral(tmp_path / "base") if not (tmp_path / "base").exists() else tmp_path / "base"
    if held in ("nf4", "int8"):
        return {"model": str(base), "quantize": held}
    folder = tmp_path / held
    if not folder.exists():
        quantized.folder(base, folder, held, symmetric=held == "gptq")
    return {"model": str(folder)}


def logps(trunk: Trunk) -> torch.Tensor:
    with torch.no_grad():
        return trunk.eval()(BATCH).logp_N


@pytest.mark.parametrize("held", ["nf4", "int8", "gptq", "awq"])
@pytest.mark.parametrize("method", [DPO, SFT])
def test_trained_saved_and_loaded_back(tmp_path, held, method) -> None:
    session = []
    import prefiere.launch as start

    real = start.Loop
    start.Loop = lambda s, *rest: session.append(s) or real(s, *rest)
    try:
        run = launch(runs.settings(tmp_path, method, **options(tmp_path, held)), display=QUIET).run
    finally:
        start.Loop = real
    assert run.status["state"] == "finished"
    (said,) = [c for c in run.environment["choices"] if c["name"] == "quantization"]
    assert said["value"] == held
    assert "14 of 14 linear layers hold" in said["why"]
    assert run.environment["parameters"]["all"] > 100_000, "packed bytes were counted, not weights"
    if method is DPO:
        assert run.metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert run.metrics[-1]["loss"] < run.metrics[1]["loss"]

    trained = session[0].trunk
    again, _ = load_policy(find_model(run.folder), compute=torch.float32, adapter=None)
    assert torch.equal(logps(again), logps(trained))
    with again.role(None):
        assert (logps(again) - logps(trained)).abs().max() > 1e-3, "nothing was trained"


@pytest.mark.parametrize("held", ["nf4", "int8", "gptq", "awq"])
def test_a_reward_model(tmp_path, held) -> None:
    run = launch(runs.settings(tmp_path, Reward, **options(tmp_path, held)), display=QUIET).run
    (said,) = [c for c in run.environment["choices"] if c["name"] == "quantization"]
    assert (said["value"], "14 of 14 linear layers hold" in said["why"]) == (held, True)
    assert run.metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert run.metrics[-1]["loss"] < np.log(2)
    scored = RewardModel.load(run.folder).score(["hola"] * 2, ["perro", "pan"])
    trunk, _ = load_policy(Source(find_model(run.folder).base, None, quantize=said["value"]), compute=torch.float32,
                           adapter=Adapter.lora(r=4, alpha=8, dropout=0.0, targets="all-linear", dora=False,
                                                rslora=False))  # fmt: skip
    mean = mount(trunk, run.folder).mean
    groups = RewardModel.load(run.folder).encoder.encode_answers(["hola"] * 2, ["perro", "pan"], EncodeReport())
    with torch.no_grad():
        beside = trunk.eval().scores(pack(groups), REWARD).numpy() - mean
    np.testing.assert_allclose(scored, beside, rtol=1e-4, atol=1e-4)


def test_an_adapter_trained_on_nf4_loads_in_plain_peft(tmp_path) -> None:
    run = launch(runs.settings(tmp_path, **options(tmp_path, "nf4")), display=QUIET).run
    config = BitsAndBytesConfig(load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True,
                                bnb_4bit_compute_dtype=torch.float32)  # fmt: skip
    base = AutoModelForCausalLM.from_pretrained(tmp_path / "base", quantization_config=config, dtype=torch.float32)
    for module in base.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            module.support_avx512bf16_for_cpu = False
    plain = Trunk(PeftModel.from_pretrained(base, run.model).eval(), packed=False)
    ours, _ = load_policy(find_model(run.folder), compute=torch.float32, adapter=None)
    torch.testing.assert_close(logps(plain), logps(ours), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("held", ["nf4", *(pytest.param(h, marks=pytest.mark.long) for h in ("int8", "gptq", "awq"))])
def test_four_roles(tmp_path, held) -> None:
    """PPO with a reward model that is an adapter on the same quantized base."""
    given = {**options(tmp_path, held), "learning_rate": 1e-2}
    reward = launch(runs.settings(tmp_path, Reward, out=str(tmp_path / "reward"), **given), display=QUIET).run.folder
    run = launch(runs.policy_settings(tmp_path, reward=str(reward), **given), display=QUIET).run
    said = {c["name"]: c["value"] for c in run.environment["choices"]}
    assert (said["quantization"], said["critic"]) == (held, "on the policy's trunk")
    assert run.status["state"] == "finished"
    assert run.metrics[1]["objective/kl"] == pytest.approx(0, abs=1e-4)
    assert run.metrics[-1]["objective/kl"] > 1e-3, "nothing was trained"
    assert all(np.isfinite(row["reward"]) for row in run.metrics[1:])


@pytest.mark.parametrize(
    "held",
    ["nf4", *(pytest.param(h, marks=pytest.mark.long) for h in ("int8", "gptq", "ppo on nf4", "ppo on gptq"))],
)
def test_killed_and_resumed_equals_uninterrupted(tmp_path, held) -> None:
    given = {**options(tmp_path, held.removeprefix("ppo on ")), "max_steps": 5, "save_steps": 2, "eval_steps": 2,
             "sample_steps": 2, "gradient_checkpointing": True}  # fmt: skip
    make: Any = runs.policy_settings if held.startswith("ppo") else runs.settings
    given |= {} if held.startswith("ppo") else {"lora_dropout": 0.1}
    whole = launch(make(tmp_path, out=str(tmp_path / "whole"), **given), display=QUIET).run
    s = make(tmp_path, out=str(tmp_path / "killed"), **given)
    runs.kill(s, 3)
    resumed = launch(s, display=QUIET).run
    a, b = (load_file(r.model / "adapter_model.safetensors") for r in (whole, resumed))
    assert a.keys() == b.keys()
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert [r.get("loss") for r in whole.metrics] == [r.get("loss") for r in resumed.metrics]
    assert [r.get("reward") for r in whole.metrics] == [r.get("reward") for r in resumed.metrics]
    assert whole.samples == resumed.samples
    one, two = (load_file(checkpoint.found(r.checkpoints)[-1] / "trained.safetensors") for r in (whole, resumed))
    assert one.keys() == two.keys()
    assert all(torch.equal(one[n], two[n]) for n in one), "the critic differs"


def test_full_fine_tuning_of_a_quantized_base_is_an_error(tmp_path) -> None:
    with pytest.raises(ValueError, match=r"lora=false: .* is held as gptq, and quantized weights cannot be trained"):
        launch(runs.settings(tmp_path, lora=False, **options(tmp_path, "gptq")), display=QUIET)
    assert not (tmp_path / "run").exists()


def free_memory(monkeypatch: pytest.MonkeyPatch, size: int) -> None:
    """Let this machine have so many free bytes."""
    here = Device.of(torch.device("cpu"))
    monkeypatch.setattr(Device, "of", lambda device, **of_run: replace(here, memory=size, **of_run))


def test_too_little_memory_is_said_before_loading(tmp_path, monkeypatch) -> None:
    import prefiere.train.setup as session

    free_memory(monkeypatch, 120_000)
    monkeypatch.setattr(session, "load_policy", lambda *args, **options: pytest.fail("it was loaded"))
    given = runs.settings(tmp_path, lora=True, **options(tmp_path, "nf4"))
    with pytest.raises(ValueError, match=r"too little memory: .* in torch.float32, and .* quantize=nf4 would fit"):
        launch(given.model_copy(update={"quantize": "none"}), display=QUIET)
    free_memory(monkeypatch, 20_000)
    with pytest.raises(ValueError, match=r"in nf4, and .* 0.0B parameters would fit so"):
        launch(given, display=QUIET)


def test_without_a_gpu_a_tiny_quantized_model_goes_on_and_7b_stops(tmp_path, monkeypatch, capsys) -> None:
    launch(runs.settings(tmp_path, max_steps=1, **options(tmp_path, "gptq")), display=Display())
    assert "no GPU is here: the gptq base" in capsys.readouterr().err
    folder = tmp_path / "7b"
    quantization = {"quant_method": "gptq", "bits": 4, "group_size": 128, "desc_act": True}
    MistralConfig(vocab_size=32002, quantization_config=quantization).save_pretrained(folder)
    tiny.tokenizer("bpe", True).save_pretrained(folder)
    free_memory(monkeypatch, 2 * 2**30)
    with pytest.raises(
        ValueError, match=r"takes 3\.9 GiB in gptq, and 2\.0 are free \(no GPU is here\): 3\.0B param"
    ) as e:
        launch(runs.settings(tmp_path, model=str(folder), out=str(tmp_path / "large")), display=QUIET)
    assert len(str(e.value).splitlines()) == 1


def test_a_run_on_a_quantized_run_keeps_its_base(tmp_path) -> None:
    first = launch(runs.settings(tmp_path, SFT, **options(tmp_path, "nf4")), display=QUIET).run
    second = launch(runs.settings(tmp_path, model=str(first.folder), out=str(tmp_path / "second")), display=QUIET).run
    assert second.metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    assert find_model(second.folder).quantize == "nf4"
    assert find_model(second.folder).base == find_model(first.folder).base


# -- the reference ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("init", ["pissa", "olora", "gaussian", False])
def test_the_reference_is_what_the_run_starts_from(tmp_path, init) -> None:
    """PiSSA and OLoRA rewrite the base: switching the adapter off would give another model."""
    base = quantized.mistral(tmp_path / "base")

    def loaded() -> Trunk:
        torch.manual_seed(0)
        config = {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "init_lora_weights": init}
        return load_policy(find_model(base), compute=torch.float32, adapter=Adapter.of(config))[0]

    trunk = loaded()
    first = logps(trunk)
    with trunk.role(None):
        identity = torch.equal(logps(trunk), first)
    assert identity == (init == "gaussian")
    assert (REFERENCE in trunk.model.peft_config) != identity
    assert all(p.requires_grad == ("lora" in n and REFERENCE not in n) for n, p in trunk.named_parameters())
    reference = Reference(trunk)
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=0.05)
    trunk.train()(BATCH).logp_N.sum().backward()
    optimizer.step()
    with reference.live() as frozen:
        assert torch.equal(logps(frozen), first)
    assert (logps(trunk) - first).abs().max() > 0.01
    dense = sum(p.numel() for n, p in loaded().named_parameters() if "lora" not in n)
    assert dense == sum(p.numel() for p in load_policy(Source(str(base), None), compute=torch.float32,
                                                        adapter=None)[0].parameters())  # fmt: skip


@pytest.mark.parametrize("init", ["pissa", "olora"])
def test_what_rewrote_the_base_is_saved_as_plain_lora(tmp_path, init) -> None:
    given = {"peft_config": {"r": 4, "lora_alpha": 4, "target_modules": "all-linear", "init_lora_weights": init}}
    kept = []
    import prefiere.launch as start

    real = start.Loop
    start.Loop = lambda s, *rest: kept.append(s) or real(s, *rest)
    try:
        run = launch(runs.settings(tmp_path, **given), display=QUIET).run
    finally:
        start.Loop = real
    assert run.metrics[0]["loss"] == pytest.approx(np.log(2), abs=1e-6)
    said = json.loads((run.model / "adapter_config.json").read_text())
    assert said["init_lora_weights"] is True
    base = AutoModelForCausalLM.from_pretrained(said["base_model_name_or_path"])
    plain = Trunk(PeftModel.from_pretrained(base, run.model).eval(), packed=False)
    torch.testing.assert_close(logps(plain), logps(kept[0].trunk), rtol=1e-3, atol=1e-3)


def test_loftq_is_one_line(tmp_path) -> None:
    with pytest.raises(ValueError, match="LoftQ"):
        launch(runs.settings(tmp_path, peft_config={"r": 4, "init_lora_weights": "loftq"}), display=QUIET)


def test_pissa_on_a_quantized_base_is_one_line(tmp_path) -> None:
    peft = {"r": 4, "target_modules": "all-linear", "init_lora_weights": "pissa"}
    with pytest.raises(ValueError, match="the adapter does not fit"):
        launch(runs.settings(tmp_path, peft_config=peft, **options(tmp_path, "nf4")), display=QUIET)


# -- fp16 ---------------------------------------------------------------------------------------------------------


def overflowing(compute: torch.dtype | None, held: str, tmp_path: Path) -> tuple[Engine, list[float]]:
    """Ten updates of a tiny model on the loss times 100, which overflows in fp16 at a scale of 65,536."""
    torch.manual_seed(0)

    given = options(tmp_path, held)
    source = Source(given["model"], None, quantize=given.get("quantize", "none"))
    trunk, _ = load_policy(source, compute=compute or torch.float32, adapter=Adapter.lora(
        r=4, alpha=8, dropout=0.0, targets="all-linear", dora=False, rslora=False))  # fmt: skip
    optimizer = torch.optim.AdamW([p for p in trunk.parameters() if p.requires_grad], lr=1e-2)
    schedule = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=1.0)
    engine = Engine(trunk, optimizer, schedule, world=World.open(cpu=True), compute=compute,
                    max_grad_norm=1.0, budget=10_000, adapt=False)  # fmt: skip
    goal, groups = Imitate(), store(12, 1, vocab=300)

    class Steep(Imitate):
        def __call__(self, *args):
            result = goal(*args)
            return result._replace(terms=[t._replace(values=100 * t.values) for t in result.terms])

    losses = [engine.update(groups, np.arange(12), Steep()).metrics["loss"].mean for _ in range(10)]
    return engine, losses


@pytest.mark.parametrize("held", ["nf4", "gptq"])
def test_what_overflows_in_fp16_recovers_and_ends_where_fp32_does(tmp_path, held) -> None:
    attention.register()
    engine, half = overflowing(torch.float16, held, tmp_path)
    _, whole = overflowing(None, held, tmp_path)
    assert engine.backoffs > 0, "nothing overflowed: the test does not test"
    assert 1 <= engine.scaler.get_scale() < 65536
    assert whole[-1] < 0.9 * whole[0]
    assert half[-1] == pytest.approx(whole[-1], rel=0.01)
    assert all(p.dtype == torch.float32 for p in engine.parameters)
    assert all(s["exp_avg"].dtype == torch.float32 for s in engine.optimizer.state.values())
