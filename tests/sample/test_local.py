"""The sampler against transformers' generate, its own promises, and the distribution it should draw from."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from scipy.stats import chisquare, kstest

import tiny
from prefiere.kernels import attention
from prefiere.models.trunk import Trunk
from prefiere.sample.draw import inverse_cdf, uniforms
from prefiere.sample.local import LocalRollouts, generate
from prefiere.sample.sampling import Sampling, Vocabulary
from prefiere.sample.shared_prefix import SharedLayer
from prefiere.tokens.groups import PromptGroup
from prefiere.tokens.pack import pack

EOS = 2
END = Vocabulary((EOS,))


def prompts(n: int = 9, seed: int = 0, longest: int = 12) -> list[np.ndarray]:
    rng = np.random.default_rng(seed)
    return [rng.integers(6, 400, rng.integers(1, longest + 1)).astype(np.int32) for _ in range(n)]


FAMILIES = [
    ("llama", None),
    ("mistral", 6),
    ("qwen2", 6),
    ("qwen3", None),
    ("gpt2", None),
    ("gemma2", 6),
    ("mixtral", 6),
]


@pytest.mark.parametrize(("family", "window"), FAMILIES)
@pytest.mark.parametrize("lora", [False, True])
def test_greedy_equals_generate(family, window, lora) -> None:
    model = tiny.model(family, sliding_window=window)
    if lora:
        torch.manual_seed(0)
        config = LoraConfig(r=4, target_modules="all-linear", init_lora_weights=False, fan_in_fan_out=family == "gpt2")
        model = get_peft_model(model, config).eval()
    asked = prompts(9, longest=40)
    mine = generate(model, asked, Sampling(temperature=0.0, max_new_tokens=12), Vocabulary((EOS, 40, 41)))
    for prompt, sample in zip(asked, mine, strict=True):
        ids = torch.tensor(prompt)[None].long()
        theirs = model.generate(
            ids, attention_mask=torch.ones_like(ids), do_sample=False, max_new_tokens=12, eos_token_id=[EOS, 40, 41],
            pad_token_id=0,
        )[0, len(prompt) :]  # fmt: skip
        assert sample.tokens.tolist() == theirs.tolist()
        assert sample.ended == (int(theirs[-1]) in (EOS, 40, 41))


def test_grouping_and_company_change_no_token() -> None:
    model, asked = tiny.model("llama"), prompts()
    how = Sampling(3, max_new_tokens=10, seed=7), Vocabulary(tuple(range(2, 60)))
    whole = generate(model, asked, *how)
    one_by_one = generate(model, asked, *how, rows=1)
    for a, b in zip(whole, one_by_one, strict=True):
        assert (a.prompt, a.sample, a.tokens.tolist(), a.ended) == (b.prompt, b.sample, b.tokens.tolist(), b.ended)
    assert {s.ended for s in whole} == {True, False}, "no row was dropped, or all were: the test does not test"
    backwards = generate(model, asked[::-1], *how, numbers=list(range(9))[::-1])
    assert [s.tokens.tolist() for s in backwards[-3:]] == [s.tokens.tolist() for s in whole[:3]]


def test_looks_and_company_of_samples_change_no_token(monkeypatch) -> None:
    model, asked = tiny.model("llama"), prompts()
    three, ends = Sampling(3, max_new_tokens=13, seed=7), Vocabulary(tuple(range(2, 40)))
    whole = generate(model, asked, three, ends)
    alone = generate(model, asked, replace(three, samples=1), ends)
    monkeypatch.setattr("prefiere.sample.local._look_every", lambda device: 5)
    seldom = generate(model, asked, three, ends)
    first = [s for s in whole if s.sample == 0]
    for mine, others in ((first, alone), (whole, seldom)):
        for a, b in zip(mine, others, strict=True):
            assert (a.tokens.tolist(), a.ended) == (b.tokens.tolist(), b.ended)
            np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
    assert len({len(s.tokens) for s in whole}) > 5


def decodes_shared(monkeypatch) -> list[torch.dtype]:
    """The dtypes of all products that later calls make with a prompt's shared keys."""
    seen, own = [], SharedLayer.attend
    monkeypatch.setattr(SharedLayer, "attend", lambda self, *a: seen.append(self._work) or own(self, *a))
    return seen


