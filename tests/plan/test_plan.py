"""A plan: decided without weights, recorded as plain values, given back to a resumed run, and all mistakes at once."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, PreTrainedConfig

import quantized
import runs
from prefiere.console import Display
from prefiere.estimate.simulate import simulate
from prefiere.estimate.workload import longest, workload
from prefiere.launch import launch
from prefiere.methods import METHODS
from prefiere.models.source import Source, config_of
from prefiere.plan.choices import activation_bytes, automatic_rate, choose_budget
from prefiere.plan.device import Device
from prefiere.plan.plan import PlanError, resolve
from prefiere.plan.roles import same_base
from prefiere.settings import PPO, Reward

CPU = Device("cpu", 2**34, bf16=False, threads=2)
GPU = Device("cuda", 2**34, bf16=True)
QUIET = Display(quiet=True)


def test_it_needs_no_weights(tmp_path: Path) -> None:
    settings = runs.settings(tmp_path)
    (tmp_path / "model" / "model.safetensors").unlink()
    plan = resolve(settings, CPU)
    assert (plan.adapter, plan.scheme, plan.roles.reference, plan.reads) == (None, None, "copy", "pairs")
    assert json.loads(json.dumps(plan.to_json())) == plan.to_json()


def test_a_device_decides_dtype_and_budget(tmp_path: Path) -> None:
    settings = runs.settings(tmp_path)
    assert (resolve(settings, CPU).dtype, resolve(settings, CPU).budget) == (torch.float32, 4096)
    assert (resolve(settings, GPU).dtype, resolve(settings, GPU).budget) == (torch.bfloat16, 16384)
    assert resolve(settings, replace(GPU, bf16=False)).dtype == torch.float16
    assert resolve(runs.settings(tmp_path, tokens_per_microbatch=99), GPU).budget == 99


def test_too_little_memory_means_an_adapter_and_then_an_error(tmp_path: Path) -> None:
    settings = runs.settings(tmp_path)
    parameters = resolve(settings, CPU).parameters
    small = replace(CPU, memory=8 * parameters)
    plan = resolve(settings, small)
    assert plan.adapter is not None
    assert plan.roles.reference == "base"
    assert "full training would take" in next(c.why for c in plan.choices if c.name == "lora")
    with pytest.raises(ValueError, match="too little memory"):
        resolve(settings, replace(CPU, memory=parameters))
    assert resolve(settings, replace(CPU, memory=parameters), must_fit=False).parameters == parameters


def test_the_adapter_is_the_one_that_there_is(tmp_path: Path) -> None:
    """Of an adapter as the model, its own rank and targets are in the plan, not the defaults of new ones."""
    runs.settings(tmp_path)
    config = LoraConfig(r=7, target_modules=["q_proj"], task_type="CAUSAL_LM")
    get_peft_model(AutoModelForCausalLM.from_pretrained(tmp_path / "model"), config).save_pretrained(tmp_path / "start")
    AutoTokenizer.from_pretrained(tmp_path / "model").save_pretrained(tmp_path / "start")
    plan = resolve(runs.settings(tmp_path, model=str(tmp_path / "start")), CPU)
    written = plan.to_json()["adapter"]
    assert (written["r"], written["target_modules"]) == (7, ["q_proj"])
    assert plan.roles.reference == "adapter"


def test_all_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    wrong = {"model": "gone", "data": "no.jsonl", "eval_data": "nor.jsonl", "judge": "nobody"}
    with pytest.raises(PlanError) as e:
        resolve(runs.settings(tmp_path, **{key: str(tmp_path / name) for key, name in wrong.items()}), CPU)
    first, *lines = str(e.value).splitlines()
    assert first == "4 things to put right:"
    for name in wrong.values():
        assert sum(name in line for line in lines) == 1
    assert len(lines) == 4


def test_a_reward_and_a_setting_that_cannot_be_are_said_beside_the_model(tmp_path: Path) -> None:
    runs.policy_settings(tmp_path)
    settings = PPO(model=str(tmp_path / "model"), data=str(tmp_path / "no.txt"), out=str(tmp_path / "run"), lora=True,
                   share_critic=True, reward=str(tmp_path / "model"))  # fmt: skip
    with pytest.raises(PlanError) as e:
        resolve(settings, CPU)
    lines = str(e.value).splitlines()[1:]
    assert [w for w in ("no.txt", "no reward model", "share_critic") if sum(w in line for line in lines) == 1] == [
        "no.txt", "no reward model", "share_critic",
    ]  # fmt: skip


def test_one_mistake_is_raised_as_it_is(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"no\.jsonl"):
        resolve(runs.settings(tmp_path, data=str(tmp_path / "no.jsonl")), CPU)


def test_a_run_records_its_plan_and_gets_it_back(tmp_path: Path) -> None:
    """The second plan is made on a machine that would choose otherwise, and is the first."""
    settings = runs.settings(tmp_path, learning_rate="auto")
    run = launch(settings, display=QUIET).run
    written = run.environment
    plan = resolve(settings, Device.of(torch.device("cpu")))
    assert written["plan"] == plan.to_json()
    recorded = {c["name"]: c["value"] for c in written["choices"]}
    elsewhere = resolve(settings, GPU)
    again = resolve(settings, GPU, recorded)
    assert elsewhere.to_json() != written["plan"]
    assert again.to_json() == written["plan"]
    of_here = {"shard"}  # which suits the processes that there are
    assert {c.why for c in again.choices if c.name not in of_here} == {"as when this run began"}


def test_a_reward_model_reads_pairs_and_keeps_no_reference(tmp_path: Path) -> None:
    plan = resolve(runs.settings(tmp_path, Reward), CPU)
    assert plan.scores
    assert (plan.roles.reference, plan.roles.critic) == ("none", "none")
    assert not plan.both_ways
    bert = resolve(runs.settings(tmp_path, Reward, model=str(runs.encoder_folder(tmp_path / "bert"))), CPU)
    assert bert.both_ways
    assert bert.max_length == 64


@pytest.mark.parametrize("rate", ["auto", 1e-3])
def test_what_auto_comes_to_is_recorded_whether_or_not_it_was_asked_for(tmp_path: Path, rate: Any) -> None:
    """For the critic five times the policy's rate, for the doctor to hold what was asked for against."""
    asked = runs.policy_settings(tmp_path, learning_rate=2e-6, critic_learning_rate=rate)
    written = resolve(asked, CPU).to_json()
    assert written["critic_learning_rate"] == pytest.approx(1e-5 if rate == "auto" else 1e-3)
    assert written["automatic"]["critic_learning_rate"] == pytest.approx(1e-5)


