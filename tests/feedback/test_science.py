"""Each formula against an oracle of another make: published examples, hand-worked cases, plain loops, simulations."""

from __future__ import annotations

import math
import random

import numpy as np
import pytest
from scipy.optimize import minimize

from prefiere.feedback.science import agreement, judges, labels
from prefiere.feedback.science.active import Stopping, principal, priorities, stopping
from prefiere.feedback.science.labels import Given, Opinion
from prefiere.feedback.science.ranking import Game, fit_bradley_terry

# -- agreement --------------------------------------------------------------------------------------------------------

# Krippendorff, "Computing Krippendorff's Alpha-Reliability" (2011), section E: four observers, twelve units.
OBSERVERS = {
    "A": "1 2 3 3 2 1 4 1 2 . . .",
    "B": "1 2 3 3 2 2 4 1 2 5 . 3",
    "C": ". 3 3 3 2 3 4 2 2 5 1 .",
    "D": "1 2 3 3 2 4 4 1 2 5 1 .",
}
UNITS = {
    u: {name: float(v) for name, row in OBSERVERS.items() if (v := row.split()[u]) != "."} for u in range(12)
}  # fmt: skip


def test_krippendorffs_published_example():
    assert agreement.krippendorff(UNITS, "nominal") == pytest.approx(0.743, abs=5e-4)
    assert agreement.krippendorff(UNITS, "interval") == pytest.approx(0.849, abs=5e-4)


def test_fleiss_textbook_example():
    # Ten subjects, fourteen raters, five categories: kappa 0.210.
    table = ["0 0 0 0 14", "0 2 6 4 2", "0 0 3 5 6", "0 3 9 2 0", "2 2 8 1 1",
             "7 7 0 0 0", "3 2 6 3 0", "2 5 3 2 2", "6 5 2 1 0", "0 2 2 3 7"]  # fmt: skip
    ratings = {}
    for subject, row in enumerate(table):
        said = [k for k, n in enumerate(map(int, row.split())) for _ in range(n)]
        ratings[subject] = dict(enumerate(said))
    assert agreement.fleiss(ratings) == pytest.approx(0.210, abs=5e-4)


def test_cohen_by_hand():
    # 20 both yes, 15 both no, 5 and 10 apart: observed 0.7, chance (25*30 + 25*20)/50^2 = 0.5, kappa 0.4.
    said = [(1, 1)] * 20 + [(0, 0)] * 15 + [(1, 0)] * 5 + [(0, 1)] * 10
    ratings = {i: {"a": a, "b": b} for i, (a, b) in enumerate(said)}
    assert agreement.cohen(ratings, "a", "b") == pytest.approx(0.4)
    assert agreement.agreement_share(ratings) == 0.7


def test_cohen_of_several_people_is_the_mean_over_couples_by_what_they_share():
    # a and b as above (kappa 0.4 on 50 units); a and c on 4 others: 3 of 4 equal, chance 1/2, kappa 0.5
    said = [(1, 1)] * 20 + [(0, 0)] * 15 + [(1, 0)] * 5 + [(0, 1)] * 10
    ratings = {i: {"b": b, "a": a} for i, (a, b) in enumerate(said)}
    ratings |= {100 + i: {"a": a, "c": c} for i, (a, c) in enumerate([(1, 1), (1, 1), (1, 0), (0, 0)])}
    assert agreement.cohen(ratings, "a", "c") == pytest.approx(0.5)
    assert agreement.cohen_mean(ratings) == pytest.approx((50 * 0.4 + 4 * 0.5) / 54)
    # two who only ever say the same have no kappa, and do not count
    ratings |= {200 + i: {"b": 1, "c": 1} for i in range(3)}
    assert agreement.cohen_mean(ratings) == pytest.approx((50 * 0.4 + 4 * 0.5) / 54)


def test_agreement_without_common_votes_is_unknown():
    alone = {1: {"a": 1.0}, 2: {"b": 0.0}}
    for statistic in (agreement.agreement_share, agreement.cohen_mean, agreement.fleiss, agreement.krippendorff):
        assert math.isnan(statistic(alone))
    assert math.isnan(agreement.cohen(alone, "a", "b"))


