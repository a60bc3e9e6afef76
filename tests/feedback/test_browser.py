"""The page in a real browser, Debian's Chromium: by keyboard, by touch, in both languages, with hostile text."""

from __future__ import annotations

import json
import os
import random
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn

from browser import CHROMIUM, MISSING
from feedback.conftest import fill, rows
from feedback.test_ask import echo
from feedback.test_votes import Desk, valid
from prefiere.data import formats
from prefiere.feedback import items, people, schema
from prefiere.feedback.page import security
from prefiere.feedback.page.app import create
from prefiere.feedback.page.desk import CONSENT
from prefiere.feedback.store import Store
from prefiere.feedback.votes import Said

playwright = pytest.importorskip("playwright.sync_api", reason="playwright is not installed (pip install '.[dev]')")
pytestmark = pytest.mark.skipif(CHROMIUM is None, reason=MISSING)

SHOTS = os.environ.get("PREFIERE_SHOTS")  # a folder for pictures to look at


@contextmanager
def serving(store: Store, **options: object) -> Iterator[str]:
    """The application in a thread; its address."""
    app = create(store, **options)  # type: ignore[arg-type]
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_level="error", access_log=False))
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.02)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()


@contextmanager
def page_at(
    chromium, url: str, *, width: int = 1280, height: int = 800, dark: bool = False, touch: bool = False, **more
):
    context = chromium.new_context(
        viewport={"width": width, "height": height}, color_scheme="dark" if dark else "light", has_touch=touch,
        **{"locale": "en-GB"} | more,
    )  # fmt: skip
    page = context.new_page()
    page.set_default_timeout(30_000)
    page.goto(url)
    try:
        yield page
    finally:
        context.close()


def shot(page, name: str) -> None:
    if SHOTS:
        Path(SHOTS).mkdir(parents=True, exist_ok=True)
        page.screenshot(path=f"{SHOTS}/{name}.png", full_page=True)


def lease(page) -> str:
    return page.get_attribute("#vote", "data-lease") if page.query_selector("#vote") else "none"


def press(page, *keys: str, stays: bool = False) -> None:
    """Press keys once a pair has been on screen long enough, and wait for the next one."""
    page.wait_for_timeout(330)
    before = lease(page)
    for key in keys:
        page.keyboard.press(key)
    if not stays:
        page.wait_for_function(
            "before => (document.getElementById('vote')?.dataset.lease || 'none') != before", arg=before
        )


@pytest.mark.long
def test_ten_pairs_by_keyboard_alone_with_one_undone(chromium, sqlite_store):
    fill(sqlite_store, 10)
    seen: dict[str, int] = {}
    with serving(sqlite_store) as url, page_at(chromium, url) as page:
        for key, score in (("1", -3), ("7", 3), ("ArrowLeft", -2), ("ArrowRight", 2), ("t", 0)):
            seen[lease(page)] = score
            press(page, key)
            assert page.evaluate("document.activeElement.id") == "prompt-title"
        undone = list(seen)[-1]
        press(page, "u")
        assert lease(page) == undone
        assert page.inner_text("#status") == "Undone: this is the pair."
        seen[undone] = 1
        press(page, "5")
        for key, score in (("3", -1), ("4", 0), ("b", None), ("6", 2), ("2", -2)):
            seen[lease(page)] = score
            press(page, key)
        assert "All pairs are done" in page.inner_text("main")
    kept = {}
    for event in rows(sqlite_store, schema.event):
        kept[event["lease_id"]] = event["score"] if event["kind"] == "vote" else "undone"
    assert kept == seen
    assert len(valid(sqlite_store)) == 10
    said = list(formats.read_comparisons(sqlite_store.name))
    assert len(said) == 10
    assert sum(c.preference == "both_bad" for c in said) == 1
    assert sum(c.preference == "tie" for c in said) == 1
    assert all(e["input"] == "key" and e["ms"] > 0 for e in rows(sqlite_store, schema.event) if e["kind"] == "vote")


@pytest.mark.long
def test_skip_ideal_keys_and_dead_time(chromium, sqlite_store):
    fill(sqlite_store, 5)
    with serving(sqlite_store, guidelines="# Reglas") as url, page_at(chromium, url + "/health") as page:
        page.add_init_script(
            "const real = performance.now.bind(performance);"
            "performance.now = () => window.goes ? real() : 0;"  # however slow this machine is
        )
        page.goto(url)
        first = lease(page)
        page.keyboard.press("1")  # within 300 ms of the pair: nothing
        page.wait_for_timeout(300)
        assert lease(page) == first
        page.evaluate("window.goes = true")
        press(page, "s", "2")
        assert page.inner_text("#status") == "Skipped."
        press(page, "?", stays=True)
        assert page.is_visible(".keys dl")
        press(page, "e", stays=True)
        page.keyboard.type("a 1 2 b: mine")  # keys are text here
        page.keyboard.press("Escape")
        assert not page.is_visible("#ideal")
        press(page, "e", stays=True)
        page.keyboard.press("Control+Enter")
        page.wait_for_function("() => document.getElementById('status').textContent == 'Stored.'")
        press(page, "Control+z")
        press(page, "g", stays=True)
        page.wait_for_url("**/guidelines")
        assert "Reglas" in page.inner_text("main")
    assert [e["reason_code"] for e in rows(sqlite_store, schema.event) if e["kind"] == "skip"] == ["unclear"]
    assert [a["content"] for a in rows(sqlite_store, schema.answer) if a["author_id"]] == ["a 1 2 b: mine"]