def test_another_revision_is_another_base() -> None:
    policy = Source("org/base", None, revision="v1")
    assert same_base(Source("org/base", "org/rm", revision="v1"), policy)
    assert not same_base(Source("org/base", "org/rm"), policy)
    assert same_base(Source("org/base", "org/rm"), Source("org/base", None, revision="main"))
    assert not same_base(Source("org/other", None), Source("org/base", None))


@pytest.mark.parametrize(
    ("method", "parameters", "rate"),
    [
        ("dpo", 7_000_000_000, 1e-6),
        ("dpo", 1_400_000, 3.9e-4),
        ("dpo", 1_000_000, 4.9e-4),
        ("dpo", 400_000, 4.9e-4),
        ("sft", 400_000, 1.8e-4),
        ("reward", 10_000, 8.4e-4),
    ],
)
def test_the_automatic_rate_grows_down_to_a_million_parameters(method: str, parameters: int, rate: float) -> None:
    """5000^0.7 = 388 and 7000^0.7 = 492 times 1e-6; 7000^0.25 = 9.15 times 2e-5; 7000^0.5 = 83.7 times 1e-5."""
    settings = METHODS[method].settings(model="m", data="d", out="o")
    assert automatic_rate(settings, False, parameters) == rate


@pytest.mark.parametrize(
    ("method", "size", "rate"),
    [("dpo", 32, 4.9e-4), ("dpo", 128, 4.9e-4), ("dpo", 8, 2.5e-4), ("dpo", 2, 1.2e-4), ("sft", 2, 1.8e-4)],
)
def test_preferences_in_small_updates_take_a_smaller_rate(method: str, size: int, rate: float) -> None:
    """A quarter of the pairs, half the rate (492 and 9.15 times the rate at 7B, as above)."""
    settings = METHODS[method].settings(model="m", data="d", out="o", batch_size=size)
    assert automatic_rate(settings, False, 1_000_000) == rate


