"""What an estimate books as trained and as held is what the run holds, to the last byte: every recipe, every start,
every role."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from importlib import import_module
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import nn
from transformers import AutoModelForCausalLM, AutoTokenizer

import quantized
import runs
from prefiere import recipe
from prefiere.console import Display
from prefiere.estimate.simulate import Simulation, simulate
from prefiere.estimate.workload import longest, workload
from prefiere.launch import launch
from prefiere.models.reward_model import RewardModel
from prefiere.plan.device import Device
from prefiere.settings import SFT, PolicyGradient, Reward, Settings
from prefiere.train.setup import Session

QUIET = Display(quiet=True)
HERE = replace(Device.of(torch.device("cpu")), memory=2**34)
RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))


def tensors_of(module: nn.Module) -> Iterator[torch.Tensor]:
    """Parameters and buffers, and what bitsandbytes keeps of a weight besides."""
    yield from module.parameters()
    yield from module.buffers()
    for layer in module.modules():
        weight = getattr(layer, "weight", None)
        for own in (
            weight,
            getattr(layer, "state", None),
        ):  # int8 moves from the one to the other when it is first used
            if getattr(own, "SCB", None) is not None:
                yield from (own.CB, own.SCB)
        state = getattr(weight, "quant_state", None)
        if state is not None:
            yield from (state.absmax, state.code, state.offset, state.state2.absmax, state.state2.code)


def held(session: Session) -> int:
    """Bytes of every model of a run, each tensor once: the trunk with its roles, the reference, reward models."""
    algorithm = import_module(session.plan.method.home).build(session)
    modules: list[nn.Module] = [session.trunk]
    copied = getattr(getattr(algorithm, "reference", None), "_copy", None)
    modules += [copied] if copied is not None else []
    for judge in (session.reward, session.judge):
        models = judge.scorers.values() if judge is not None else ()
        modules += [m.trunk for m in models if isinstance(m, RewardModel) and m.trunk is not session.trunk]
    storages = {t.data_ptr(): t.nbytes for m in modules for t in tensors_of(m) if t.nbytes}
    return sum(storages.values())


def booked(settings: Settings) -> Simulation:
    work = workload(settings, HERE, QUIET)
    return simulate(work, longest(work)[0], 1)


def assert_booked_as_held(settings: Settings, run: Any) -> Session:
    found, session = booked(settings), runs.built(settings, run)
    assert found.trained == sum(p.numel() for p in session.trunk.parameters() if p.requires_grad)
    assert found.weights == held(session)
    return session


def base(tmp: Path) -> Path:
    if not (tmp / "model").exists():
        quantized.mistral(tmp / "model")
    return tmp / "model"


def adapter(tmp: Path, **options: Any) -> Path:
    """An adapter as somebody else trained it: other rank and targets than the defaults."""
    torch.manual_seed(0)
    config = LoraConfig(**{"r": 7, "target_modules": ["q_proj", "down_proj"], "task_type": "CAUSAL_LM", **options})
    model = get_peft_model(AutoModelForCausalLM.from_pretrained(base(tmp)), config)
    model.save_pretrained(tmp / "adapter")
    AutoTokenizer.from_pretrained(base(tmp)).save_pretrained(tmp / "adapter")
    return tmp / "adapter"


def reward_models(tmp: Path) -> dict[str, str]:
    """Reward models by kind: an adapter on the policy's base, one of ours and one of somebody else's; a whole decoder;
    an encoder."""
    own = {"model": str(base(tmp)), "max_steps": 1, "eval_size": 4}
    ours = launch(runs.settings(tmp, Reward, out=str(tmp / "ours"), lora=True, lora_r=3, **own), display=QUIET).run
    whole = launch(runs.settings(tmp, Reward, out=str(tmp / "whole"), lora=False, **own), display=QUIET).run
    bert = {**own, "model": str(runs.encoder_folder(tmp / "bert"))}
    encoder = launch(runs.settings(tmp, Reward, out=str(tmp / "encoder"), **bert), display=QUIET).run
    foreign = tmp / "foreign"
    foreign.mkdir()
    for path in ours.model.iterdir():
        if path.name != "reward.json":
            (foreign / path.name).write_bytes(path.read_bytes())
    return {
        "ours": str(ours.folder),
        "whole": str(whole.folder),
        "encoder": str(encoder.folder),
        "foreign": str(foreign),
    }


@pytest.mark.parametrize("path", RECIPES, ids=lambda p: p.stem)
def test_every_recipe(tmp_path: Path, path: Path) -> None:
    """On a small model and small data: what the recipe says of adapter, bits, roles and checkpointing stays."""
    given = recipe.validate(path)
    fields = {"model": str(base(tmp_path)), "out": str(tmp_path / "run"), "data_split": None, "max_length": 64}
    fields |= {"max_prompt_length": None, "max_new_tokens": 8, "batch_size": 4, "max_steps": 2, "eval_data": None}
    fields |= {"columns": None, "eval_size": 4, "judge": None, "sample_prompts": 4}
    if isinstance(given, PolicyGradient):
        fields |= {"data": str(runs.prompts_file(tmp_path / "prompts.txt")), "reward": "rewarding:letters"}
    else:
        fields |= {"data": str(runs.pairs_file(tmp_path / "pairs.jsonl"))}
    if isinstance(given, Reward):
        fields = {k: v for k, v in fields.items() if k not in ("max_new_tokens", "judge", "sample_prompts")}
    if "gptq" in path.stem:
        fields["model"] = str(
            quantized.folder(quantized.mistral(tmp_path / "dense"), tmp_path / "gptq", group_size=32)[0]
        )
    settings = given.model_copy(update={k: v for k, v in fields.items() if k in type(given).model_fields})
    assert_booked_as_held(settings, runs.Run.create(settings.out))


@pytest.mark.parametrize("quantize", ["nf4", "int8"])
def test_bits_on_the_fly(tmp_path: Path, quantize: str) -> None:
    settings = runs.settings(tmp_path, model=str(base(tmp_path)), quantize=quantize, dtype="bfloat16")
    assert_booked_as_held(settings, runs.Run.create(settings.out))


@pytest.mark.parametrize("method", ["sft", "dpo", "ppo"])
@pytest.mark.parametrize("start", ["rank 7", "pissa", "random"])
def test_adapter_starts(tmp_path: Path, method: str, start: str) -> None:
    """The adapter's own rank counts, and the frozen copy of it that the reference is."""
    options: dict[str, Any] = {"model": str(adapter(tmp_path))} if start == "rank 7" else {"model": str(base(tmp_path))}
    if start != "rank 7":
        options["peft_config"] = {
            "r": 4,
            "target_modules": ["q_proj"],
            "init_lora_weights": {"pissa": "pissa"}.get(start, False),
        }
    if method == "ppo":
        settings: Settings = runs.policy_settings(tmp_path, "ppo", **options)
    else:
        settings = runs.settings(tmp_path, SFT if method == "sft" else runs.DPO, **options)
    session = assert_booked_as_held(settings, runs.Run.create(settings.out))
    assert session.plan.roles.reference == "adapter"
    assert "reference" in session.trunk.model.peft_config


