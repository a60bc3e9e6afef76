"""The report in a browser: what axe finds, and that nothing lies off the screen, on a desk and on a phone."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from browser import CHROMIUM, MISSING
from prefiere.report.page import render
from synthetic_runs import ADAPTIVE_KL, PERFECT, RUINED, make, make_policy, make_reward

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
LONG = "The dog is loyal. " * 80
OFF_SCREEN = """[...document.querySelectorAll("main *, header *")].filter(e => e.getBoundingClientRect().right
    > window.innerWidth + 1 && e.closest("svg") === null).map(e => e.outerHTML.slice(0, 90))"""


def reports(folder: Path) -> list[Path]:
    """Several runs of different methods on one page, and a run alone with long answers."""
    ruined = make(folder / "ruined", train=PERFECT, answers=RUINED)
    runs = [make(folder / "dpo"), ruined, make_policy(folder / "ppo", **ADAPTIVE_KL), make_reward(folder / "rm")]
    runs[1].recipe = runs[1].recipe | {"beta": 0.3, "judge": "rules:judge"}
    for run in runs[:3]:
        run.environment = {"choices": [{"name": "lora", "value": False, "why": "a model this small is trained whole"}]}
        run.log_samples(
            [{"step": s, "prompt": LONG, "completion": f"{LONG}{s}", "sample": 0, "score": 0.5} for s in (0, 100)]
        )
    return [render(runs, folder / "several.html"), render(runs[2:3], folder / "one.html")]


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1400, False)])
def test_axe_finds_nothing_and_nothing_lies_off_the_screen(
    chromium: Any, tmp_path: Path, width: int, dark: bool
) -> None:
    from axe_playwright_python.sync_playwright import Axe

    scheme = "dark" if dark else "light"
    for path in reports(tmp_path):
        context = chromium.new_context(
            viewport={"width": width, "height": 900}, color_scheme=scheme, bypass_csp=True, reduced_motion="reduce"
        )
        page = context.new_page()
        page.goto(path.as_uri())
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate(OFF_SCREEN) == [], path.name
        found = Axe().run(page).response["violations"]
        assert not [(v["id"], [n["html"][:90] for n in v["nodes"][:3]]) for v in found], path.name
        context.close()