def test_the_bootstrap_draws_prompts_and_not_pairs():
    rng = random.Random(0)
    ratings, prompts = {}, {}
    for prompt in range(60):
        same = rng.random() < 0.7  # all ten pairs of a prompt agree, or none does
        for i in range(10):
            ratings[prompt, i] = {"a": 1, "b": 1 if same else 0}
            prompts[prompt, i] = prompt
    found = agreement.bootstrap(ratings, prompts, agreement.agreement_share)
    p = found.value
    expected = 1.96 * math.sqrt(p * (1 - p) / 60)
    assert (found.high - found.low) / 2 == pytest.approx(expected, rel=0.2)


# -- labels -----------------------------------------------------------------------------------------------------------


def test_accuracy_of_strengths_by_hand():
    # 20 second votes on strong pairs, 18 agreeing: A_3 = (18 + 30 * .82) / 50 = .852, q_3 = (1 + sqrt(.704)) / 2.
    # 20 on weak ones, 11 agreeing: A_1 = (11 + 30 * .58) / 50 = .568. None on middling ones: A_2 = .68.
    pairs = [[(1, 3), (1, 3)]] * 9 + [[(1, 3), (-1, 3)]] + [[(1, 1), (1, 1)]] * 5 + [[(1, 1), (-1, 1)]] * 4
    pairs += [[(1, 1), (1, 3)]]  # agrees for both: one more of each
    q = labels.voter_accuracies(pairs)
    a1, a3 = (11 + 30 * 0.58) / (19 + 30), (19 + 30 * 0.82) / (21 + 30)
    assert q == pytest.approx([(1 + math.sqrt(2 * a - 1)) / 2 for a in (a1, 0.68, a3)])


def test_accuracies_never_fall_with_strength_and_stay_in_bounds():
    upside_down = [[(1, 1), (1, 1)]] * 100 + [[(1, 3), (-1, 3)]] * 100
    q = labels.voter_accuracies(upside_down)
    assert 0.5 <= q[0] <= q[1] <= q[2] <= 0.98
    assert labels.voter_accuracies([[(1, 2)], []]) == (0.70, 0.80, 0.90)


def slow_dawid_skene(opinions, gold):
    """The same model as plain loops over people and pairs, in probabilities rather than log-odds."""
    eta = {o.person: 0.8 for o in opinions}
    for turn in range(31):
        p = {}
        for pair in {o.pair for o in opinions}:
            yes = no = 1.0
            for o in opinions:
                if o.pair == pair:
                    e = eta[o.person]
                    odds = e / (1 - e) * math.exp(o.shift)
                    right = odds / (1 + odds)
                    yes *= right if o.side > 0 else 1 - right
                    no *= 1 - right if o.side > 0 else right
            p[pair] = (1.0 if gold[pair] > 0 else 0.0) if pair in gold else yes / (yes + no)
        if turn == 30:
            break
        for person in eta:
            mine = [o for o in opinions if o.person == person]
            right = sum(p[o.pair] if o.side > 0 else 1 - p[o.pair] for o in mine)
            eta[person] = min(0.98, max(0.02, (right + 8) / (len(mine) + 10)))
    return eta, p


def test_dawid_skene_equals_a_plain_loop():
    rng = random.Random(4)
    opinions = [
        Opinion(person, pair, rng.choice((-1, 1)), rng.choice((0.0, 0.4, -0.3)))
        for pair in range(25)
        for person in rng.sample("abcde", rng.randint(1, 4))
    ]
    gold = {0: 1, 3: -1, 99: 1}
    found = labels.reliability(opinions, gold)
    eta, p = slow_dawid_skene(opinions, gold)
    assert found.eta == pytest.approx(eta, rel=1e-9)
    assert found.b_better == pytest.approx(p, rel=1e-9, abs=1e-12)