def test_the_budget_keeps_activations_within_two_gibibytes(tmp_path: Path) -> None:
    """SmolLM2's shape in fp32: 30 layers of 12 vectors of 576 and 5 of 1,536 are 1.67 MiB a token, so that 1,024 of
    them take 1.67 GiB and 2,048 would take 3.3. In bf16 half of that. With 4 GiB free a quarter, 1 GiB, holds 512."""
    smol = LlamaConfig(hidden_size=576, intermediate_size=1536, num_hidden_layers=30)
    settings = runs.settings(tmp_path)
    each = activation_bytes(smol, torch.float32, False)
    assert each == 30 * 4 * (12 * 576 + 5 * 1536)

    def begins(device: Device, dtype: torch.dtype = torch.float32, **options: object) -> int:
        return int(choose_budget(settings.model_copy(update=options), device, smol, dtype).value)

    assert begins(CPU) == 1024
    assert begins(CPU, torch.bfloat16) == 2048
    assert begins(replace(CPU, memory=4 * 2**30)) == 512
    assert begins(replace(CPU, memory=2**28)) == 256
    assert begins(CPU, gradient_checkpointing=True) == 4096
    assert begins(GPU) == 16384


def test_sizes_that_differ_by_layer_or_are_not_said_stop_no_run(tmp_path: Path) -> None:
    """Gemma 3n has an inner size for each layer; a stranger's configuration may say nothing."""
    even = PreTrainedConfig(hidden_size=64, intermediate_size=96, num_hidden_layers=2)
    uneven = PreTrainedConfig(hidden_size=64, intermediate_size=[32, 96], num_hidden_layers=2)
    assert activation_bytes(uneven, torch.float32, False) == activation_bytes(even, torch.float32, False)
    assert choose_budget(runs.settings(tmp_path), CPU, PreTrainedConfig(), torch.float32).value == 4096


@pytest.mark.parametrize("lora", [False, True])
def test_activations_of_a_token_are_about_what_an_update_holds(tmp_path: Path, lora: bool) -> None:
    """Against the ledger of an update without contents, which counts more: the head, and a backward's own tensors."""
    quantized.mistral(tmp_path / "model")
    work = workload(runs.settings(tmp_path, Reward, lora=lora, dtype="float32"), CPU, QUIET)
    groups, _, _ = longest(work)
    found = simulate(work, groups, 1)
    held = (found.update.peak - found.trunk - 4 * found.trained) / sum(g.length for g in groups)
    assert activation_bytes(config_of(work.plan.policy), torch.float32, False) == pytest.approx(held, rel=0.5)


@pytest.mark.parametrize(
    ("memory", "processes", "nodes", "shard"),
    [  # in bytes for each parameter: full training takes 20, of which 80% of the memory may be taken
        (20, 1, 1, "none"),
        (26, 8, 1, "none"),
        (20, 8, 1, "full"),
        (20, 8, 2, "hybrid"),  # a node of 4 holds 5 each
        (5, 8, 2, "full"),
    ],
)
def test_weights_are_shared_where_they_do_not_fit(
    tmp_path: Path, memory: int, processes: int, nodes: int, shard: str
) -> None:
    settings = runs.settings(tmp_path, lora=False)
    size = resolve(settings, CPU).parameters
    device = Device("cuda", memory * size, bf16=True, processes=processes, nodes=nodes)
    plan = resolve(settings, device)
    assert (plan.shard, plan.to_json()["shard"]) == (shard, shard)
    assert resolve(settings.model_copy(update={"shard": "none"}), device).shard == "none"
    again = {c.name: c.value for c in plan.choices}
    assert resolve(settings, CPU, again).shard == "none", "it suits the machine that a resumed run is on"


def test_processes_decide_for_what_all_of_their_devices_have() -> None:
    """One has less free, and the other fewer threads and no products in bfloat16."""
    one = Device("cpu", 2**34, bf16=False, threads=2, processes=2)
    two = Device("cpu", 2**30, bf16=True, threads=4, processes=2)
    assert Device.least([one, two]) == Device("cpu", 2**30, bf16=False, threads=2, processes=2)
    assert Device.least([two, one]) == Device.least([one, two])