@pytest.mark.parametrize("family", ["llama", "qwen3", "gpt2"])
def test_samples_that_share_keys_draw_what_they_draw_alone(monkeypatch, family) -> None:
    """Against a cache with each row's own keys, in fp32, with rows and prompts that end early."""
    model, asked, seen = tiny.model(family), prompts(), decodes_shared(monkeypatch)
    model.set_attn_implementation("sdpa")
    how = Sampling(3, max_new_tokens=13, seed=7), Vocabulary(tuple(range(2, 40)))
    shared = generate(model, asked, *how)
    assert seen
    assert model.config._attn_implementation == "sdpa"
    seen.clear()
    monkeypatch.setattr("prefiere.sample.shared_prefix.Watch.all_plain", lambda *_: False)
    for a, b in zip(shared, generate(model, asked, *how), strict=True):
        assert (a.tokens.tolist(), a.ended) == (b.tokens.tolist(), b.ended)
        np.testing.assert_allclose(a.logp, b.logp, atol=1e-5)
    assert not seen


def test_later_answers_are_drawn_without_the_earlier_ones() -> None:
    model, asked, ends = tiny.model("llama"), prompts(), Vocabulary(tuple(range(2, 40)))
    whole = generate(model, asked, Sampling(4, max_new_tokens=9, seed=7), ends)
    later = generate(model, asked, Sampling(2, max_new_tokens=9, seed=7, first=2), ends)
    assert [s.tokens.tolist() for s in later] == [s.tokens.tolist() for s in whole if s.sample >= 2]


@pytest.mark.parametrize("auto", [False, True])
def test_shared_keys_in_bf16_within_the_noise_of_plain_forwards(monkeypatch, auto) -> None:
    exact, asked, seen = tiny.model("llama", num_key_value_heads=2), prompts(), decodes_shared(monkeypatch)
    model = tiny.model("llama", num_key_value_heads=2)
    model = model if auto else model.bfloat16()
    model.set_attn_implementation("sdpa")
    errors = []
    with torch.autocast("cpu", torch.bfloat16, enabled=auto), torch.no_grad():
        made = generate(model, asked, Sampling(3, max_new_tokens=9), END)
        for s in made:
            row = torch.tensor([*asked[s.prompt], *s.tokens])[None].long()
            at = torch.arange(len(s.tokens)), torch.tensor(s.tokens).long()
            plain = torch.log_softmax(model(row).logits[0, len(asked[s.prompt]) - 1 : -1].double(), -1)[at]
            with torch.autocast("cpu", enabled=False):
                true = torch.log_softmax(exact(row).logits[0, len(asked[s.prompt]) - 1 : -1].double(), -1)[at]
            errors.append([float((x - true).square().mean()) for x in (torch.from_numpy(s.logp).double(), plain)])
    mine, theirs = np.sqrt(np.mean(errors, 0))
    assert mine <= 1.3 * theirs
    assert set(seen) == {torch.bfloat16}


@pytest.mark.parametrize(("family", "window"), [("mistral", 6), ("gemma2", 6)])
def test_unusual_attention_keeps_its_own_cache(monkeypatch, family, window) -> None:
    seen = decodes_shared(monkeypatch)
    generate(tiny.model(family, sliding_window=window), prompts(3), Sampling(max_new_tokens=3), END)
    assert not seen