def test_one_vote_of_one_person_is_worth_the_prior():
    found, trust = labels.label_pairs([Given("ana", 1, -2)])
    # eta = (eta + 8) / (1 + 10) has the fixed point .8: label .8, weight |2 * .8 - 1|.
    assert trust.eta["ana"] == pytest.approx(0.8)
    assert found[1] == labels.Label(-1, pytest.approx(0.8), pytest.approx(0.6))


def test_strengths_of_equal_people_give_their_own_labels():
    votes = [Given("ana", i, s) for i, s in enumerate((1, -2, 3))]  # mean q = .8, what the prior is worth
    found, _ = labels.label_pairs(votes)
    assert [found[i].label for i in range(3)] == pytest.approx([0.70, 0.80, 0.90])
    assert [found[i].side for i in range(3)] == [1, -1, 1]


def test_a_tie_teaches_one_half_and_conflict_teaches_nothing():
    found, _ = labels.label_pairs([Given("a", 1, 0), Given("b", 2, 2), Given("c", 2, -2), Given("d", 3, 2)])
    assert (found[1].label, found[1].weight) == (0.5, pytest.approx(0.6))
    assert found[2].weight == pytest.approx(0.0, abs=1e-9)
    # A tie and a decided vote: the mean of their cross-entropies is one record's.
    both, trust = labels.label_pairs([Given("a", 1, 0), Given("d", 1, 2)])
    p, w = trust.b_better[1], abs(2 * trust.b_better[1] - 1)
    x = 0.37  # any log-odds of a model

    def loss(label):
        return -label * math.log(1 / (1 + math.exp(-x))) - (1 - label) * math.log(1 / (1 + math.exp(x)))

    apart = (w * loss(p) + abs(2 * 0.8 - 1) * loss(0.5)) / 2
    assert both[1].weight * loss(both[1].label) == pytest.approx(apart)


def crowd(rng, etas, pairs, votes_a_pair):
    truth = {i: rng.choice((-1, 1)) for i in range(pairs)}
    said = []
    for i in range(pairs):
        for person in rng.choice(len(etas), votes_a_pair, replace=False):
            right = rng.random() < etas[person]
            said.append(Opinion(int(person), i, int(truth[i] if right else -truth[i])))
    return truth, said


def test_dawid_skene_beats_the_majority_where_some_click_at_random():
    rng = np.random.default_rng(1)
    gain = []
    for _ in range(10):
        truth, said = crowd(rng, [0.85] * 7 + [0.5] * 3, 300, 3)
        p = labels.reliability(said).b_better
        sums = {i: sum(o.side for o in said if o.pair == i) for i in truth}
        ours = np.mean([(p[i] > 0.5) == (truth[i] > 0) for i in truth])
        gain.append(ours - np.mean([(sums[i] > 0) == (truth[i] > 0) for i in truth]))
    mean, error = np.mean(gain), np.std(gain, ddof=1) / math.sqrt(10)
    assert mean - 2 * error > 0.005


def test_reliability_intervals_hold_the_truth():
    rng = np.random.default_rng(2)
    inside = total = 0
    for _ in range(10):
        etas = rng.uniform(0.6, 0.95, 6)
        _, said = crowd(rng, list(etas), 120, 4)
        found = labels.reliability(said)
        for person, eta in enumerate(etas):
            low, high = found.interval(person)
            inside += low <= eta <= high
            total += 1
    assert inside / total > 0.85


# -- ranking ----------------------------------------------------------------------------------------------------------


def games(rng, strength, n, prompts, length=0.0):
    made = []
    for _ in range(n):
        a, b = rng.choice(len(strength), 2, replace=False)
        longer = rng.normal()
        p = 1 / (1 + math.exp(-(strength[a] - strength[b] + length * longer)))
        made.append(Game(int(a), int(b), float(rng.random() < p), int(rng.integers(prompts)), float(longer)))
    return made