def test_what_cannot_be_shared_is_refused_in_one_line(tmp_path: Path) -> None:
    four = replace(GPU, processes=4)
    for options, why in (
        ({"quantize": "nf4"}, "weights in 4 bits are packed"),
        ({"dtype": "float16"}, "float16 scales its loss"),
        ({"peft_config": {"init_lora_weights": "pissa"}}, "takes its start out of the base"),
    ):
        settings = runs.settings(tmp_path, **options)
        plan = resolve(settings, four)
        assert plan.shard == "none"
        assert any(c.name == "shard" and why in c.why for c in plan.choices)
        with pytest.raises(ValueError, match=f"^shard=full: [^\n]*{why}[^\n]*: leave shard out[^\n]*$"):
            resolve(settings.model_copy(update={"shard": "full"}), four)
        assert resolve(settings.model_copy(update={"shard": "full"}), GPU).shard == "none", "one process shares nothing"


def test_weights_rest_on_the_processor_where_they_are_sharded(tmp_path: Path) -> None:
    """They are then shared, whether or not they would fit as they are; where they cannot be, that is said in a line."""
    four, nodes = replace(GPU, processes=4), replace(GPU, processes=4, nodes=2)
    settings = runs.settings(tmp_path, lora=False, cpu_offload=True)
    assert resolve(settings, four).shard == "full"
    assert resolve(settings, nodes).shard == "hybrid"
    cases: tuple[tuple[Device, dict[str, object], str], ...] = (
        (GPU, {}, "there is one process"),
        (four, {"shard": "none"}, "as asked"),
        (four, {"lora": True, "quantize": "nf4"}, "weights in 4 bits are packed"),
    )
    for device, options, why in cases:
        with pytest.raises(ValueError, match=rf"^cpu_offload: [^\n]*\([^\n]*{why}[^\n]*\): leave it out[^\n]*$"):
            resolve(settings.model_copy(update=options), device)


def test_tokens_that_cannot_be_shared_are_refused_in_one_line(tmp_path: Path) -> None:
    two = replace(CPU, processes=2)
    linear = {"family": "qwen2", "layer_types": ["full_attention", "linear_attention"]}
    dynamic = {"rope_parameters": {"rope_type": "dynamic", "factor": 2.0, "rope_theta": 1e4}}
    assert resolve(runs.settings(tmp_path, sequence_parallel_size=2), two).settings.sequence_parallel_size == 2
    cases = (
        (1, {}, {}, r"1 processes do not divide into teams of 2: start a multiple of 2"),
        (3, {}, {}, r"3 processes do not divide into teams of 2"),
        (8, {}, {"sequence_parallel_size": 8}, r"share 4 attention heads: set one of 1, 2, 4$"),
        (2, {}, {"attn": "padded"}, "packed rows alone are shared"),
        (2, {}, {"torch_compile": True}, "a compiled model"),
        (2, linear, {}, "linear_attention goes from one token to the next"),
        (2, dynamic, {}, "dynamic positions depend on the longest row"),
    )
    for number, (processes, shape, options, why) in enumerate(cases):
        folder = tmp_path / str(number)
        folder.mkdir()
        runs.model_folder(folder / "model", **{k: v for k, v in shape.items() if k != "layer_types"})
        if "layer_types" in shape:
            path = folder / "model" / "config.json"
            path.write_text(json.dumps(json.loads(path.read_text()) | {"layer_types": shape["layer_types"]}))
        settings = runs.settings(folder, **{"sequence_parallel_size": 2, **options})
        with pytest.raises(ValueError, match=rf"^sequence_parallel_size=\d: [^\n]*{why}[^\n]*$"):
            resolve(settings, replace(CPU, processes=processes))
    with pytest.raises(ValueError, match=r"^sequence_parallel_size=2: grpo learns from answers[^\n]*$"):
        resolve(runs.policy_settings(tmp_path, "grpo", sequence_parallel_size=2), two)
    encoder = runs.settings(
        tmp_path, Reward, model=str(runs.encoder_folder(tmp_path / "bert")), sequence_parallel_size=2
    )
    with pytest.raises(ValueError, match=r"^sequence_parallel_size=2: [^\n]*packed rows alone[^\n]*$"):
        resolve(encoder, two)
