"""The last layer on the rows that are read: fewer rows, the same log-probs and gradients, never where it is wrong."""

import pytest
import torch

import tiny
from prefiere.kernels import attention, last_layer
from prefiere.kernels.attention import plan_attention, trimmed
from prefiere.models.check.rows import probe
from prefiere.models.trunk import Trunk
from prefiere.tokens.pack import Segment, pack
from random_groups import store

attention.register()
FAMILIES = [("llama", None), ("mistral", 7), ("qwen2", 7), ("qwen3", None), ("mixtral", None), ("gemma2", 7)]


def model_of(family: str, window: int | None):
    model = tiny.model(family, sliding_window=window)
    model.set_attn_implementation(attention.NAME)
    return model


def run(trunk: Trunk, batch) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    trunk.zero_grad()
    logp = trunk(batch).logp_N
    (logp * torch.linspace(-1, 1, len(logp))).sum().backward()
    return logp.detach(), {n: p.grad.clone() for n, p in trunk.named_parameters() if p.grad is not None}


@pytest.mark.parametrize(("family", "window"), FAMILIES)
@pytest.mark.parametrize("k", [1, 3])
def test_it_changes_nothing_and_skips_rows(family, window, k) -> None:
    batch = pack(store(6, k, prompt=30, completion=9, partly=True))
    whole, less = Trunk(model_of(family, window)), Trunk(model_of(family, window))
    assert last_layer.untrim(whole.decoder)
    rows: dict[str, list[int]] = {"first": [], "last": []}
    layers = less.decoder.layers
    for name, layer in (("first", layers[0]), ("last", layers[-1])):
        layer.mlp.register_forward_pre_hook(lambda m, args, name=name: rows[name].append(args[0].shape[1]))
    expected, actual = run(whole, batch), run(less, batch)
    torch.testing.assert_close(actual[0], expected[0], rtol=1e-5, atol=1e-5)
    largest = max(g.norm() for g in expected[1].values())
    assert actual[1].keys() == expected[1].keys()
    for name, g in expected[1].items():
        assert (actual[1][name] - g).norm() <= 1e-5 * max(g.norm(), 1e-2 * largest), name
    assert rows["first"] == [len(batch.tokens_T)]
    assert len(batch.predictor_N.unique()) <= rows["last"][0] < 0.8 * len(batch.tokens_T)


def test_checkpointing_trims_in_the_recomputation_too() -> None:
    batch = pack(store(6, 2, prompt=30))
    plain, checkpointed = (Trunk(model_of("llama", None)).train() for _ in range(2))
    checkpointed.checkpoint_gradients()
    rows: list[int] = []
    checkpointed.decoder.layers[-1].mlp.register_forward_pre_hook(lambda m, args: rows.append(args[0].shape[1]))
    expected, actual = run(plain, batch), run(checkpointed, batch)
    for name, g in expected[1].items():
        torch.testing.assert_close(actual[1][name], g)
    assert len(rows) == 2
    assert rows[0] == rows[1] < len(batch.tokens_T)


def test_scores_are_read_at_last_tokens_alone() -> None:
    batch = pack(store(5, 2, prompt=30))
    whole, less = Trunk(model_of("llama", None)), Trunk(model_of("llama", None))
    last_layer.untrim(whole.decoder)
    for trunk in (whole, less):
        torch.manual_seed(0)
        trunk.heads["reward"] = torch.nn.Linear(32, 1, bias=False)
    torch.testing.assert_close(less.scores(batch, "reward"), whole.scores(batch, "reward"), rtol=1e-5, atol=1e-5)


def test_what_is_read_by_hand() -> None:
    """Prompt rows 0-3, completion 1 rows 4-6 (all scored), completion 2 row 7 (its only token, told by row 3)."""
    segments = [Segment(0, 7, 0, 0), Segment(7, 8, 0, 4)]
    assert trimmed(segments, [(3, 6), (7, 7)]) == (Segment(3, 6, 0, 3),)
    plan = plan_attention(segments, reads=[(3, 6), (7, 7)])
    assert plan.rows_M is None
    assert plan.last is not None
    assert plan.last.rows_M.tolist() == [3, 4, 5]
    bucket = plan.last.in_buckets.buckets[0]
    assert bucket.query_SQ.tolist() == [[3, 4, 5]]
    assert bucket.key_SK.tolist() == [[0, 1, 2, 3, 4, 5]]
    # the mask: a query at key place 3, 4, 5 sees the keys up to its own
    assert plan.last.mask(0, None)[0, 0].sum(-1).tolist() == [4, 5, 6]
    # rows that nobody reads take the row of zeros behind the bucket's three
    assert plan.last.in_buckets.inverse_T.tolist() == [3, 3, 3, 0, 1, 2, 3, 3]


def test_a_pack_knows_its_predictors() -> None:
    batch = pack(store(8, 3, partly=True, seed=3))
    for place in batch.predictor_N.tolist():
        (where,) = [i for i, s in enumerate(batch.segments) if s.start <= place < s.stop]
        first, stop = batch.reads[where]
        assert first <= place < stop
    ends = {first for first, stop in batch.reads if stop > first} | {
        stop - 1 for first, stop in batch.reads if stop > first
    }
    assert ends <= set(batch.predictor_N.tolist())


@pytest.mark.parametrize("fault", ["wrong", "broken"])
def test_a_model_that_cannot_skip_rows_runs_them_all(fault, monkeypatch) -> None:
    """A layer that adds something of its own for every row: wrong in value, or in shape, when rows are skipped."""
    model = tiny.model("llama")
    layer = model.model.layers[-1]
    real = layer.forward

    def forward(hidden_states, **kwargs):
        if fault == "wrong":
            return real(hidden_states, **kwargs) + hidden_states.cumsum(1)
        cos, _ = kwargs["position_embeddings"]
        return real(hidden_states, **kwargs) + cos.sum(-1, keepdim=True)

    monkeypatch.setattr(layer, "forward", forward)
    if fault == "wrong":
        assert probe(model, max_length=256) is not None, "a sum over the row is no attention: nothing shared is exact"
        return
    assert probe(model, max_length=256) is None
    batch = pack(store(4, 2))
    model.set_attn_implementation(attention.NAME)
    plain = Trunk(tiny.model("llama"), packed=False)
    monkeypatch.setattr(plain.decoder.layers[-1], "forward", _with(plain.decoder.layers[-1].forward))
    torch.testing.assert_close(Trunk(model)(batch).logp_N, plain(batch).logp_N, rtol=1e-4, atol=1e-4)


def _with(real):
    def forward(hidden_states, **kwargs):
        return real(hidden_states, **kwargs) + kwargs["position_embeddings"][0].sum(-1, keepdim=True)

    return forward