@pytest.mark.parametrize("every", [1, 4])
def test_rows_end_where_the_model_does(monkeypatch, every) -> None:
    """Prompts of 3 and 9 tokens in a model of 12 positions: the short one goes on when the long one is full."""
    monkeypatch.setattr("prefiere.sample.local._look_every", lambda device: every)
    model = tiny.model("gpt2", n_positions=12)
    asked = [np.arange(6, 9, dtype=np.int32), np.arange(6, 15, dtype=np.int32)]
    made = generate(model, asked, Sampling(2, max_new_tokens=50), Vocabulary((399,)))
    assert [len(s.tokens) for s in made] == [9, 9, 3, 3]
    assert not any(s.ended for s in made)


def test_seeds_samples_and_prompts_draw_differently() -> None:
    model = tiny.model("llama")
    same = [prompts(1)[0]] * 2
    a, b, c, d = generate(model, same, Sampling(2, max_new_tokens=8, seed=1), END)
    other = generate(model, same, Sampling(2, max_new_tokens=8, seed=2), END)[0]
    assert len({tuple(s.tokens.tolist()) for s in (a, b, c, d, other)}) == 5


@pytest.mark.parametrize("temperature", [0.7, 1.0])
def test_log_probs_are_those_of_a_plain_forward(temperature) -> None:
    model, asked = tiny.model("llama"), prompts()
    for s in generate(model, asked, Sampling(2, temperature, max_new_tokens=6), END):
        row = torch.tensor([*asked[s.prompt], *s.tokens])[None].long()
        logits = model(row).logits[0, len(asked[s.prompt]) - 1 : -1].double() / temperature
        expected = torch.log_softmax(logits, -1)[torch.arange(len(s.tokens)), torch.tensor(s.tokens).long()]
        np.testing.assert_allclose(s.logp, expected.detach().numpy(), atol=2e-5)


def test_log_probs_are_those_of_training() -> None:
    model, asked = tiny.model("mistral", sliding_window=6), prompts()
    made = generate(model, asked, Sampling(2, max_new_tokens=8), END)
    groups = [PromptGroup(asked[s.prompt], (s.tokens,), (np.ones(len(s.tokens), bool),)) for s in made]
    attention.register()
    model.set_attn_implementation(attention.NAME)
    trained = Trunk(model)(pack(groups)).logp_N.detach().numpy()
    np.testing.assert_allclose(np.concatenate([s.logp for s in made]), trained, atol=2e-5)


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.5, 1.0), (1.0, 0.6)])
def test_first_tokens_follow_the_distribution(temperature, top_p) -> None:
    """Chi-square over 4,000 draws; the expected shares come from a plain forward and a nucleus written out."""
    model, prompt, n = tiny.model("llama", vocab_size=24), np.asarray([7, 9, 11], np.int32), 4000
    logits = model(torch.tensor(prompt)[None].long()).logits[0, -1].double() / temperature
    p = torch.softmax(logits, -1).detach().numpy()
    order = np.argsort(-p)
    kept = order[: int(np.searchsorted(np.cumsum(p[order]), top_p)) + 1]
    share = np.zeros_like(p)
    share[kept] = p[kept] / p[kept].sum()
    drawn = generate(model, [prompt], Sampling(n, temperature, top_p, max_new_tokens=1, seed=3), END, rows=n)
    counts = np.bincount([int(s.tokens[0]) for s in drawn], minlength=24)
    assert counts[share == 0].sum() == 0
    common = share * n >= 5
    observed = np.append(counts[common], counts[~common].sum())
    expected = np.append(share[common], share[~common].sum()) * n
    assert chisquare(observed[expected > 0], expected[expected > 0]).pvalue > 1e-3


@pytest.mark.parametrize("size", [5, 256, 1000])
def test_the_inverse_of_a_running_sum(size) -> None:
    """Against one running sum in float64; what has no mass is never drawn, not even at the ends of (0, 1)."""
    rng = np.random.default_rng(size)
    mass = rng.random((400, size)).astype(np.float32) ** 8 * (rng.random((400, size)) < 0.5)
    mass[:200, -2:] = 0
    mass[:, 1] += 1e-3
    u = rng.random(400)
    u[:9], u[9:18] = 2.0**-54, 1 - 2.0**-53
    drawn = inverse_cdf(torch.from_numpy(mass), torch.from_numpy(u)).numpy()
    running = np.pad(mass.astype(np.float64).cumsum(1), ((0, 0), (1, 0)))
    row, aim = np.arange(400), u * running[:, -1]
    assert (mass[row, drawn] > 0).all()
    assert (running[row, drawn] <= aim * (1 + 1e-12)).all()
    assert (running[row, drawn + 1] >= aim * (1 - 1e-12)).all()
    assert len(set(drawn.tolist())) > size // 4


