"""Roles on one trunk: each forward and backward under its own adapter; the reference is the policy before the run."""

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model

import runs
import tiny
from prefiere.kernels import attention
from prefiere.models.adapter import Adapter
from prefiere.models.load import fingerprint, load_policy
from prefiere.models.reference import Reference
from prefiere.models.source import find_model
from prefiere.models.trunk import CRITIC, POLICY, REFERENCE, Trunk, activate, role_of
from prefiere.tokens.pack import pack
from random_groups import store

attention.register()
BATCH = pack(store(5, 2))


def two_adapters(*, checkpointing: bool) -> Trunk:
    torch.manual_seed(0)
    base = tiny.model("llama")
    base.set_attn_implementation(attention.NAME)
    config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM")
    model = get_peft_model(base, config)
    model.add_adapter("critic", config)
    for name, p in model.named_parameters():
        p.requires_grad_("lora" in name)
    trunk = Trunk(model).train()
    if checkpointing:
        trunk.checkpoint_gradients()
        trunk.lm.enable_input_require_grads()
    return trunk


def two_role_gradients(trunk: Trunk) -> dict[str, torch.Tensor]:
    """Both roles' forwards first, then both backwards under whatever role is active by then."""
    with trunk.role(POLICY):
        one = trunk(BATCH).logp_N.sum()
    with trunk.role("critic"):
        two = trunk(BATCH).logp_N.square().sum()
    with trunk.role(None):
        (one + two).backward()
    return {n: p.grad for n, p in trunk.named_parameters() if p.grad is not None}


def test_two_roles_with_and_without_checkpointing() -> None:
    plain = two_role_gradients(two_adapters(checkpointing=False))
    checkpointed = two_role_gradients(two_adapters(checkpointing=True))
    assert plain.keys() == checkpointed.keys()
    assert any(".critic." in n for n in plain)
    assert any(f".{POLICY}." in n for n in plain)
    for name, g in plain.items():
        assert g.norm() > 0, name
        torch.testing.assert_close(checkpointed[name], g, rtol=1e-5, atol=1e-6)


def test_each_role_alone_gives_the_same_gradient() -> None:
    both = two_role_gradients(two_adapters(checkpointing=True))
    alone = two_adapters(checkpointing=False)
    activate(alone.model, "critic")
    alone(BATCH).logp_N.square().sum().backward()
    mine = {n: p.grad for n, p in alone.named_parameters() if p.grad is not None and ".critic." in n}
    assert mine
    for name, g in mine.items():
        torch.testing.assert_close(both[name], g, rtol=1e-5, atol=1e-6)


def test_switching_roles_never_toggles_requires_grad() -> None:
    trunk = two_adapters(checkpointing=False)
    before = {n: p.requires_grad for n, p in trunk.named_parameters()}
    for role in (None, "critic", POLICY):
        with trunk.role(role):
            assert {n: p.requires_grad for n, p in trunk.named_parameters()} == before
    assert trunk._role == POLICY


def adapter_folder(tmp_path, name="adapter"):
    """A trained adapter: not the identity."""
    base = runs.model_folder(tmp_path / "base")
    torch.manual_seed(1)
    from transformers import AutoModelForCausalLM

    model = get_peft_model(
        AutoModelForCausalLM.from_pretrained(base),
        LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, task_type="CAUSAL_LM"),
    )
    model.save_pretrained(tmp_path / name)
    return tmp_path / name


def lora() -> Adapter:
    return Adapter.lora(r=4, alpha=8, dropout=0.0, targets="all-linear", dora=False, rslora=False)


def start(tmp_path, kind: str) -> Trunk:
    adapter_folder(tmp_path)
    name = tmp_path / ("adapter" if kind == "adapter start" else "base")
    trunk, _ = load_policy(find_model(name), compute=torch.float32, adapter=lora() if kind == "lora" else None)
    return trunk


