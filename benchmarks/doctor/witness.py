"""What became of a healthy run, by a witness that the doctor never hears: whether its model still tells facts.

The demo's questions have known answers, and `on_topic` knows them. Settings as people choose them may still ruin a
model; an alarm about such a run is right.
"""

from __future__ import annotations

from pathlib import Path

from benchmarks.doctor.causes import Row
from prefiere.api.use import sample
from prefiere.demo import corpus, judge
from prefiere.run import Run

ASKED = 300
LOST = 0.1
"""Of its answers that a model may lose. Set on runs of seeds 7 and 36: at the automatic rate 98% of the answers are
right, as before training; at twice that, in batches of 8, 62% and 68%."""


def right_answers(model: str | Path) -> float:
    """The share of the demo's questions that a model answers about the thing asked, as the table of facts has it."""
    prompts = sorted({str(d.prompt[-1].content) for d in corpus.demonstrations() if not isinstance(d.prompt, str)})
    asked = prompts[:: max(1, len(prompts) // ASKED)][:ASKED]
    answers = sample(str(model), asked, max_new_tokens=40, seed=7)
    return sum(judge.on_topic(asked, [a["completion"] for a in answers])) / len(asked)


def sampled_answers(run: Run) -> float | None:
    """The same share of the answers that the run sampled last, for one that a guard stopped: it leaves no model."""
    rows = run.samples_at_ends()
    last = [r for r in rows if r["step"] == max(r["step"] for r in rows)]
    return (
        sum(judge.on_topic([r["prompt"] for r in last], [r["completion"] for r in last])) / len(last) if last else None
    )


def witnessed(run: Run, before: float) -> Row:
    """right: the share afterwards. sound: whether it is within `LOST` of the share before; None where a run writes
    nothing (a reward model)."""
    if run.recipe["method"] == "reward":
        return {"right": None, "sound": None}
    kept = run.folder / "model"
    right = right_answers(kept) if kept.is_dir() else sampled_answers(run)
    return {"right": right, "sound": right is None or right >= before - LOST}


def learnt(run: Run) -> bool | None:
    """Whether held-out pairs are ranked better than by a coin in the end, beyond the noise; None where none are."""
    ranked = [r for r in run.metrics if "eval_rewards/accuracies_low" in r]
    return bool(ranked[-1]["eval_rewards/accuracies_low"] > 0.5) if ranked else None