def test_bradley_terry_equals_a_general_optimiser_and_a_sandwich_by_hand():
    rng = np.random.default_rng(3)
    played = games(rng, [0.0, 0.5, -0.5], 200, 20)
    played[:20] = [Game(g.first, g.second, 0.5, g.prompt) for g in played[:20]]

    def cost(s):
        d = np.array([s[g.first] - s[g.second] for g in played])
        y = np.array([g.won for g in played])
        return -np.sum(y * -np.logaddexp(0, -d) + (1 - y) * -np.logaddexp(0, d)) + 0.005 * np.sum(s**2)

    s = minimize(cost, np.zeros(3), method="BFGS", options={"gtol": 1e-9}).x
    found = {r.model: r for r in fit_bradley_terry(played)}
    centred = s - s.mean()
    assert [found[i].strength for i in range(3)] == pytest.approx(list(centred), abs=1e-5)
    bread = 0.01 * np.eye(3)
    meat = np.zeros((3, 3))
    for q in range(20):
        u = np.zeros(3)
        for g in played:
            if g.prompt == q:
                x = np.zeros(3)
                x[g.first], x[g.second] = 1, -1
                p = 1 / (1 + math.exp(-x @ s))
                u += x * (g.won - p)
                bread += p * (1 - p) * np.outer(x, x)
        meat += np.outer(u, u)
    covariance = np.linalg.inv(bread) @ meat @ np.linalg.inv(bread) * 20 / 19
    c = np.eye(3) - 1 / 3
    half = 1.96 * np.sqrt(np.diag(c @ covariance @ c))
    assert [found[i].high - found[i].strength for i in range(3)] == pytest.approx(list(half), rel=1e-3)


def test_length_is_taken_out_where_it_decides():
    rng = np.random.default_rng(5)
    made = []
    for i in range(600):  # model 1 writes longer; people take the longer one and nothing else
        longer = -abs(rng.normal()) - 0.3
        made.append(Game(0, 1, float(rng.random() < 1 / (1 + math.exp(-2 * longer))), i, longer))
    raw = {r.model: r.strength for r in fit_bradley_terry(made)}
    fair = {r.model: r for r in fit_bradley_terry(made, by_length=True)}
    assert raw[1] > 0.8
    assert fair[1].low < 0 < fair[1].high


def test_a_model_that_never_lost_has_a_finite_strength():
    (best, worst) = fit_bradley_terry([Game("a", "b", 1.0, i) for i in range(9)])
    assert best.model == "a"
    assert math.isfinite(best.strength)
    assert worst.strength == pytest.approx(-best.strength)
    assert fit_bradley_terry([]) == []


# -- judges -----------------------------------------------------------------------------------------------------------


def test_a_corrected_judge_covers_the_truth_and_saves_votes():
    rng = np.random.default_rng(7)
    covered = alone = narrower = 0
    for _ in range(300):
        truth = 0.6
        h = (rng.random(1200) < truth).astype(float)
        agrees = rng.random(1200) < 0.8
        f = np.where(agrees, h, 1 - h)
        f = np.where(rng.random(1200) < 0.3, 1.0, f)  # and it likes b
        found = judges.corrected(h[:150], f[:150], f[150:])
        covered += found.low <= truth <= found.high
        narrower += (found.high - found.low) < (found.people_high - found.people_low)
        half = 1.96 * f.std(ddof=1) / math.sqrt(1200)
        alone += abs(f.mean() - truth) <= half
    assert covered / 300 > 0.91
    assert alone / 300 < 0.3
    assert narrower / 300 > 0.95


def test_a_correction_by_hand_and_a_useless_judge():
    h, f, rest = [1.0, 0.0] * 10, [1.0, 0.0] * 10, [1.0, 1.0, 0.0] * 20
    found = judges.corrected(h, f, rest)
    spread = float(np.var(f + rest, ddof=1))
    trust = float(np.cov(h, f)[0, 1]) / ((1 + 20 / 60) * spread)
    assert found.trust == pytest.approx(trust)
    assert found.mean == pytest.approx(trust * (2 / 3) + np.mean(np.array(h) - trust * np.array(f)))
    useless = judges.corrected(h, [0.5] * 20, [0.5] * 60)
    assert (useless.mean, useless.low) == (pytest.approx(0.5), pytest.approx(useless.people_low))
    with pytest.raises(ValueError, match="at least 20"):
        judges.corrected(h[:19], f[:19], rest)


