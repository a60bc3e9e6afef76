"""What sampled answers say about a run, which the curves cannot: whether the model still writes sound text."""

from __future__ import annotations

from prefiere.doctor.case import Case, Finding
from prefiere.doctor.remedies import Remedy, set_to
from prefiere.doctor.series import Change
from prefiere.doctor.words import evidence_line
from prefiere.methods import METHODS

SIGNALS = ("samples/eos_rate", "samples/repetition", "samples/ref_logp", "samples/length", "samples/score")


def _multiplied(change: Change | None, factor: float) -> bool:
    return change is not None and change.rises((factor - 1) * max(1.0, change.before.mean))


def answers_broken(case: Case) -> list[str]:
    """Which signals say that the answers fell apart, in words. Each is far beyond what a change of style does."""
    eos, repetition, natural, length = (case.change(k) for k in SIGNALS[:4])
    signs = []
    if eos and eos.falls(0.2):
        signs.append("they no longer end")
    if repetition and repetition.rises(0.15):
        signs.append("they repeat themselves")
    if natural and natural.falls(1.0):  # nats per token; turning a style around costs about half of that
        signs.append("the model from before finds them nonsensical")
    if signs and _multiplied(length, 2):
        signs.append("they became far longer")
    return signs


def answers_degenerate(case: Case) -> Finding | None:
    """Sampled answers fell apart, whatever the curves say."""
    signs = answers_broken(case)
    if not signs:
        return None
    paid = case.family == "policy"
    curve = case.seen("samples/reward") if paid else case.seen("rewards/margins") or case.seen("mean_token_accuracy")
    perfect = curve is not None and curve.change.rises()
    given = (
        "Margin and accuracy compare two given answers with each other; they say nothing of the text that the model "
        "writes itself, and can be perfect for a model that is ruined. "
    )
    rated = "The reward rates such text highly, so training made more of it. "
    return Finding(
        "degenerate",
        "The answers fell apart" + (" while the curves look fine" if perfect else "") + ": do not use this model.",
        "bad",
        f"Compared with before training: {', '.join(signs)}. "
        + (rated if paid else given) * perfect
        + (
            "The model was pushed so hard that it left the text that anybody ever wrote."
            if paid
            else "The model was pushed so hard away from the rejected answers that the probability went to text that "
            "nobody ever wrote."
        ),
        case.evidence(*SIGNALS),
        case.gentler(),
    )


def worse_score(case: Case) -> Finding | None:
    """The judge likes the answers less than before."""
    score = case.change("samples/score")
    if score is None or not score.falls():
        return None
    paid = "The reward is what the model was trained on" if case.family == "policy" else ""
    return Finding(
        "worse_score",
        "The judge likes the answers less than before training.",
        "warning",
        f"{paid or 'The curves measure pairs that were given'}; the judge measures what the model writes now. Where "
        "they disagree, believe the answers.",
        case.evidence(*SIGNALS),
        (Remedy("read the answers below, and check the judge on them"), *case.gentler()),
    )


def never_end(case: Case) -> Finding | None:
    """Fewer than half of the answers end by themselves, before training and after."""
    ends = case.series("samples/eos_rate")
    if not len(ends) or not (ends.start.mean < 0.5 and ends.end.mean < 0.5) or answers_broken(case):
        return None
    if ends.end.known and not ends.end.below(0.5):
        return None
    change = case.change("samples/eos_rate")
    return Finding(
        "never_end",
        "Most answers never end by themselves.",
        "warning",
        "They are cut off at the limit of tokens. Either that limit is short for this model's answers, or the model "
        "does not know the end token: a base model without a supervised start, or another chat template than the one "
        "it was trained with.",
        (evidence_line("samples/eos_rate", change),) if change else (),
        (
            _longer_answers(case),
            Remedy("`prefiere data --model ...`: each answer must end with the model's end token, once"),
            Remedy("a supervised start (`prefiere sft`) before preferences"),
        ),
    )


def _longer_answers(case: Case) -> Remedy:
    """The limit that a method has by itself, where this run's was less."""
    limit, method = case.recipe.get("max_new_tokens"), METHODS.get(str(case.recipe.get("method")))
    usual = method.settings.model_fields["max_new_tokens"].default if method is not None else None
    if isinstance(limit, int) and isinstance(usual, int) and limit < usual:
        return set_to("max_new_tokens", usual)
    return Remedy("a larger max_new_tokens")


def longer(case: Case) -> Finding | None:
    """Answers grew by half: people, and judges even more, tend to prefer the longer answer."""
    length = case.change("samples/length")
    if length is None or not _multiplied(length, 1.5) or answers_broken(case):
        return None
    return Finding(
        "longer",
        "The answers became much longer.",
        "warning" if _multiplied(length, 2) else "info",
        "Preferred answers are often the longer ones, and the model may have learnt that rather than what makes them "
        "better.",
        case.evidence(*SIGNALS),
        (
            Remedy("loss_type=simpo (its reward is a mean per token, so length gains nothing)"),
            Remedy("`prefiere data`: see how often the chosen answer is the longer one"),
        ),
    )
