"""How often a run validates, answers and saves where that is "auto": a budget of work, known before the first update.

Work is counted in tokens that a forward pass reads, never in seconds: the same command gives the same rows on every
machine. The counts come from the lengths of the data.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from prefiere.asked.language import in_words
from prefiere.evaluate import start
from prefiere.objectives.preference import LOSSES
from prefiere.plan.choices import Choice, as_it_began
from prefiere.plan.examples import ExampleData, PromptData, Prompts
from prefiere.plan.plan import Plan
from prefiere.plan.reading import updates_of
from prefiere.settings import DPO, PolicyGradient, Settings

OVERHEAD = 0.25
"""Of a run's work, what goes at most into anything but updates; the reference's log-probs count on neither side."""
ANSWERED = 0.05
"""Of the updates' work, what one round of answers takes at most, as far as `FEWEST_WATCHED` prompts allow."""
FEWEST_WATCHED, FEWEST_OF_POLICIES = 10, 20
"""Prompts that are answered at least. Guard and doctor say nothing of fewer than 8 answers, and what a policy learnt is
seen in its answers alone."""
MOST_EVENTS = 10
"""Validations of a run, and likewise rounds of answers, and checkpoints: a curve needs no more points."""
UNRATIONED = 2e12
"""Floating-point operations, some seconds of a laptop, below which ten of everything are never too many."""
DECODED = 4
"""Forward tokens that take as long as sampling one token; a forward pass reads many tokens in one product."""
CHECKPOINT_TOKENS = {True: 60, False: 1200}
"""Forward tokens that take as long as writing a checkpoint, by whether an adapter is trained: 12 bytes for each trained
parameter, at 200 operations a byte."""
NORMALISED = 512
"""Demonstrations that a reward model's scores are normalised on, at most: they place the mean of the scores within 0.09
of a deviation and the deviation within 6%, both at 95% (1.96 / sqrt(n) and 1.96 / sqrt(2 n))."""


@dataclass(frozen=True, slots=True)
class Costs:
    """Tokens that forward passes read: in all updates, in one validation, in one round of answers with their log-probs,
    in one checkpoint; ``once``: in what is measured before the first update and after the last whatever the rhythm."""

    updates: float
    validation: float
    answers: float
    checkpoint: float
    once: float