@pytest.mark.long
def test_a_vote_without_connection_is_sent_again(chromium, sqlite_store):
    fill(sqlite_store, 2)
    with serving(sqlite_store) as url, page_at(chromium, url) as page:
        before = lease(page)
        page.context.set_offline(True)
        press(page, "6", stays=True)
        page.wait_for_function("() => document.getElementById('status').textContent.includes('NOT stored')")
        assert lease(page) == before
        page.context.set_offline(False)
        page.wait_for_function("() => document.getElementById('status').textContent == 'Stored.'")
    assert [v.score for v in valid(sqlite_store)] in ([2], [-2])


@pytest.mark.long
def test_by_touch_on_a_phone_in_spanish(chromium, sqlite_store):
    fill(sqlite_store, 3)
    with (
        serving(sqlite_store) as url,
        page_at(chromium, url, width=390, height=844, touch=True, locale="es-ES") as page,
    ):
        assert page.get_attribute("html", "lang") == "es"
        assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth")
        for button in page.query_selector_all("button:visible, summary:visible, header a"):
            box = button.bounding_box()
            assert box is not None
            assert box["height"] >= 44, button.inner_text()
        page.wait_for_timeout(330)
        page.tap('button[value="2"]')
        page.wait_for_function("() => document.getElementById('status').textContent == 'Guardado.'")
        page.tap("header a[lang=en]")
        assert page.get_attribute("html", "lang") == "en"
    (event,) = rows(sqlite_store, schema.event)
    assert (event["score"], event["input"]) == (2, "touch")


@pytest.mark.long
def test_without_javascript_the_form_works(chromium, sqlite_store):
    fill(sqlite_store, 2)
    with serving(sqlite_store) as url, page_at(chromium, url, java_script_enabled=False) as page:
        page.click('button[value="-1"]')
        page.click('button[value="bad"]')
        assert "All pairs are done" in page.inner_text("main")
    assert len(valid(sqlite_store)) == 2


@pytest.mark.long
def test_a_question_is_asked_with_one_key(chromium, sqlite_store):
    sampler = echo("modelo")
    with (
        serving(sqlite_store, sampler=sampler, questions=["¿Qué es un perro?", "¿Qué es un gato?"]) as url,
        page_at(chromium, url + "/ask") as page,
    ):
        page.focus("#prompt")
        page.keyboard.type("2")  # text, in the field
        assert page.input_value("#prompt") == "2"
        page.evaluate("document.activeElement.blur()")
        page.wait_for_timeout(330)
        page.keyboard.press("2")
        page.wait_for_selector("#vote")
        assert "¿Qué es un gato?" in page.inner_text(".prompt")
        press(page, "6")
    sampler.close()
    assert len(valid(sqlite_store)) == 1


LONG = (
    """Un perro es un animal **doméstico**.

- ladra
- corre

```
print('guau')
```

| a | b |
|---|---|
| 1 | 2 |

"""
    + "Es leal. " * 60
)
ALLOWED = "|p|br|strong|em|s|del|code|pre|ul|ol|li|blockquote|h4|hr|a|table|thead|tbody|tr|th|td|"


def looks(store: Store) -> None:
    """Pairs as people see them, votes of several, two models."""
    rng = random.Random(0)
    with store.write() as c:
        one = items.add_model(c, "base", "base", "f1")
        two = items.add_model(c, "después-dpo", "runs/dpo", "f2", run="runs/dpo", step=40)
        for i in range(30):
            p = items.add_prompt(c, f"¿Qué es un perro? ({i})" if i else "¿Qué es un perro?")
            drawn = [
                items.Drawn(model_id=m, seed=0, sample=0, temperature=1, top_p=1, max_new_tokens=9) for m in (one, two)
            ]
            a = items.add_answer(c, p, LONG if i == 0 else f"Un perro, {i}.", drawn[0])
            b = items.add_answer(c, p, "Guau. 🐕" if i == 0 else f"Animal que ladra {i} veces y corre.", drawn[1])
            items.add_pair(c, p, a, b, overlap=2, purpose="compare" if i % 3 else "ask", rng=rng)
        for name in ("local", "ana", "beto"):
            people.add(c, name, role="admin" if name == "local" else "annotate", token=name)


