"""Packed rows with shared prefixes against plain padded forwards of the same model: loss and every gradient."""

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tiny
from prefiere.kernels import attention, fused
from prefiere.kernels.attention import plan_attention
from prefiere.models.check.rows import probe
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import Segment, pack, unpack
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


@pytest.fixture(params=["written out", "in buckets"])
def form(request, monkeypatch) -> None:
    """A CPU writes attention out; other devices get the fused kernel in buckets, which a CPU has for what is long."""
    if request.param == "in buckets":
        monkeypatch.setattr(attention, "fits", lambda *_: False)


@pytest.mark.usefixtures("form")
@pytest.mark.parametrize(("family", "window"), FAMILIES)
@pytest.mark.parametrize("k", [1, 2, 4])
def test_packed_equals_padded(family, window, k) -> None:
    model = tiny.model(family, sliding_window=window)
    assert_same(model, pack(store(6, k, partly=True)))


@pytest.mark.parametrize("family", ["llama", "gemma2"])
def test_one_token_prompts_and_completions(family) -> None:
    model = tiny.model(family, sliding_window=7 if family == "gemma2" else None)
    assert_same(model, pack(store(5, 2, prompt=1, completion=1)))


@pytest.mark.usefixtures("form")
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
    plan = plan_attention(batch.segments).in_buckets
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

    def forgetful(segments, *how):
        return real([s._replace(prefix_start=s.prefix_stop) for s in segments], *how)

    monkeypatch.setattr("prefiere.models.trunk.plan_attention", forgetful)
    assert "differ" in probe(tiny.model("llama"), max_length=256)


def test_the_probe_catches_a_window_that_is_ignored(monkeypatch) -> None:
    real = attention.AttentionPlan.tiles
    monkeypatch.setattr(attention.AttentionPlan, "tiles", lambda self, h, kv, window: real(self, h, kv, None))
    assert "differ" in probe(tiny.model("mistral", sliding_window=8), max_length=256)


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


def loop_varlen(query, key, value, query_stop, key_stop, longest_query, longest_key, *, scale, window_size, enable_gqa):
    """What a variable-length kernel is documented to do, a query at a time: bottom-right causal, window to the left."""
    out = torch.zeros_like(query)
    left, right = window_size
    assert right == 0
    assert query.shape[0] == query_stop[-1]
    assert key.shape[0] == value.shape[0] == key_stop[-1]
    repeats = query.shape[1] // key.shape[1]
    assert enable_gqa == (repeats > 1)
    rows = []
    for s in range(len(query_stop) - 1):
        q0, q1, k0, k1 = (int(x) for x in (*query_stop[s : s + 2], *key_stop[s : s + 2]))
        assert q1 - q0 <= longest_query
        assert k1 - k0 <= longest_key
        for i in range(q1 - q0):
            last = (k1 - k0) - (q1 - q0) + i
            seen = slice(k0 + (max(0, last - left) if left >= 0 else 0), k0 + last + 1)
            k, v = (x[seen].repeat_interleave(repeats, 1) for x in (key, value))
            p = torch.softmax(torch.einsum("hd,khd->hk", query[q0 + i], k) * scale, -1)
            rows.append(torch.einsum("hk,khd->hd", p, v))
    return torch.stack(rows).to(out.dtype)


@pytest.mark.parametrize(("family", "window"), [("llama", None), ("mistral", 7), ("qwen2", 7)])
@pytest.mark.parametrize("k", [1, 3])
def test_one_call_for_a_whole_row(family, window, k, monkeypatch) -> None:
    """The plan for a variable-length kernel, with the kernel's documentation in the kernel's place."""
    batch = pack(store(4, k, partly=True))
    model = tiny.model(family, sliding_window=window, dtype=torch.bfloat16)
    model.set_attn_implementation(attention.NAME)
    bucketed = Trunk(model)(batch).logp_N
    calls = []
    monkeypatch.setattr(attention, "has_varlen", lambda device: True)
    monkeypatch.setattr(attention, "varlen", lambda *a, **o: calls.append(a[3]) or loop_varlen(*a, **o))
    once = Trunk(model)(batch).logp_N
    assert len(calls) == 2, "one call a layer"
    torch.testing.assert_close(once, bucketed, rtol=0.03, atol=0.1)
    once.sum().backward()
    assert all(torch.isfinite(p.grad).all() for p in model.parameters())


