"""The Runs page in a real browser: a run grows under the reader's eyes; nothing of a run acts on the page."""

from __future__ import annotations

import pytest

from browser import CHROMIUM, MISSING
from feedback.test_browser import HOSTILE, page_at, serving, shot
from prefiere.feedback.page import runs as runs_module
from prefiere.feedback.page import security
from prefiere.feedback.page.runs import RunFolder
from synthetic_runs import make

pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)
FEW = (
    "rewards/",
    "logps/",
    "eval_rewards/",
    "eval_logps/",
    "samples/ref",
    "samples/rep",
    "samples/score",
    "samples/kl",
)


def growing(folder, text: str = "Un perro"):
    run = make(folder, steps=10, drop=FEW, status={"state": "running", "step": 10, "total_steps": 40, "seconds": 20.0})
    run.log_samples([{"step": 0, "prompt": "¿Qué es un perro?", "sample": 0, "completion": f"{text} ladra."}])
    return run


@pytest.mark.long
def test_a_run_grows_while_its_page_is_open(chromium, sqlite_store, tmp_path, monkeypatch):
    monkeypatch.setattr(runs_module, "IDLE", 0)
    run = growing(tmp_path / "vivo")
    with serving(sqlite_store, runs=RunFolder(tmp_path)) as url, page_at(chromium, url + "/health", height=400) as page:
        page.clock.install()
        page.goto(url + "/runs")
        page.keyboard.press("Tab")
        page.click("text=vivo")
        assert "10 / 40 updates" in page.inner_text("main")
        assert "1 min 0 s to go" in page.inner_text("main")
        page.click("details.finding >> nth=0")
        page.evaluate("window.still = document.querySelector('[data-piece=figure-samples-length]')")
        page.evaluate("window.line = document.querySelector('[data-piece=figure-loss]').innerHTML")
        page.focus("details.finding summary")
        page.evaluate("window.still.scrollIntoView()")
        top = page.evaluate("window.still.getBoundingClientRect().top")
        run.log({"step": 20, "loss": 0.2, "eval_loss": 0.3})
        run.log_samples([{"step": 20, "prompt": "¿Qué es un perro?", "sample": 0, "completion": "Un perro corre."}])
        run.status = run.status | {"step": 20, "seconds": 40.0}
        page.clock.fast_forward(5_000)
        page.wait_for_function("() => document.body.innerText.includes('20 / 40 updates')")
        assert "40 s to go" in page.inner_text("main")
        assert page.evaluate("document.querySelector('[data-piece=figure-loss]').innerHTML != window.line")
        assert page.evaluate("document.querySelector('[data-piece=figure-samples-length]') == window.still")
        assert "Un perro corre." in page.inner_text("main")
        assert page.query_selector("details.finding[open]")
        assert page.evaluate("document.activeElement.tagName") == "SUMMARY"
        assert abs(page.evaluate("window.still.getBoundingClientRect().top") - top) <= 1  # whoever reads it goes on
        run.status = run.status | {"state": "finished", "step": 40}
        page.clock.fast_forward(5_000)
        page.wait_for_function("() => document.body.innerText.includes('40 / 40 updates')")
    with (
        serving(sqlite_store, runs=RunFolder(tmp_path)) as url,
        page_at(chromium, url + "/run?name=vivo", java_script_enabled=False) as page,
    ):
        run.status = run.status | {"step": 39}
        page.reload()
        assert "39 / 40 updates" in page.inner_text("main")


@pytest.mark.parametrize("csp", [True, False])
@pytest.mark.long
def test_a_hostile_run_does_nothing_on_the_page_or_in_its_report(chromium, sqlite_store, tmp_path, monkeypatch, csp):
    if not csp:
        monkeypatch.setitem(security.HEADERS, "Content-Security-Policy", "upgrade-insecure-requests")
    evil = "\n".join(t for t in HOSTILE if len(t) < 2000).encode("utf-8", "ignore").decode()  # a run's files are UTF-8
    evil += "<script>window.hit=1</script><img src=//e.example/p>"
    run = growing(tmp_path / "<img src=x onerror=window.hit=1>", evil)
    run.log_samples([{"step": 10, "prompt": evil, "sample": 0, "completion": evil}])
    run.recipe = run.recipe | {"model": evil[:400], "judge": evil[:400]}
    run.data = {"source": evil[:900]}
    run.status = run.status | {"state": "failed", "reason": evil[:900]}
    asked: list[str] = []
    with serving(sqlite_store, runs=RunFolder(tmp_path)) as url, page_at(chromium, url + "/health") as page:
        page.on("request", lambda r: None if r.url.startswith(url) else asked.append(r.url))
        page.on("dialog", lambda dialog: asked.append("dialog"))
        page.goto(url + "/runs")
        assert page.evaluate("window.hit") is None
        page.click("h2 a")
        page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
        assert page.evaluate("window.hit") is None
        assert page.query_selector("main .said mark, main .said")
        page.click("text=The whole report")
        page.wait_for_load_state()
        assert "In detail" in page.content()
        assert page.evaluate("self.origin") == "null"
        assert page.query_selector("img, script") is None
    assert asked == []


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1600, False)])
def test_axe_finds_nothing_serious_on_the_runs_pages(chromium, sqlite_store, tmp_path, width, dark):
    from axe_playwright_python.sync_playwright import Axe

    growing(tmp_path / "vivo").log_samples(
        [{"step": 10, "prompt": "¿Qué es un perro?", "sample": 0, "completion": "Un perro corre."}]
    )
    (tmp_path / "roto").mkdir()
    (tmp_path / "roto" / "recipe.yaml").write_text("- nada")
    with serving(sqlite_store, runs=RunFolder(tmp_path)) as url:
        for path in ("/runs", "/run?name=vivo", "/run?name=roto"):
            with page_at(chromium, url + path, width=width, dark=dark, bypass_csp=True, touch=True) as page:
                page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), path
                for target in page.query_selector_all("main a:visible, main summary:visible"):
                    assert target.bounding_box()["height"] >= 44, target.inner_text()
                found = Axe().run(page).response["violations"]
                bad = [(v["id"], [n["html"][:90] for n in v["nodes"][:3]]) for v in found
                       if v["impact"] in ("serious", "critical")]  # fmt: skip
                assert not bad, (path, bad)
                shot(page, f"runs{path.replace('/', '-').replace('?', '-')}-{width}{'-dark' if dark else ''}")