def test_uniforms_are_uniform_and_independent() -> None:
    n = 20000
    for varied in range(3):
        parts = [np.zeros(n, np.int64), np.zeros(n, np.int64)]
        if varied < 2:
            parts[varied] = np.arange(n)
            u = uniforms(5, parts[0], parts[1], 0)
        else:
            u = np.concatenate([uniforms(5, parts[0][:1], parts[1][:1], i) for i in range(n)])
        assert kstest(u, "uniform").pvalue > 1e-3
        assert abs(np.corrcoef(u[:-1], u[1:])[0, 1]) < 0.03


def test_forbidden_ids_and_empty_prompts() -> None:
    model = tiny.model("llama", vocab_size=12)
    asked = [np.asarray([7, 8], np.int32)]
    drawn = generate(model, asked, Sampling(50, max_new_tokens=4), Vocabulary((EOS,), forbidden=(0, 5)))
    assert not {0, 5} & {int(t) for s in drawn for t in s.tokens}
    with pytest.raises(ValueError, match="prompt 1 has no tokens"):
        generate(model, [np.asarray([7]), np.asarray([], np.int32)], Sampling(), END)


@pytest.mark.parametrize("precision", [None, torch.bfloat16])
def test_the_models_own_rollouts_name_their_version_and_keep_the_runs_precision(precision) -> None:
    model, asked, three = tiny.model("llama"), prompts(3), Sampling(3, max_new_tokens=5, seed=4)
    told: list[int] = []
    made = LocalRollouts(model, END, precision).sample(asked, three, version=6, numbers=[4, 2, 9], progress=told.append)
    with torch.autocast("cpu", torch.bfloat16, enabled=precision is not None):
        plain = generate(model, asked, three, END, numbers=[4, 2, 9])
    assert {s.version for s in made} == {6}
    assert [s.logp.tolist() for s in made] == [s.logp.tolist() for s in plain]
    assert sum(told) == 9


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"samples": 0}, "samples=0: a prompt needs one answer at least"),
        ({"temperature": -0.1}, "temperature=-0.1: a number from 0"),
        ({"temperature": float("nan")}, "temperature=nan"),
        ({"temperature": float("inf")}, "temperature=inf"),
        ({"top_p": 0.0}, "top_p=0: a probability above 0"),
        ({"top_p": 1.5}, "top_p=1.5"),
        ({"max_new_tokens": 0}, "max_new_tokens=0: an answer has one token at least"),
    ],
)
def test_sampling_out_of_range_is_refused(given, says) -> None:
    with pytest.raises(ValueError, match=says):
        Sampling(**given)


def test_padding_is_never_drawn_unless_it_ends_an_answer() -> None:
    tokenizer = tiny.tokenizer("bpe", True)
    assert Vocabulary.of(tokenizer, [2, 7]) == Vocabulary((2, 7), (tokenizer.pad_token_id,))
    assert Vocabulary.of(tokenizer, [2, tokenizer.pad_token_id]).forbidden == ()
    tokenizer.pad_token = None
    assert Vocabulary.of(tokenizer, [2]).forbidden == ()


@pytest.mark.parametrize("training", [True, False])
def test_a_model_is_left_in_its_mode_also_where_sampling_fails(training: bool) -> None:
    model = tiny.model("llama").train(training)

    def interrupted(n: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        generate(
            model, [np.array([7, 8], np.int32)], Sampling(max_new_tokens=2), Vocabulary((2,)), progress=interrupted
        )
    assert model.training is training
