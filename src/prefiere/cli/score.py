"""What ``prefiere score`` does: scores of one or several reward models, and what they are worth on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prefiere.api.scoring import Scores, scores_of_data
from prefiere.console import Display, table


def score(
    models: Sequence[str],
    data: str,
    *,
    out: Path | None,
    trust: bool,
    display: Display,
    console: Console,
    **reading: Any,
) -> dict[str, Any]:
    """Score a data set with each model and, where there are several, with their mean; show it, and write ``out``.

    Returns what was shown, for --json. Raises ValueError where models or data cannot be used.
    """
    found = scores_of_data(models, data, trust=trust, display=display, **reading)
    (_show_pairs if found.pairs else _show_answers)(found, console)
    if out is not None:
        found.write(out)
        console.print(f"{len(found.rows):,} rows: {out}", markup=False)
    return {**found.to_dict(), "out": out}


def _show_pairs(found: Scores, console: Console) -> None:
    rows = [
        (n, _share(d["accuracy"]), _figure(d["log_loss"]), f"{d['ece']:.3f}", _normal(d))
        for n, d in found.models.items()
    ]
    some = next(iter(found.models.values()))
    console.print(table(f"{some['n']:,} pairs", ("", "right", "log loss", "ECE", "score: mean, std"), rows))
    length = some["length"]
    console.print(f"always choosing the {length['rule']} answer: {_share(length['baseline'])} right", markup=False)
    last = list(found.models)[-1]
    console.print(_by_length(found.models[last], last))
    console.print(_reliability(found.models[last], last))
    if (apart := found.disagreement) is not None:
        console.print(f"the models choose different answers in {_share(apart['split'])} of the pairs", markup=False)
        console.print(
            f"their mean is right in {_share(apart['accuracy_agreed'])} where they agree, "
            f"in {_share(apart['accuracy_split'])} where they do not",
            markup=False,
        )


def _show_answers(found: Scores, console: Console) -> None:
    some = next(iter(found.models.values()))
    judged = "auc" in some
    columns = ["", "mean", "std", *(("desirable", "undesirable", "AUC") if judged else ())]
    rows = []
    for name, d in found.models.items():
        more = [_figure(d["desirable"]), _figure(d["undesirable"]), f"{d['auc']:.3f}"] if judged else []
        rows.append([name, _figure(d["mean"]), f"{d['std']:.3f}", *more])
    console.print(table(f"{some['n']:,} answers", columns, rows))


def _normal(described: dict[str, Any]) -> str:
    return f"{described['mean']:.2f}, {described['std']:.2f}" if "mean" in described else ""


def _by_length(described: dict[str, Any], name: str) -> Any:
    rows = [
        (f"{b['low']:+d} to {b['high']:+d}", _share(b["accuracy"]), b["n"])
        for b in described["length"]["by_difference"]
    ]
    return table(f"{name}: by tokens of chosen less rejected", ("longer by", "right", "pairs"), rows)


def _reliability(described: dict[str, Any], name: str) -> Any:
    rows = [
        (
            f"{b['low']:.0%} to {b['high']:.0%}",
            f"{b['predicted']:.1%}",
            _share([b["observed"], b["observed_low"], b["observed_high"]]),
            b["n"],
        )
        for b in described["reliability"]
    ]
    return table(f"{name}: how sure, and how right", ("sure", "on average", "right", "pairs"), rows)


def _share(e: Sequence[float]) -> str:
    return f"{e[0]:.1%} [{e[1]:.1%}, {e[2]:.1%}]"


def _figure(e: Sequence[float]) -> str:
    return f"{e[0]:.3f} [{e[1]:.3f}, {e[2]:.3f}]"
