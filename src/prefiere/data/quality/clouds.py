"""Whether evidence for labels lies in two clouds, one on either side of 0: then a part of the labels is swapped.

Evidence is signed: above 0 where a witness (a model's margin, a sum over words) agrees with the label. Labels that are
hard to tell leave it near 0, those that are swapped leave it as firm as the others, on the wrong side. All statistics
are ratios, so that the unit of the evidence does not matter.
"""

from __future__ import annotations

import numpy as np

BETWEEN, LEAST = 0.25, 0.088
"""Of a single bell of margins with one in twenty or more below 0, the share ``LEAST`` or more lies within ``BETWEEN``
times the median absolute margin of 0 (a normal one whose 5% quantile is 0 has 8.9%, one around 0 13%)."""
HESITANT = ((0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4, 0.45), (0.12, 0.17, 0.22, 0.28, 0.33, 0.36, 0.39, 0.44, 0.47))
"""By the share of margins below 0: how often one of them is the larger, in size, of one below and one above. For normal
margins of a spread that differs from pair to pair (lognormal, 0.5). An error of a single bell is a hesitant one; a
swapped label is contradicted as firmly as others are confirmed: one half."""
UNLIKELY = 0.003
"""Chance of both under a single bell, below which margins count as two clouds."""
FEWEST = 30
"""Margins, below which they count as one."""


def between(margins: np.ndarray) -> int:
    """How many of these lie near 0, between the two clouds that swapped labels make."""
    size = np.abs(margins)
    return int((size < BETWEEN * np.median(size)).sum()) if len(size) else 0


def chance_of_one(margins: np.ndarray) -> float:
    """How likely so few margins near 0, and errors as firm as these, are of a single bell: two tests, combined as
    Fisher (1932) does; 1 below `FEWEST`, and where fewer than 5 or more than 45% are below 0."""
    if len(margins) < FEWEST or not 0.05 <= float((margins < 0).mean()) <= 0.45:
        return 1.0
    from scipy.special import bdtr, ndtr

    size, wrong = np.abs(margins), margins < 0
    n, m, right = int(wrong.sum()), int((~wrong).sum()), np.sort(size[~wrong])
    below = np.searchsorted(right, size[wrong], "left") + np.searchsorted(right, size[wrong], "right")
    firm = float(below.mean()) / (2 * m)
    spread = np.sqrt((n + m + 1) / (12 * n * m))  # of this share: Mann and Whitney (1947)
    p_firm = float(ndtr(-(firm - np.interp(n / len(margins), *HESITANT)) / spread))
    both = max(float(bdtr(between(margins), len(margins), LEAST)) * p_firm, 1e-300)
    return both * (1 - float(np.log(both)))


def firmly_against(margins: np.ndarray) -> np.ndarray:
    """Where the evidence is against the label, and no hesitant one: bool, as ``margins``."""
    return margins < -BETWEEN * float(np.median(np.abs(margins)))
