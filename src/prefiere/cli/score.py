"""What ``prefiere score`` does: scores of one or several reward models, and what they are worth on pairs."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rich.console import Console

from prefiere.api.scoring import Scores, scores_of_data
from prefiere.asked.language import in_words
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
        console.print(in_words("score.rows", n=f"{len(found.rows):,}", path=out), markup=False)
    return {**found.to_dict(), "out": out}


def _show_pairs(found: Scores, console: Console) -> None:
    rows = [
        (n, _share(d["accuracy"]), _figure(d["log_loss"]), f"{d['ece']:.3f}", _normal(d))
        for n, d in found.models.items()
    ]
    some = next(iter(found.models.values()))
    columns = ("", *(in_words(f"score.{key}") for key in ("right", "log_loss", "calibration", "spread")))
    console.print(table(in_words("score.pairs", n=f"{some['n']:,}"), columns, rows))
    length = some["length"]
    console.print(in_words(f"score.always.{length['rule']}", share=_share(length["baseline"])), markup=False)
    last = list(found.models)[-1]
    console.print(_by_length(found.models[last], last))
    console.print(_reliability(found.models[last], last))
    if (apart := found.disagreement) is not None:
        console.print(in_words("score.apart", share=_share(apart["split"])), markup=False)
        right = {key: _share(apart[f"accuracy_{key}"]) for key in ("agreed", "split")}
        console.print(in_words("score.together", **right), markup=False)


def _show_answers(found: Scores, console: Console) -> None:
    some = next(iter(found.models.values()))
    judged = "auc" in some
    named = ["mean", "deviation", *(("desirable", "undesirable") if judged else ())]
    columns = ["", *(in_words(f"score.{key}") for key in named), *(["AUC"] if judged else ())]
    rows = []
    for name, d in found.models.items():
        more = [_figure(d["desirable"]), _figure(d["undesirable"]), f"{d['auc']:.3f}"] if judged else []
        rows.append([name, _figure(d["mean"]), f"{d['std']:.3f}", *more])
    console.print(table(in_words("score.answers", n=f"{some['n']:,}"), columns, rows))


def _normal(described: dict[str, Any]) -> str:
    return f"{described['mean']:.2f}, {described['std']:.2f}" if "mean" in described else ""


def _by_length(described: dict[str, Any], name: str) -> Any:
    rows = [
        (_to(b["low"], b["high"], "+d"), _share(b["accuracy"]), b["n"]) for b in described["length"]["by_difference"]
    ]
    columns = [in_words(f"score.{key}") for key in ("longer_by", "right", "counted")]
    return table(in_words("score.by_length", model=name), columns, rows)


def _reliability(described: dict[str, Any], name: str) -> Any:
    rows = [
        (
            _to(b["low"], b["high"], ".0%"),
            f"{b['predicted']:.1%}",
            _share([b["observed"], b["observed_low"], b["observed_high"]]),
            b["n"],
        )
        for b in described["reliability"]
    ]
    columns = [in_words(f"score.{key}") for key in ("sure", "on_average", "right", "counted")]
    return table(in_words("score.how_sure", model=name), columns, rows)


def _to(low: float, high: float, form: str) -> str:
    """``+1 to +3``; of a bin of one value, that value; a length of no difference has no sign."""
    first, last = (f"{v:{form}}" if v else f"{v:{form.removeprefix('+')}}" for v in (low, high))
    return first if first == last else in_words("score.to", low=first, high=last)


def _share(e: Sequence[float]) -> str:
    return f"{e[0]:.1%} [{e[1]:.1%}, {e[2]:.1%}]"


def _figure(e: Sequence[float]) -> str:
    return f"{e[0]:.3f} [{e[1]:.3f}, {e[2]:.3f}]"
