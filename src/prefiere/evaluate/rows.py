"""What an evaluation over pairs amounts to: means with 95% intervals, clustered by prompt."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import numpy as np

from prefiere.metrics import column
from prefiere.stats import clustered_mean


def flat(
    values: Mapping[str, np.ndarray],
    clusters: np.ndarray,
    *,
    prefix: str = "",
    weights: Mapping[str, np.ndarray] | None = None,
) -> dict[str, float]:
    """Per-example values [n] of each metric as the columns of a log row: mean, ``_low``, ``_high``, ``_n``.

    ``clusters`` [n] names each example's prompt. ``weights`` [n] of a metric make its mean a weighted one (tokens).
    """
    row: dict[str, float] = {}
    for name, x in values.items():
        w = weights.get(name) if weights else None
        interval = column(prefix + name).interval
        share = None if interval == "seen" else interval == "share"
        e = clustered_mean(x, clusters, weights=w, share=share)
        row |= {prefix + name: e.mean, f"{prefix}{name}_low": e.low, f"{prefix}{name}_high": e.high}
        row[f"{prefix}{name}_n"] = e.n if not math.isnan(e.mean) else 0
    return derived(row, prefix)


def derived(row: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """The row with the columns that are computed from others.

    rewards/margins of unpaired answers is the difference of the two means; rewards/std is the root of the mean square
    less the squared mean.
    """
    good, bad, margin = (f"{prefix}rewards/{n}" for n in ("chosen", "rejected", "margins"))
    if good in row and margin not in row:
        row[margin] = row[good] - row[bad]
    mean, square, std = (f"{prefix}rewards/{n}" for n in ("mean", "square", "std"))
    if square in row:
        row[std] = math.sqrt(max(0.0, row[square] - row[mean] ** 2))
    return {k: v for k, v in row.items() if not k.startswith(square)}
