import inspect
import itertools
import math
from dataclasses import fields, replace
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import oracles
from prefiere.objectives import preference
from prefiere.objectives.preference import LOSSES, PairBatch
from prefiere.settings import DPO

LN2 = math.log(2)

# Every pairwise loss with every option that it has, alone and together.
CASES: list[tuple[str, dict[str, float]]] = [
    ("sigmoid", {}),
    ("sigmoid", {"beta": 0.5, "label_smoothing": 0.2}),
    ("sigmoid", {"beta": 0.3, "dpop_lambda": 5.0, "label_smoothing": 0.1}),
    ("ipo", {}),
    ("ipo", {"beta": 0.4, "label_smoothing": 0.1, "dpop_lambda": 2.0}),
    ("hinge", {}),
    ("hinge", {"beta": 0.25, "label_smoothing": 0.1, "dpop_lambda": 2.0}),
    ("robust", {}),
    ("robust", {"beta": 0.3, "label_smoothing": 0.2, "dpop_lambda": 2.0}),
    ("simpo", {}),
    ("simpo", {"beta": 2.5, "simpo_gamma": 0.5, "label_smoothing": 0.1}),
    ("cpo", {}),
    ("cpo", {"beta": 0.2, "label_smoothing": 0.1}),
    ("orpo", {}),
    ("orpo", {"beta": 0.7, "label_smoothing": 0.1}),
]
ORACLE: dict[str, Any] = {name: getattr(oracles, "dpo" if name == "sigmoid" else name) for name in LOSSES}
PAIRWISE = [name for name, loss in LOSSES.items() if loss.per == "pair"]


def batch(pairs: list[oracles.Pair], dtype: torch.dtype = torch.float64) -> PairBatch:
    columns = [torch.tensor(c, dtype=dtype) for c in zip(*pairs, strict=True)]
    return PairBatch(*columns)


def swapped(b: PairBatch) -> PairBatch:
    return PairBatch(
        b.policy_rejected_G,
        b.policy_chosen_G,
        b.reference_rejected_G,
        b.reference_chosen_G,
        b.rejected_tokens_G,
        b.chosen_tokens_G,
        1 - b.label_G,
    )


logp = st.floats(-60.0, -0.1)
pair = st.tuples(logp, logp, logp, logp, st.integers(1, 40), st.integers(1, 40), st.sampled_from([1.0, 0.5, 0.8, 0.0]))


@pytest.mark.parametrize(("name", "options"), CASES)
@given(st.lists(pair, min_size=1, max_size=4))
def test_loss_against_the_oracle(name: str, options: dict[str, float], pairs: list[oracles.Pair]) -> None:
    y = LOSSES[name].function(batch(pairs), **options)
    expected = [ORACLE[name](p, **options) for p in pairs]
    assert y.dtype == torch.float64
    assert y.tolist() == pytest.approx(expected, rel=1e-9, abs=1e-9)
    single = LOSSES[name].function(batch(pairs, torch.float32), **options)
    assert single.dtype == torch.float32
    assert single.tolist() == pytest.approx(expected, rel=1e-4, abs=1e-4)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradient_against_the_oracle(name: str, options: dict[str, float]) -> None:
    pairs: list[oracles.Pair] = [
        (-11.0, -14.0, -12.5, -13.0, 7, 9, 1.0),
        (-30.0, -14.5, -22.0, -15.0, 12, 5, 0.7),
        (-3.0, -4.0, -2.0, -9.0, 4, 4, 0.5),
    ]
    b = batch(pairs)
    leaves = [b.policy_chosen_G.requires_grad_(), b.policy_rejected_G.requires_grad_()]
    LOSSES[name].function(b, **options).sum().backward()
    for i, p in enumerate(pairs):
        expected = oracles.slope(lambda v, p=p: ORACLE[name]((v[0], v[1], *p[2:]), **options), p[:2], 1e-3)
        got = [leaf.grad[i].item() for leaf in leaves if leaf.grad is not None]
        assert got == pytest.approx(expected, rel=1e-7, abs=1e-8)


