"""Packed rows with shared prefixes against plain padded forwards of the same model: loss and every gradient."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from prefiere.data.batch import pack, unpack
from prefiere.models import attention
from prefiere.models.attention import plan_attention
from prefiere.models.load import probe
from prefiere.models.roles import Trunk
from random_groups import store

attention.register()

FAMILIES = [
    ("llama", None), ("mistral", 7), ("qwen2", None), ("qwen2", 7), ("qwen3", None), ("gpt2", None),
    ("mixtral", None), ("gemma2", 7),
]  # fmt: skip


def plain_logprobs(model, batch) -> torch.Tensor:
    """transformers' own eager forward of padded rows, and log-softmax over the whole logits."""
    rows = unpack(batch)
    before = model.config._attn_implementation
    model.set_attn_implementation("eager")
    logits = model(input_ids=rows.ids_CL, attention_mask=rows.mask_CL).logits
    model.set_attn_implementation(before)
    return torch.log_softmax(logits.double(), -1)[rows.row_N, rows.column_N].gather(-1, batch.target_N[:, None])[:, 0]


def gradients(model, loss) -> dict[str, torch.Tensor]:
    model.zero_grad()
    loss.backward()
    return {n: p.grad.clone() for n, p in model.named_parameters() if p.grad is not None}


def assert_same(model, batch, tolerance: float = 2e-5) -> None:
    weights = torch.linspace(-1, 1, len(batch.target_N), dtype=torch.float64)
    expected = plain_logprobs(model, batch)
    reference = gradients(model, (expected * weights).sum())
    model.set_attn_implementation(attention.NAME)
    actual = Trunk(model)(batch).logp_N
    torch.testing.assert_close(actual.double(), expected, rtol=1e-5, atol=5e-5)
    mine = gradients(model, (actual.double() * weights).sum())
    assert mine.keys() == reference.keys()
    largest = max(g.norm() for g in reference.values())
    for name, g in reference.items():
        assert (mine[name] - g).norm() <= tolerance * max(g.norm(), 1e-2 * largest), name


@pytest.mark.parametrize(("family", "window"), FAMILIES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_packed_equals_padded(family, window, k) -> None:
    model = tiny.model(family, sliding_window=window)
    assert_same(model, pack(store(6, k, partly=True)))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_token_prompts_and_completions(family) -> None:
    model = tiny.model(family, sliding_window=7 if family == "gemma2" else None)
    assert_same(model, pack(store(5, 2, prompt=1, completion=1)))


@settings(max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.integers(1, 5), st.integers(1, 8), st.integers(1, 90), st.integers(1, 90), st.integers(0, 1000))
def test_random_layouts(k, n, prompt, completion, seed) -> None:
    model = tiny.model("mistral", sliding_window=16)
    batch = pack(store(n, k, prompt=prompt, completion=completion, seed=seed, partly=True))
    expected = plain_logprobs(model, batch)
    model.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(Trunk(model)(batch).logp_N.double(), expected, rtol=1e-5, atol=5e-5)


def test_gradient_checkpointing_changes_nothing() -> None:
    batch = pack(store(6, 2))
    plain, checkpointed = tiny.model("llama"), tiny.model("llama")
    for m in (plain, checkpointed):
        m.set_attn_implementation(attention.NAME)
        m.train()
    trunk = Trunk(checkpointed)
    trunk.checkpoint_gradients()
    one = gradients(plain, Trunk(plain)(batch).logp_N.sum())
    two = gradients(checkpointed, trunk(batch).logp_N.sum())
    for name in one:
        torch.testing.assert_close(one[name], two[name])


def test_without_segments_the_model_is_as_it_was() -> None:
    model = tiny.model("mistral", sliding_window=5)
    ids = torch.randint(6, 400, (3, 20), generator=torch.Generator().manual_seed(0))
    mask = torch.ones_like(ids)
    mask[1, 12:] = 0
    before = model(input_ids=ids, attention_mask=mask).logits[mask.bool()]
    model.set_attn_implementation(attention.NAME)
    torch.testing.assert_close(model(input_ids=ids, attention_mask=mask).logits[mask.bool()], before)


def test_buckets_hold_every_query_once_and_little_padding() -> None:
    batch = pack(store(40, 2, prompt=300, completion=200))
    plan = plan_attention(batch.segments)
    rows = torch.cat([b.query_SQ.flatten() for b in plan.buckets])
    assert rows[plan.inverse_T].tolist() == list(range(len(batch.tokens_T)))
    area = sum((s.stop - s.start) * (s.stop - s.start + s.prefix_stop - s.prefix_start) for s in batch.segments)
    assert sum(b.query_SQ.shape[1] * b.key_SK.numel() for b in plan.buckets) <= 1.4 * area
    assert len(plan.buckets) < len(batch.segments) / 2


@pytest.mark.parametrize(("family", "window"), FAMILIES)
def test_the_probe_trusts_what_is_exact(family, window) -> None:
    model = tiny.model(family, sliding_window=window)
    assert probe(model, max_length=256) is None
    assert model.config._attn_implementation != attention.NAME, "the probe must leave the model as it was"


def test_the_probe_catches_a_lost_prefix(monkeypatch) -> None:
    """Attention that forgets the shared prompt for all but the first completion must not be trusted."""
    real = attention.plan_attention

    def forgetful(segments, device="cpu", reads=()):
        return real([s._replace(prefix_start=s.prefix_stop) for s in segments], device, reads)

    monkeypatch.setattr("prefiere.models.roles.plan_attention", forgetful)
    assert "differ" in probe(tiny.model("llama"), max_length=256)


def test_the_probe_catches_a_window_that_is_ignored(monkeypatch) -> None:
    monkeypatch.setattr(attention.AttentionPlan, "mask", lambda self, n, window: _no_window(self, n))
    assert "differ" in probe(tiny.model("mistral", sliding_window=8), max_length=256)


_mask = attention.AttentionPlan.mask


def _no_window(plan, number):
    return _mask(plan, number, None)


def test_a_recurrent_model_runs_on_padded_rows() -> None:
    from transformers import AutoModelForCausalLM, MambaConfig

    torch.manual_seed(0)
    config = MambaConfig(vocab_size=400, hidden_size=16, num_hidden_layers=2, state_size=4, initializer_range=0.2)
    model = AutoModelForCausalLM.from_config(config).eval()
    assert probe(model, max_length=256) is not None
    batch = pack(store(3, 2))
    rows = unpack(batch)
    logits = model(input_ids=rows.ids_CL, attention_mask=rows.mask_CL).logits
    expected = torch.log_softmax(logits, -1)[rows.row_N, rows.column_N].gather(-1, batch.target_N[:, None])[:, 0]
    torch.testing.assert_close(Trunk(model, packed=False)(batch).logp_N, expected)