@pytest.mark.long
@pytest.mark.parametrize(("width", "dark"), [(390, True), (1280, False)])
def test_axe_finds_nothing_serious_and_nothing_scrolls_sideways(chromium, sqlite_store, width, dark):
    from axe_playwright_python.sync_playwright import Axe

    looks(sqlite_store)
    for name in ("ana", "beto"):
        desk = Desk(sqlite_store, name)
        for i in range(8):
            held = desk.take(time.time())
            desk.say(held, 0, Said(score=(i % 7) - 3, ms=3000 + i, input="key"), time.time())
    device = f"{width}{'-dark' if dark else ''}"
    with serving(sqlite_store, guidelines="# Reglas\n\nLo cierto.") as url:
        shown = (("/", "vote"), ("/board", "board"), ("/me", "me"), ("/why/1", "why"), ("/guidelines", "g"))
        for path, name in shown if dark else shown[:2]:
            with page_at(chromium, url + path, width=width, dark=dark, bypass_csp=True, locale="es-ES") as page:
                if name == "vote":
                    page.evaluate("document.querySelectorAll('details').forEach(d => d.open = true)")
                for wide in (320, 701, 1600) if dark else ():
                    page.set_viewport_size({"width": wide, "height": 800})
                    assert page.evaluate("document.documentElement.scrollWidth <= window.innerWidth"), (path, wide)
                page.set_viewport_size({"width": width, "height": 800})
                found = Axe().run(page).response["violations"]
                bad = [(v["id"], [n["html"][:90] for n in v["nodes"][:3]]) for v in found
                       if v["impact"] in ("serious", "critical")]  # fmt: skip
                assert not bad, (path, bad)
                if name == "vote":
                    page.reload()
                shot(page, f"{name}-{device}")


HOSTILE: list[str] = json.loads((Path(__file__).parent / "hostile.json").read_text())


@pytest.mark.long
@pytest.mark.parametrize("csp", [True, False])
def test_hostile_text_runs_nothing_and_fetches_nothing(chromium, tmp_path, monkeypatch, csp):
    if not csp:
        monkeypatch.setitem(security.HEADERS, "Content-Security-Policy", "upgrade-insecure-requests")
    texts = HOSTILE[::3] if csp else HOSTILE  # where the policy is off, nothing but the page itself is in the way
    store = Store.open(tmp_path / "votes.db", create=True)
    rng = random.Random(0)
    with store.write() as c:
        who = people.add(c, "<img src=x onerror=window.hit=1>\u202e", role="admin")
        token = people.new_token(c, who)
        people.consent(c, who, CONSENT, "en")
        model = items.add_model(c, "<script>window.hit=1</script>", "p", "f")
        for i, text in enumerate(texts):
            p = items.add_prompt(c, text + "\n\n" + text)
            drawn = items.Drawn(model_id=model, seed=0, sample=i, temperature=1, top_p=1, max_new_tokens=9)
            a, b = items.add_answer(c, p, text, drawn), items.add_answer(c, p, "- " + text + " # " + str(i))
            items.add_pair(c, p, a, b, overlap=2, rng=rng)
    other = Desk(store, "<svg onload=window.hit=1>")
    for i, text in enumerate(texts):
        held = other.take(time.time())
        ideal = f"{text} {i}" if i % 6 == 0 else None
        other.say(held, 0, Said(both_bad=True, text=text, ideal=ideal, ms=9, input="key"), time.time())
    asked: list[str] = []
    hostile = "# r\n\n" + "\n\n".join(HOSTILE[:-3])
    with serving(store, tokens=True, guidelines=hostile) as url, page_at(chromium, url + "/health") as page:

        def note(request) -> None:
            if not request.url.startswith(url):
                asked.append(request.url)

        page.on("request", note)
        page.on("dialog", lambda dialog: asked.append("dialog"))
        page.goto(f"{url}/join/{token}")
        for _ in texts:
            assert page.query_selector("#vote"), page.inner_text("main")
            tags, links, hit = page.evaluate(
                "() => [[...document.querySelectorAll('.said *')].map(e => e.tagName.toLowerCase()),"
                " [...document.querySelectorAll('.said a')].map(a => [a.getAttribute('href'), a.rel]),"
                " window.hit === undefined ? 'no' : 'yes']"
            )
            assert all(f"|{tag}|" in ALLOWED for tag in tags)
            assert all(href.startswith(("http://", "https://", "mailto:")) for href, _ in links)
            assert all("noreferrer" in rel for _, rel in links)
            assert hit == "no"
            before = lease(page)
            page.evaluate("document.querySelector('button[value=bad]').click()")
            page.wait_for_function(
                "before => (document.getElementById('vote')?.dataset.lease || 'none') != before", arg=before
            )
        for path in ("/board", "/guidelines", "/me", *(f"/why/{i}" for i in range(1, len(texts), 6))):
            page.goto(url + path)
            page.wait_for_timeout(30)
            assert page.evaluate("window.hit") is None, path
    assert asked == []
    assert len(valid(store)) == 2 * len(texts)
    assert len(list(formats.read_comparisons(store.name, on_bad="drop"))) >= 2 * len(texts) - 4
    store.close()