@pytest.mark.parametrize(("name", "options"), CASES)
def test_gradcheck(name: str, options: dict[str, float]) -> None:
    torch.manual_seed(0)
    b = batch([(-11.0, -14.0, -12.5, -13.0, 7, 9, 1.0), (-30.0, -14.5, -22.0, -15.0, 12, 5, 0.7)])

    def loss(chosen: Tensor, rejected: Tensor) -> Tensor:
        return LOSSES[name].function(replace(b, policy_chosen_G=chosen, policy_rejected_G=rejected), **options)

    sides = (b.policy_chosen_G.requires_grad_(), b.policy_rejected_G.requires_grad_())
    assert torch.autograd.gradcheck(loss, sides)


@pytest.mark.parametrize(("name", "options"), CASES)
@given(pair, st.floats(0, 1))
def test_swapping_answers_and_label_changes_nothing(
    name: str, options: dict[str, float], one: oracles.Pair, label: float
) -> None:
    b = batch([(*one[:6], label)])
    loss = LOSSES[name].function
    torch.testing.assert_close(loss(b, **options), loss(swapped(b), **options), rtol=1e-10, atol=1e-10)


def test_at_the_reference_by_hand() -> None:
    # With log-ratios of 0: sigmoid is -log sigmoid(0) = ln 2, whatever beta or smoothing; IPO is (1 / (2 beta))^2 =
    # 1 / (4 beta^2); hinge is 1; robust is ln 2 (1 - eps - eps) / (1 - 2 eps) = ln 2.
    b = batch([(-5.0, -9.0, -5.0, -9.0, 3, 4, 1.0)], torch.float32)
    assert preference.dpo_loss(b, beta=0.37, label_smoothing=0.1, dpop_lambda=50).item() == pytest.approx(LN2, abs=1e-7)
    assert preference.ipo_loss(b, beta=0.2).item() == pytest.approx(6.25)
    assert preference.hinge_loss(b, beta=0.3).item() == 1.0
    assert preference.robust_loss(b, label_smoothing=0.3).item() == pytest.approx(LN2)


def test_by_hand() -> None:
    # Log-ratios: chosen 2, rejected -1, so the difference is 3; 4 and 2 tokens, so per token 0.5 and -0.5: 1 apart.
    b = batch([(-8.0, -6.0, -10.0, -5.0, 4, 2, 1.0)])
    assert preference.dpo_loss(b, beta=1.0).item() == pytest.approx(math.log1p(math.exp(-3)))
    assert preference.ipo_loss(b, beta=1.0).item() == pytest.approx(0.25)  # (1 - 1/2)^2
    assert preference.hinge_loss(b, beta=0.25).item() == pytest.approx(0.25)
    # Mean log-probs are -2 and -3: sigmoid(2 * 1 - 1) for SimPO.
    assert preference.simpo_loss(b, beta=2.0, simpo_gamma=1.0).item() == pytest.approx(math.log1p(math.exp(-1)))
    # Log-probs differ by -2: -log sigmoid(-0.2), and 2 nats per token.
    assert preference.cpo_loss(b, beta=0.1).item() == pytest.approx(math.log1p(math.exp(0.2)) + 2)
    # odds = 1 / (1/P - 1) = 1 / (e^2 - 1) and 1 / (e^3 - 1); -log sigmoid(log ratio) = log(1 + 1 / ratio).
    ratio = (math.exp(3) - 1) / (math.exp(2) - 1)
    assert preference.orpo_loss(b, beta=0.5).item() == pytest.approx(2 + 0.5 * math.log1p(1 / ratio))
    # DPOP: chosen is 2 nats below the reference, rejected 5: 3 - 10 * 2 = -17.
    below = batch([(-12.0, -10.0, -10.0, -5.0, 4, 2, 1.0)])
    assert preference.dpo_loss(below, beta=1.0, dpop_lambda=10).item() == pytest.approx(17 + math.log1p(math.exp(-17)))