# -- what to ask next, and when to stop -------------------------------------------------------------------------------


def test_what_to_ask_next_equals_inverting_the_matrix_each_time():
    rng = np.random.default_rng(8)
    x = rng.normal(size=(120, 5))
    asked = list(range(60))
    right = (rng.random(60) < 1 / (1 + np.exp(-x[:60] @ np.array([1.0, -1, 0.5, 0, 0])))).astype(float)
    found = priorities(x, asked, right, 8)

    def cost(t):
        d = x[:60] @ t
        return np.sum(np.logaddexp(0, -d) * right + np.logaddexp(0, d) * (1 - right)) + 0.5 * t @ t

    theta = minimize(cost, np.zeros(5), method="BFGS", options={"gtol": 1e-9}).x
    p = 1 / (1 + np.exp(-x @ theta))
    h = np.eye(5) + (x[:60] * (p * (1 - p))[:60, None]).T @ x[:60]
    taken = []
    for _ in range(8):
        free = [i for i in range(60, 120) if i not in taken]
        best = max(free, key=lambda i: p[i] * (1 - p[i]) * x[i] @ np.linalg.inv(h) @ x[i])
        taken.append(best)
        h = h + p[best] * (1 - p[best]) * np.outer(x[best], x[best])
    assert found == taken
    assert priorities(x, asked[:49], right[:49], 8) == []


def test_principal_coordinates_keep_distances_when_none_is_dropped():
    rng = np.random.default_rng(9)
    raw = rng.normal(size=(30, 6)) * np.array([5, 1, 1, 1, 1, 1])
    found = principal(raw, 6)
    before = np.linalg.norm(raw[:, None] - raw[None], axis=-1)
    after = np.linalg.norm(found[:, None] - found[None], axis=-1)
    assert after / after.max() == pytest.approx(before / before.max())
    assert principal(raw, 2).shape == (30, 2)


def test_stopping_by_hand():
    rng = np.random.default_rng(10)
    same = rng.random(2000) < 0.7
    noise = rng.random(2000) < 0.02
    before = Stopping("go_on", 0.0, -0.01, 0.005, 1500)
    found = stopping(same.astype(float), (same ^ noise).astype(float), range(2000), before=before)
    d = np.mean(same.astype(float) - (same ^ noise))
    se = np.std(same.astype(float) - (same ^ noise), ddof=1) / math.sqrt(2000)
    assert found.gain == pytest.approx(0.7 * d)
    assert found.high == pytest.approx(0.7 * (d + 1.96 * se), rel=1e-3)
    assert found.said == ("stop" if found.high < 0.01 else "too_early")


@pytest.mark.parametrize(("n", "before"), [(399, 320), (1000, None), (1000, 950), (1000, 390)])
def test_too_few_votes_or_no_second_check_never_stop(n, before):
    right = np.ones(n)
    half = right.copy()
    half[0] = 0
    half[1:2] = 1
    earlier = Stopping("go_on", 0.0, 0.0, 0.001, before) if before else None
    assert stopping(right, half, range(n), before=earlier, threshold=0.05).said == "too_early"


def test_a_gain_that_is_there_is_hardly_ever_called_over():
    rng = np.random.default_rng(11)
    wrong = 0
    for _ in range(300):  # 0.7 d is 1.4 points: above the threshold of 1
        checks = []
        for n in (800, 1000):
            half = rng.random(n) < 0.70
            full = np.where(half, rng.random(n) >= 0.03, rng.random(n) < 0.1367)  # 2 points more
            before = checks[-1] if checks else None
            checks.append(stopping(full.astype(float), half.astype(float), range(n), before=before))
        wrong += checks[-1].said == "stop"
    assert wrong / 300 < 0.05