def test_a_flat_row_by_hand() -> None:
    """Prompt rows 0-2, completion 1 rows 3-4, completion 2 rows 5-6."""
    flat = attention.flatten([Segment(0, 5, 0, 0), Segment(5, 7, 0, 3)], "cpu")
    assert flat.query_Q.tolist() == [0, 1, 2, 3, 4, 5, 6]
    assert flat.key_K.tolist() == [0, 1, 2, 3, 4, 0, 1, 2, 5, 6]
    assert flat.query_stop_S1.tolist() == [0, 5, 7]
    assert flat.key_stop_S1.tolist() == [0, 5, 10]
    assert flat.query_stop_S1.dtype == torch.int32
    assert (flat.longest_query, flat.longest_key) == (5, 5)


@pytest.mark.parametrize("window", [None, 3, 40])
def test_no_query_of_a_bucket_sees_nothing(window) -> None:
    """Queries that are padding as well: kernels may make nan of one that sees no key, and its gradient spreads."""
    plan = plan_attention(pack(store(30, 3, prompt=60, completion=50)).segments)
    masks = [plan.mask(n, window) for n in range(len(plan.in_buckets.buckets))]
    assert any(m is not None for m in masks)
    assert all(m.any(-1).all() for m in masks if m is not None)


def test_an_old_kernel_is_not_told_what_it_does_not_know(monkeypatch) -> None:
    """PyTorch 2.11 shares key heads without a flag for it; 2.10 has no window, and is not used."""
    import torch.nn.attention.varlen as theirs

    told = []

    def of_2_11(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, *, return_aux=None, scale=None, window_size=None):
        told.append((scale, window_size))
        return query

    def of_2_10(query, key, value, cu_seq_q, cu_seq_k, max_q, max_k, is_causal=False, return_aux=None):
        raise AssertionError

    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device: (8, 0))
    for function, known in ((of_2_11, True), (of_2_10, False)):
        monkeypatch.setattr(theirs, "varlen_attn", function)
        fused._varlen_parameters.cache_clear()
        assert fused.has_varlen.__wrapped__(torch.device("cuda")) is known
        if known:
            q = torch.zeros(3, 4, 8)
            fused.varlen(q, q, q, None, None, 3, 3, scale=0.5, window_size=(6, 0), enable_gqa=True)
    assert told == [(0.5, (6, 0))]
    fused._varlen_parameters.cache_clear()


@pytest.mark.parametrize(
    ("width", "dtype", "fits"),
    [(64, torch.bfloat16, True), (256, torch.float16, True), (12, torch.bfloat16, False), (320, torch.bfloat16, False),
     (64, torch.float32, False)],
)  # fmt: skip
def test_heads_that_the_kernel_refuses_go_by_buckets(monkeypatch, width, dtype, fits) -> None:
    """The kernel's documented limits: 16 bits, heads of at most 256, in multiples of 8. Elsewhere it raises."""
    calls = []
    monkeypatch.setattr(attention, "has_varlen", lambda device: True)
    monkeypatch.setattr(attention, "varlen", lambda q, *a, **o: calls.append(q.shape[-1]) or loop_varlen(q, *a, **o))
    plan = plan_attention([Segment(0, 5, 0, 0), Segment(5, 7, 0, 3)])
    q, k, v = (torch.randn(1, heads, 7, width, dtype=dtype) for heads in (4, 2, 2))
    out, _ = attention.segment_attention(torch.nn.Module(), q, k, v, None, segments=plan)
    assert calls == [width] * fits
    exact = (x[0].transpose(0, 1).double() for x in (q, k, v))
    expected = attention._one_call(*exact, plan.flat, None, width**-0.5)
    torch.testing.assert_close(out[0].double(), expected, rtol=0.02, atol=0.02)


def test_bf16_is_within_the_noise_of_padded_bf16() -> None:
    """Log-probs and gradients of both paths under autocast, each against float64."""
    batch = pack(store(8, 2, prompt=60, completion=40, seed=5))
    weights = torch.linspace(-1, 1, len(batch.target_N), dtype=torch.float64)
    exact = tiny.model("llama", hidden=64).double()
    expected = plain_logprobs(exact, batch)
    reference = gradients(exact, (expected * weights).sum())

    def errors(packed: bool) -> tuple[float, float]:
        model = tiny.model("llama", hidden=64)
        model.set_attn_implementation(attention.NAME if packed else "sdpa")
        with torch.autocast("cpu", torch.bfloat16):
            actual = Trunk(model, packed=packed)(batch).logp_N.double()
        mine = gradients(model, (actual * weights).sum())
        off = sum(float((mine[n] - g).norm()) ** 2 for n, g in reference.items()) ** 0.5
        return float((actual - expected).detach().norm()), off

    packed, padded = errors(True), errors(False)
    assert packed[0] <= 1.25 * padded[0]
    assert packed[1] <= 1.25 * padded[1]