@pytest.mark.parametrize("kind", ["full", "lora", "adapter start"])
def test_the_reference_stays_what_the_policy_was(tmp_path, kind) -> None:
    trunk = start(tmp_path, kind)
    batch = pack(store(4, 2, vocab=300))
    with torch.no_grad():
        first = trunk(batch).logp_N
    reference = Reference(trunk)
    optimizer = torch.optim.SGD([p for p in trunk.parameters() if p.requires_grad], lr=0.05)
    for _ in range(3):
        trunk(batch).logp_N.sum().backward()
        optimizer.step()
        optimizer.zero_grad()
    with torch.no_grad():
        with reference.live() as frozen:
            then = frozen(batch).logp_N
        now = trunk(batch).logp_N
    assert torch.equal(then, first), "the reference moved, or is not the policy before the run"
    assert (now - first).abs().max() > 0.01, "nothing was trained"


def test_an_adapter_start_is_not_the_raw_base(tmp_path) -> None:
    trunk = start(tmp_path, "adapter start")
    batch = pack(store(4, 2, vocab=300))
    with torch.no_grad():
        policy = trunk(batch).logp_N
        with Reference(trunk).live() as frozen:
            assert torch.equal(frozen(batch).logp_N, policy)
        with trunk.role(None):
            assert (trunk(batch).logp_N - policy).abs().max() > 0.1
    assert not any(p.requires_grad for n, p in trunk.named_parameters() if REFERENCE in n)


def test_the_saved_adapter_loads_in_plain_peft(tmp_path) -> None:
    from transformers import AutoModelForCausalLM, AutoTokenizer

    from prefiere.train.checkpoint import save_model

    trunk = start(tmp_path, "adapter start")
    save_model(trunk, AutoTokenizer.from_pretrained(tmp_path / "base"), tmp_path / "out")
    assert sorted(p.name for p in (tmp_path / "out").iterdir() if p.is_dir()) == []
    again = PeftModel.from_pretrained(AutoModelForCausalLM.from_pretrained(tmp_path / "base"), tmp_path / "out")
    batch = pack(store(4, 2, vocab=300))
    with torch.no_grad():
        torch.testing.assert_close(
            Trunk(again.eval(), packed=False)(batch).logp_N, trunk(batch).logp_N, rtol=1e-4, atol=1e-4
        )


def test_the_fingerprint_is_of_contents(tmp_path) -> None:
    one, same, other = tiny.model("llama"), tiny.model("llama"), tiny.model("llama", seed=1)
    assert fingerprint(one) == fingerprint(same) != fingerprint(other)
    with torch.no_grad():
        next(same.parameters()).view(-1)[0] += 1e-3
    assert fingerprint(one) != fingerprint(same)


def test_adapters_train_in_fp32_on_a_bf16_base(tmp_path) -> None:
    runs.model_folder(tmp_path / "base")
    trunk, _ = load_policy(find_model(tmp_path / "base"), compute=torch.bfloat16, adapter=lora())
    for name, p in trunk.named_parameters():
        assert p.dtype == (torch.float32 if p.requires_grad else torch.bfloat16), name
        assert p.requires_grad == ("lora" in name)


@pytest.mark.parametrize(
    ("name", "role"),
    [
        ("model.base_model.model.model.layers.0.self_attn.q_proj.lora_A.default.weight", POLICY),
        ("model.base_model.model.model.layers.0.self_attn.q_proj.lora_magnitude_vector.reference.weight", REFERENCE),
        ("bodies.critic.model.layers.0.mlp.up_proj.weight", CRITIC),
        ("heads.reward_2.weight", "reward_2"),
        ("model.base_model.model.model.layers.0.self_attn.q_proj.base_layer.weight", None),
        ("model.model.embed_tokens.weight", None),
    ],
)
def test_a_parameter_says_whose_it_is(name: str, role: str | None) -> None:
    assert role_of(name) == role