@dataclass(frozen=True, slots=True)
class Rhythm:
    """Updates between two validations, two rounds of answers, and two checkpoints. The last update has one of each."""

    validate: int
    answer: int
    save: int

    def overhead(self, work: Costs, steps: int) -> float:
        """The share of a run's work that is no update."""
        each = ((self.validate, work.validation), (self.answer, work.answers), (self.save, work.checkpoint))
        beside = work.once + sum(-(-steps // between) * cost for between, cost in each)
        return beside / (beside + work.updates)


def chosen_by(settings: Settings) -> str | None:
    """The setting that says how often `metric_for_best_model` is looked at, where there is one."""
    if settings.metric_for_best_model is None:
        return None
    return "sample_steps" if settings.metric_for_best_model.startswith("samples/") else "eval_steps"


def rationed(work: Costs, parameters: int) -> bool:
    """Whether ten of everything would be too many."""
    whole = work.once + MOST_EVENTS * (work.validation + work.answers + work.checkpoint)
    return whole * 2 * parameters > UNRATIONED


def choose_watched(plan: Plan, data: ExampleData | PromptData) -> tuple[ExampleData | PromptData, list[Choice]]:
    """The data with as many prompts to answer along the run as it can afford, where that is automatic."""
    asked, watched = plan.settings.sample_prompts, data.watched
    if asked != "auto" or not len(watched) or plan.settings.sample_steps == 0:
        return data, []
    work, least = work_of(plan, data, updates_of(plan.settings, len(data.train))), FEWEST_WATCHED
    if isinstance(data, PromptData):
        least = FEWEST_OF_POLICIES
    share = work.answers / max(work.updates, 1)
    number = len(watched)
    if rationed(work, plan.parameters):
        number = min(number, max(least, int(number * ANSWERED / share)))
    chosen = Choice("sample_prompts", number, in_words("why.answers", share=f"{share * number / len(watched):.1%}"))
    if chosen.name in plan.recorded:
        chosen = as_it_began(chosen.name, plan.recorded)
    return replace(data, watched=watched.select(range(min(int(chosen.value), len(watched))))), [chosen]


def share_out(work: Costs, steps: int, parameters: int, chooser: str | None = None) -> dict[str, int]:
    """Updates between two events of each kind, by setting, where all are automatic.

    What the budget leaves after ``once`` and the last event of each kind is shared out equally, cheap kinds first: what
    one of them does not need is there for the others. chooser: the kind among whose events the best step is chosen; it
    comes first and as often as any may, whatever it costs, for a single one leaves no choice and stops no run early.
    """
    cost = {"eval_steps": work.validation, "sample_steps": work.answers, "save_steps": work.checkpoint}
    if not rationed(work, parameters):
        return {name: max(1, steps // MOST_EVENTS) for name in cost}
    left = OVERHEAD / (1 - OVERHEAD) * work.updates - work.once - sum(cost.values())
    found = {}
    for at, name in enumerate(sorted(cost, key=lambda n: (n != chooser, cost[n]))):
        fair = max(0.0, left) / (len(cost) - at)
        limited = cost[name] and name != chooser
        further = min(MOST_EVENTS - 1, int(fair / cost[name])) if limited else MOST_EVENTS - 1
        left -= further * cost[name]
        found[name] = max(1, -(-steps // (1 + further)))
    return found


def choose_rhythm(plan: Plan, data: ExampleData | PromptData) -> tuple[Rhythm, Costs, list[Choice]]:
    """The rhythm of a run on this data, its work, and what was automatic, with reasons; a resumed run's as it began."""
    steps = updates_of(plan.settings, len(data.train))
    work = work_of(plan, data, steps)
    chooser = chosen_by(plan.settings)
    automatic = share_out(work, steps, plan.parameters, chooser)
    chosen, taken = list[Choice](), dict[str, int]()
    cost = {"eval_steps": work.validation, "sample_steps": work.answers, "save_steps": work.checkpoint}
    for name, tokens in cost.items():
        asked = getattr(plan.settings, name)
        if asked != "auto":
            taken[name] = int(asked)
            continue
        why = in_words("why.once", share=f"{tokens / max(work.updates, 1):.1%}", n=f"{steps:,}")
        if name == chooser:
            why = in_words("why.once_and_chooses", once=why, metric=plan.settings.metric_for_best_model)
        found = Choice(name, automatic[name], why)
        if name in plan.recorded:
            found = as_it_began(name, plan.recorded)
        chosen.append(found)
        taken[name] = int(found.value)
    return Rhythm(taken["eval_steps"], max(1, taken["sample_steps"]), taken["save_steps"]), work, chosen


def work_of(plan: Plan, data: ExampleData | PromptData, steps: int) -> Costs:
    """What a run of so many updates computes, in forward tokens."""
    s = plan.settings
    adapted = plan.adapter is not None
    learning = 2 + (not adapted) + s.gradient_checkpointing  # a frozen weight has no gradient of its own
    answers = _answering(s, data.watched) if s.sample_steps != 0 else 0.0
    if isinstance(data, PromptData):
        assert isinstance(s, PolicyGradient)
        return Costs(steps * _rollout(plan, s, data, learning), 0.0, answers, CHECKPOINT_TOKENS[adapted], answers)
    loss = LOSSES[s.loss_type] if isinstance(s, DPO) else None
    passes = 2 if loss is not None and loss.per == "completion" else 1  # KTO's mismatched answers
    mean = float(np.mean(data.train.lengths))
    update = min(s.batch_size, len(data.train)) * mean
    held = passes * float(data.eval.lengths.sum()) if data.eval is not None else 0.0
    visits, known = steps * s.batch_size, loss is not None and loss.needs_reference
    looked = min(NORMALISED, len(data.train)) if plan.scores else (2 - known) * _looked_at(visits, len(data.train))
    first = 0.0 if known else held + passes * update
    once = first + answers + looked * mean
    return Costs(steps * update * (learning + passes - 1), held, answers, CHECKPOINT_TOKENS[adapted], once)


def _looked_at(visits: int, examples: int) -> int:
    """Examples that are looked at before the first update (`evaluate.start.few`)."""
    return min(examples, max(start.FEWEST, min(start.MOST, visits // 16)))


def _answering(settings: Settings, watched: Prompts) -> float:
    """One round of answers: prompts are read, answers drawn, and both read again by policy and reference (the first
    time after their own prompt and after another)."""
    rows, new = settings.samples_per_prompt * len(watched), settings.max_new_tokens
    prompts = sum(len(ids) for ids in watched.ids)
    again = 2 * (settings.samples_per_prompt * prompts + rows * new)
    return float(prompts + DECODED * rows * new + again)


def _rollout(plan: Plan, s: PolicyGradient, data: PromptData, learning: int) -> float:
    """One step of an on-policy method: answers as long as they may become, what the roles say of them, the updates."""
    groups = min(s.batch_size, len(data.train))
    prompts = groups * float(np.mean([len(ids) for ids in data.train.ids]))
    drawn = groups * s.num_generations * s.max_new_tokens
    roles = 3 if plan.method.critic else 2
    trained = s.num_ppo_epochs * learning * (2 if plan.method.critic else 1)
    return prompts + DECODED * drawn + (roles + trained) * (prompts + drawn)