def test_settings_of_a_new_adapter_on_an_adapter_are_refused_by_both(tmp_path: Path) -> None:
    settings = runs.settings(tmp_path, runs.DPO, model=str(adapter(tmp_path)), lora_r=8)
    for what in (lambda: booked(settings), lambda: runs.built(settings, runs.Run.create(settings.out))):
        with pytest.raises(ValueError, match=r"lora_r: .* is an adapter already"):
            what()


@pytest.fixture(scope="module")
def rewards(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, str]]:
    tmp = tmp_path_factory.mktemp("rewards")
    return tmp, reward_models(tmp)


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize(
    "names", [["ours"], ["foreign"], ["whole"], ["encoder"], ["whole", "ours"], ["ours", "foreign"]]
)
def test_every_role(rewards, tmp_path: Path, lora: bool, names: list[str]) -> None:
    """Critic and reference; reward models mounted where they can be, else beside; a judge that is a model."""
    tmp, folders = rewards
    options = {
        "model": str(base(tmp)),
        "reward": [folders[n] for n in names],
        "judge": folders["encoder"],
        "lora": lora,
    }
    runs.prompts_file(tmp_path / "prompts.txt")
    settings = runs.policy_settings(
        tmp, "ppo", data=str(tmp_path / "prompts.txt"), out=str(tmp_path / "run"), **options
    )
    session = assert_booked_as_held(settings, runs.Run.create(settings.out))
    roles = session.plan.roles
    assert [r.where for r in roles.rewards] == ["mounted" if lora and n == "ours" else "beside" for n in names]
    assert (roles.critic, roles.reference) == (("adapter", "base") if lora else ("own", "copy"))


@pytest.mark.long
def test_a_shared_critic_and_a_run_without_samples(tmp_path: Path) -> None:
    base(tmp_path)
    settings = runs.policy_settings(tmp_path, "ppo", share_critic=True)
    assert assert_booked_as_held(settings, runs.Run.create(settings.out)).plan.roles.critic == "shared"
    for method, options in ((runs.DPO, {"sample_steps": 0}), (runs.DPO, {"loss_type": "simpo"}), (SFT, {})):
        settings = runs.settings(tmp_path, method, out=str(tmp_path / method.__name__), **options)
        assert_booked_as_held(settings, runs.Run.create(settings.out))