def test_robust_is_unbiased() -> None:
    # The mean over labels that are flipped with probability eps is the plain loss on the true label.
    b, eps = batch([(-8.0, -6.0, -10.0, -5.0, 4, 2, 1.0)]), 0.2
    true, flipped = (
        preference.robust_loss(x, beta=0.3, label_smoothing=eps) for x in (b, replace(swapped(b), label_G=b.label_G))
    )
    plain = preference.dpo_loss(b, beta=0.3)
    torch.testing.assert_close((1 - eps) * true + eps * flipped, plain)
    with pytest.raises(ValueError, match=r"label_smoothing must be in \[0, 0.5\)"):
        preference.robust_loss(b, label_smoothing=0.5)


@pytest.mark.parametrize(
    ("label", "eps", "optimum"), [(1.0, 0.1, math.log(9)), (0.5, 0.0, 0.0), (0.5, 0.3, 0.0), (0.75, 0.0, math.log(3))]
)
def test_a_soft_label_is_where_the_loss_is_lowest(label: float, eps: float, optimum: float) -> None:
    # cDPO: the gradient vanishes where sigmoid(margin) = p', at margin = log(p' / (1 - p')).
    h = torch.tensor([optimum], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    b = PairBatch(h, zero, zero, zero, one, one, torch.tensor([label], dtype=torch.float64))
    preference.dpo_loss(b, beta=1.0, label_smoothing=eps).sum().backward()
    assert h.grad is not None
    assert abs(h.grad.item()) < 1e-12


def test_ipo_with_a_soft_label_rests_at_the_target_of_the_paper() -> None:
    # Azar et al.: the log-ratio gap regresses on (p - 1/2) / beta.
    h = torch.tensor([(0.8 - 0.5) / 0.4], dtype=torch.float64, requires_grad=True)
    zero, one = torch.zeros(1, dtype=torch.float64), torch.ones(1)
    preference.ipo_loss(PairBatch(h, zero, zero, zero, one, one, 0.8 * one), beta=0.4).sum().backward()
    assert h.grad is not None
    assert abs(h.grad.item()) < 1e-6


@pytest.mark.parametrize(("name", "options"), CASES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_extreme_inputs_stay_finite(name: str, options: dict[str, float], dtype: torch.dtype) -> None:
    # Log-ratios of +-1e4, and certainty (log-prob 0, also just above it by rounding).
    grid = [-1e4, -1e-7, 0.0, 1e-7]
    rows = [(*four, 3, 5, label) for four in itertools.product(grid, repeat=4) for label in (1.0, 0.5)]
    b = batch(rows, dtype)
    leaves = [b.policy_chosen_G.requires_grad_(), b.policy_rejected_G.requires_grad_()]
    y = LOSSES[name].function(b, **options)
    y.sum().backward()
    assert y.isfinite().all()
    for leaf in leaves:
        assert leaf.grad is not None
        assert leaf.grad.isfinite().all()


@given(logp, logp, st.sampled_from([0.0, 1.0, 0.3]), st.floats(0, 20), st.floats(0.1, 2))
def test_kto_against_the_oracle(policy: float, reference: float, label: float, z: float, weight: float) -> None:
    options = {"beta": 0.2, "desirable_weight": weight, "undesirable_weight": 1.5}
    h = torch.tensor([policy - reference], dtype=torch.float64, requires_grad=True)
    y = preference.kto_loss(h, torch.tensor([label], dtype=torch.float64), z, **options)
    assert y.item() == pytest.approx(oracles.kto(policy, reference, label, z, **options), abs=1e-12)
    y.sum().backward()
    expected = oracles.slope(lambda v: oracles.kto(v[0], reference, label, z, **options), [policy], 1e-3)
    assert h.grad is not None
    assert h.grad.tolist() == pytest.approx(expected, abs=1e-9)


def test_kto_by_hand_and_at_extremes() -> None:
    # At the baseline sigmoid(0) = 1/2 on both sides.
    h = torch.tensor([2.0, 2.0, 1e4, -1e4, 1e4, -1e4], requires_grad=True)
    y = preference.kto_loss(h, torch.tensor([True, False, True, True, False, False]), 2.0, undesirable_weight=3.0)
    torch.testing.assert_close(y, torch.tensor([0.5, 1.5, 0.0, 1.0, 3.0, 0.0]))
    y.sum().backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()


def test_kto_baseline_is_a_mean_that_is_never_negative() -> None:
    total = torch.tensor(6.0, requires_grad=True)
    z = preference.kto_baseline(total, 4)
    assert z.item() == 1.5
    assert not z.requires_grad
    assert preference.kto_baseline(torch.tensor(-6.0), 4).item() == 0.0


def test_pairs_from_completions() -> None:
    policy, reference = torch.tensor([1.0, 2.0, 3.0, 4.0]), torch.tensor([5.0, 6.0, 7.0, 8.0])
    b = PairBatch.from_completions(policy, reference, torch.tensor([1, 2, 3, 4]))
    assert [getattr(b, f.name).tolist() for f in fields(b)] == [[1, 3], [2, 4], [5, 7], [6, 8], [1, 3], [2, 4], [1, 1]]
    label = torch.tensor([0.2, 1.0])
    assert PairBatch.from_completions(policy, reference, torch.ones(4), label).label_G is label


def test_half_precision_is_raised_before_the_subtraction() -> None:
    # 512 - 1 = 511 is not a bf16 number.
    b = batch([(-1.0, -512.0, 0.0, 0.0, 1, 1, 1.0)], torch.bfloat16)
    for chosen, rejected in (b.logratios(), b.logps()):
        assert (chosen - rejected).item() == 511.0
    assert preference.hinge_loss(swapped(b), beta=1.0).dtype == torch.float32


def test_rewards() -> None:
    b = batch([(-8.0, -6.0, -10.0, -5.0, 4, 2, 1.0)])
    expected = {"sigmoid": (0.2, -0.1), "ipo": (0.2, -0.1), "simpo": (-0.2, -0.3), "orpo": (-0.2, -0.3)}
    expected |= {"hinge": (0.2, -0.1), "robust": (0.2, -0.1), "cpo": (-0.8, -0.6)}
    for name in PAIRWISE:
        chosen, rejected = preference.rewards(b, LOSSES[name], beta=0.1)
        assert (chosen.item(), rejected.item()) == pytest.approx(expected[name]), name


def test_accuracies_count_ties_within_the_noise_as_half() -> None:
    margin = torch.tensor([0.0, 1.0, -1.0, 1e-4, -1e-4])
    assert preference.accuracies(margin).tolist() == [0.5, 1.0, 0.0, 1.0, 0.0]
    assert preference.accuracies(margin, noise=1e-3).tolist() == [0.5, 1.0, 0.0, 0.5, 0.5]
    label = torch.tensor([1.0, 1.0, 0.0, 0.5, 0.8])
    torch.testing.assert_close(preference.accuracies(margin, label_G=label), torch.tensor([0.5, 1.0, 1.0, 0.5, 0.2]))


def test_the_table_says_what_the_functions_do() -> None:
    b = batch([(-8.0, -6.0, -10.0, -5.0, 4, 2, 1.0)])
    for name in PAIRWISE:
        loss = LOSSES[name]
        moved = replace(b, reference_chosen_G=b.reference_chosen_G - 3)
        assert loss.needs_reference == bool((loss.function(b) != loss.function(moved)).item()), name
        # Twice as long with twice the log-probs is the same to a loss per token.
        doubled = [2 * getattr(b, f.name) for f in fields(b)[:-1]]
        same = torch.allclose(loss.function(b), loss.function(PairBatch(*doubled, b.label_G)))
        assert loss.per_token == same, name
        assert set(loss.options) == set(inspect.signature(loss.function).parameters) - {"batch"}
    assert LOSSES["kto"].options == ("beta", "desirable_weight", "undesirable_weight")


@pytest.mark.parametrize("name", LOSSES)
def test_recipes_agree_with_the_losses(name: str) -> None:
    where = {"model": "m", "data": "d", "out": "o", "loss_type": name}
    settings = DPO(**where)
    for option, parameter in inspect.signature(LOSSES[name].function).parameters.items():
        if parameter.kind is parameter.KEYWORD_ONLY:
            assert getattr(settings, option) == parameter.default
    for option in {option for loss in LOSSES.values() for option in loss.options}:
        if option in LOSSES[name].options:
            DPO(**where, **{option: 0.25})
        else:
            with pytest.raises(ValueError, match=f"{option} has no effect with loss_type {name}"):
                DPO(**where, **{option: 0.25})
