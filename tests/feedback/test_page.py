"""The server over HTTP, without a browser: what it shows, keeps and refuses."""

from __future__ import annotations

import json
import re

import pytest
import sqlalchemy as sa
from fastapi.testclient import TestClient

from feedback.conftest import fill, rows
from feedback.test_votes import valid
from prefiere.feedback import items, people, schema
from prefiere.feedback.page import run_words, words
from prefiere.feedback.page.app import create
from prefiere.feedback.page.desk import CONSENT, Desks
from prefiere.feedback.page.render import text_html
from prefiere.feedback.page.security import MOST, host_allowed, loopback
from prefiere.feedback.store import Store

TITLE = re.compile(r"<h1[^>]*>(.*?)</h1>", re.S)


def client(store: Store, *, tokens: bool = False, guidelines: str | None = None, host: str = "127.0.0.1") -> TestClient:
    app = create(store, tokens=tokens, guidelines=guidelines, host=host)
    return TestClient(app, base_url="http://127.0.0.1:8600", raise_server_exceptions=False)


def fields(page: str) -> dict[str, str]:
    """The hidden fields of the form on a page."""
    return dict(re.findall(r'<input type="hidden" name="(\w+)" value="([^"]*)"', page))


def joined(store: Store, name: str, role: str = "annotate", consent: bool = True) -> TestClient:
    """A client of a server with tokens in which somebody has opened their link."""
    with store.write() as c:
        who = people.add(c, name, role=role)  # type: ignore[arg-type]
        token = people.new_token(c, who)
        if consent:
            people.consent(c, who, CONSENT, "en")
    browser = client(store, tokens=True)
    assert browser.get(f"/join/{token}", follow_redirects=False).status_code == 303
    return browser


def test_a_vote_by_form_alone_is_kept_and_leads_to_the_next_pair(store):
    fill(store, 2)
    browser = client(store)
    page = browser.get("/")
    assert page.status_code == 200
    assert "¿Qué es" in page.text
    form = fields(page.text)
    done = browser.post("/vote", data=form | {"score": "-3", "ms": "2500", "input": "touch"}, follow_redirects=False)
    assert (done.status_code, done.headers["location"]) == (303, "/")
    again = browser.post("/vote", data=form | {"score": "-3"}, follow_redirects=False)
    assert again.status_code == 303
    other = browser.post("/vote", data=form | {"score": "3"})
    assert other.status_code == 409
    assert words.EN["conflict"] in other.text
    (event,) = rows(store, schema.event)
    assert (event["score"], event["ms"], event["input"]) == (-3, 2500, "touch")
    assert fields(browser.get("/").text)["lease"] != form["lease"]


def test_the_script_gets_a_part_of_the_page_and_a_notice(sqlite_store):
    fill(sqlite_store, 2)
    browser = client(sqlite_store)
    form = fields(browser.get("/").text)
    part = browser.post("/vote", data=form | {"act": "bad"}, headers={"X-Part": "1"})
    assert part.headers["x-replace"] == "1"
    assert part.headers["x-notice"] == "Stored."
    assert "<html" not in part.text
    back = browser.post("/vote", data=fields(part.text) | {"act": "undo"}, headers={"X-Part": "1"})
    assert fields(back.text)["lease"] == form["lease"]
    assert not valid(sqlite_store)
    skipped = browser.post("/vote", data=fields(back.text) | {"skip": "unclear"}, headers={"X-Part": "1"})
    assert skipped.headers["x-notice"] == "Skipped."
    mine = browser.post(
        "/vote", data=fields(skipped.text) | {"act": "ideal", "ideal": " mejor "}, headers={"X-Part": "1"}
    )
    assert words.EN["all_done"] in mine.text
    (vote,) = valid(sqlite_store)
    assert vote.both_bad
    assert [a["content"] for a in rows(sqlite_store, schema.answer) if a["author_id"]] == ["mejor"]


@pytest.mark.parametrize("bad", [{"score": "9"}, {"score": "x"}, {}, {"act": "ideal"}, {"skip": "bored"}, {"seq": "x"},
                                 {"score": "1", "note": "n" * 2001}])  # fmt: skip
def test_what_is_no_vote_is_refused_with_a_sentence(sqlite_store, bad):
    fill(sqlite_store, 1)
    browser = client(sqlite_store)
    answer = browser.post("/vote", data=fields(browser.get("/").text) | bad, headers={"Accept-Language": "es"})
    assert answer.status_code == 422
    assert words.ES["e422"] in answer.text
    assert not rows(sqlite_store, schema.event)


def test_forgeries_are_refused_and_nothing_is_stored(sqlite_store):
    fill(sqlite_store, 4)
    ana, eva = joined(sqlite_store, "ana"), joined(sqlite_store, "eva")
    hers, mine = fields(ana.get("/").text), fields(eva.get("/").text)
    for forged in (
        mine | {"csrf": ""}, mine | {"csrf": hers["csrf"]}, mine | {"csrf": "é"}, mine | {"lease": hers["lease"]},
        mine | {"lease": "0" * 32}, mine | {"act": "undo", "undo_lease": hers["lease"]},
    ):  # fmt: skip
        assert eva.post("/vote", data={"score": "1"} | forged).status_code == 403
    for headers in ({"Sec-Fetch-Site": "cross-site"}, {"Sec-Fetch-Site": "same-site"}, {"Host": "evil.example"},
                    {"Host": "127.0.0.1.evil.example:8600"}):  # fmt: skip
        assert eva.post("/vote", data=mine | {"score": "1"}, headers=headers).status_code == 403
    assert eva.get("/", headers={"Host": "rebound.example"}).status_code == 403
    assert not rows(sqlite_store, schema.event)
    assert eva.post("/vote", data=mine | {"score": "1"}).status_code == 200


def test_tokens_open_nothing_but_their_own(sqlite_store):
    fill(sqlite_store, 2)
    stranger = client(sqlite_store, tokens=True)
    for path in ("/", "/me", "/me/copy", "/board", "/board/part", "/why/1", "/guidelines"):
        assert stranger.get(path).status_code == 401, path
    assert stranger.post("/vote", data={"score": "1"}).status_code == 401
    assert stranger.get("/join/wrong").status_code == 401
    assert stranger.get("/health").json() == {"ok": True}
    ana = joined(sqlite_store, "ana")
    assert ana.get("/").status_code == 200
    for path in ("/board", "/board/part", "/why/1"):
        assert ana.get(path).status_code == 403, path
    boss = joined(sqlite_store, "boss", role="admin")
    assert boss.get("/board").status_code == 200
    assert boss.get("/why/1").status_code == 200
    assert boss.get("/why/99").status_code == 404
    (hashed,) = {p["token_hash"] for p in rows(sqlite_store, schema.person) if p["pseudonym"] == "ana"}
    assert stranger.get("/", headers={"Cookie": f"prefiere={hashed}"}).status_code == 401


def test_many_wrong_links_have_to_wait_and_right_ones_do_not(sqlite_store):
    fill(sqlite_store, 1)
    ana = joined(sqlite_store, "ana")
    statuses = [ana.get(f"/join/{i}").status_code for i in range(40)]
    assert statuses[0] == 401
    assert statuses[-1] == 429
    assert ana.get("/").status_code == 200


def test_a_cookie_is_for_the_server_alone(sqlite_store):
    with sqlite_store.write() as c:
        token = people.new_token(c, people.add(c, "ana"))
    answer = client(sqlite_store, tokens=True).get(f"/join/{token}", follow_redirects=False)
    cookie = answer.headers["set-cookie"].lower()
    assert "httponly" in cookie
    assert "samesite=strict" in cookie


def test_consent_comes_before_the_first_pair(sqlite_store):
    fill(sqlite_store, 1)
    ana = joined(sqlite_store, "ana", consent=False)
    page = ana.get("/")
    assert words.EN["consent_title"] in page.text
    assert not rows(sqlite_store, schema.lease)
    form = fields(page.text)
    assert ana.post("/vote", data=form | {"score": "1", "lease": "x"}).status_code == 403
    assert ana.post("/consent", data=form | {"version": "other"}).status_code == 422
    assert "¿Qué es" in ana.post("/consent", data=form).text
    (who,) = rows(sqlite_store, schema.person)
    assert (who["consent_version"], who["lang"]) == (CONSENT, "en")
    assert who["consent_at"] is not None


def test_a_copy_of_ones_own_and_leaving(sqlite_store):
    fill(sqlite_store, 2)
    ana = joined(sqlite_store, "ana")
    ana.post("/vote", data=fields(ana.get("/").text) | {"score": "2", "note": "porque \u202e sí"})
    copy = json.loads(ana.get("/me/copy").text)
    assert copy["person"]["pseudonym"] == "ana"
    assert [(e["score"], e["note"]) for e in copy["events"]] == [(2, "porque \u202e sí")]
    assert "token_hash" not in copy["person"]
    form = fields(ana.get("/me").text)
    assert ana.post("/me/leave", data=form).status_code == 422
    assert words.EN["e410"] in ana.post("/me/leave", data=form | {"sure": "yes"}).text
    assert not rows(sqlite_store, schema.event)
    assert ana.get("/").status_code == 401


def test_long_bodies_odd_paths_and_odd_methods_are_refused(sqlite_store):
    fill(sqlite_store, 1)
    browser = client(sqlite_store)
    form = fields(browser.get("/").text)
    assert browser.post("/vote", data=form | {"ideal": "x" * MOST}).status_code == 413

    def stream():
        for _ in range(MOST // 1000 + 2):
            yield b"x" * 1000

    assert browser.post("/vote", content=stream()).status_code == 413
    for path in ("/static/../app.py", "/static/..%2fapp.py", "/static/%2e%2e/%2e%2e/store.py", "/static/app.py",
                 "/nowhere", "/docs", "/openapi.json", "/why/x"):  # fmt: skip
        assert browser.get(path).status_code in (404, 422), path
    assert browser.delete("/vote").status_code == 405
    assert not rows(sqlite_store, schema.event)


def test_every_answer_carries_the_headers(sqlite_store, monkeypatch):
    fill(sqlite_store, 1)
    browser = client(sqlite_store)
    for path in ("/", "/static/page.js", "/board", "/nowhere", "/health"):
        headers = browser.get(path).headers
        csp = headers["content-security-policy"]
        assert "default-src 'none'" in csp
        assert "unsafe" not in csp
        assert headers["x-content-type-options"] == "nosniff"
        assert headers["referrer-policy"] == "no-referrer"
        assert headers["cache-control"] == "no-store"
    monkeypatch.setattr(Desks, "look", lambda self, who: 1 / 0)
    broken = browser.get("/")
    assert broken.status_code == 500
    assert words.EN["e500"] in broken.text
    assert "default-src 'none'" in broken.headers["content-security-policy"]
    monkeypatch.undo()
    assert not re.search(r"<script(?! src=\"/static/page.js\")|<style|\son\w+=|style=", browser.get("/").text)


def test_whatever_a_page_loads_is_there(sqlite_store):
    """Its icon, too: a browser that is told of none asks for /favicon.ico, which is not."""
    fill(sqlite_store, 1)
    browser = client(sqlite_store)
    said = browser.get("/").text
    kinds = {
        path: browser.get(path).headers["content-type"] for path in re.findall(r'(?:href|src)="(/static/[^"]+)', said)
    }
    assert kinds == {
        "/static/icon.svg": "image/svg+xml",
        "/static/page.css": "text/css; charset=utf-8",
        "/static/page.js": "text/javascript; charset=utf-8",
    }
    assert '<link rel="icon" href="/static/icon.svg">' in said


def test_a_full_disk_says_that_the_vote_was_not_stored(sqlite_store):
    fill(sqlite_store, 2)
    browser = client(sqlite_store)
    form = fields(browser.get("/").text)

    @sa.event.listens_for(sqlite_store.engine, "begin")
    def full(c):
        c.exec_driver_sql(f"PRAGMA max_page_count = {c.exec_driver_sql('PRAGMA page_count').scalar()}")

    statuses = []
    for _ in range(60):  # until the free space of the pages is used up
        answer = browser.post("/vote", data=form | {"act": "ideal", "ideal": "x" * 20_000}, headers={"X-Part": "1"})
        statuses.append(answer.status_code)
        if answer.status_code == 507:
            break
        form = fields(browser.get("/").text)
    assert statuses[-1] == 507
    assert "NOT stored" in answer.text
    sa.event.remove(sqlite_store.engine, "begin", full)
    with sqlite_store.write() as c:
        c.exec_driver_sql("PRAGMA max_page_count = 1000000")
    assert browser.post("/vote", data=form | {"act": "ideal", "ideal": "x" * 20_000}).status_code == 200
    assert len(valid(sqlite_store)) == statuses.count(200) + 1


def test_the_board_is_sent_again_only_when_it_changed(sqlite_store):
    fill(sqlite_store, 3, overlap=2)
    boss, ana = joined(sqlite_store, "boss", role="admin"), joined(sqlite_store, "ana\u202e<b>")
    first = boss.get("/board/part")
    assert boss.get("/board/part", headers={"If-None-Match": first.headers["etag"]}).status_code == 304
    ana.post("/vote", data=fields(ana.get("/").text) | {"score": "1"})
    boss.app.app.state.site._board = None  # the two seconds are over
    later = boss.get("/board/part", headers={"If-None-Match": first.headers["etag"]})
    assert later.status_code == 200
    assert "ana⟨U+202E⟩&lt;b&gt;" in later.text


def test_guidelines_are_shown_and_their_version_is_kept(sqlite_store):
    fill(sqlite_store, 1)
    browser = client(sqlite_store, guidelines="# Reglas\n\nPrefiere lo **cierto**.")
    assert "<strong>cierto</strong>" in browser.get("/guidelines").text
    browser.get("/")
    (lease,) = rows(sqlite_store, schema.lease)
    assert lease["guidelines_version"] == people.token_hash("# Reglas\n\nPrefiere lo **cierto**.")[:12]


def test_scripts_vote_with_a_bearer_token(sqlite_store):
    fill(sqlite_store, 2)
    with sqlite_store.write() as c:
        token = people.new_token(c, people.add(c, "rule", kind="judge"))
    browser = client(sqlite_store, tokens=True)
    auth = {"Authorization": f"Bearer {token}"}
    assert browser.post("/api/next").status_code == 401
    assert browser.post("/api/next", headers={"Authorization": "Bearer no"}).status_code == 401
    for _ in range(2):
        pair = browser.post("/api/next", headers=auth).json()
        sent = {"lease": pair["lease"], "seq": pair["seq"], "score": -1}
        assert browser.post("/api/votes", headers=auth, json=sent).json() == {"outcome": "new"}
    assert browser.post("/api/votes", headers=auth, json=sent).json() == {"outcome": "again"}
    assert browser.post("/api/votes", headers=auth, json=sent | {"score": 1}).status_code == 409
    assert browser.post("/api/votes", headers=auth, json=sent | {"score": 8}).status_code == 422
    assert browser.post("/api/next", headers=auth).json()["why"] == "all_done"
    assert all(v.judge for v in valid(sqlite_store))


def test_both_languages_say_the_same_things():
    english, spanish = words.WORDS["en"], words.WORDS["es"]
    assert english.keys() == spanish.keys()
    assert not words.EN.keys() & run_words.RUNS_EN.keys()
    for key in english:
        assert re.findall(r"\{\w+\}", english[key]) == re.findall(r"\{\w+\}", spanish[key]), key


@pytest.mark.parametrize(("chosen", "accepted", "expected"), [
    (None, "es-AR,es;q=0.9,en;q=0.8", "es"), (None, "de,en;q=0.4,es;q=0.7", "es"), (None, "fr", "en"),
    (None, None, "en"),
    ("es", "en", "es"), ("xx", "en", "en"), (None, "es;q=x,en", "en"),
])  # fmt: skip
def test_the_language_is_the_readers(chosen, accepted, expected):
    assert words.choose(chosen, accepted) == expected


@pytest.mark.parametrize(("host", "allowed"), [
    ("127.0.0.1:8600", True), ("localhost:8600", True), ("[::1]:8600", True), ("[::1]", True), ("192.168.1.5:80", True),
    ("lab.example:8600", True), ("evil.example", False), ("", False), ("localhost.evil.example", False),
])  # fmt: skip
def test_hosts(host, allowed):
    assert host_allowed(host, "lab.example") is allowed


def test_without_tokens_only_this_machine_may_reach_it(sqlite_store):
    assert loopback("127.0.0.1")
    assert loopback("::1")
    assert not loopback("0.0.0.0")
    with pytest.raises(ValueError, match="token is required"):
        create(sqlite_store, host="0.0.0.0")


def test_markdown_is_shown_and_its_dangers_are_not():
    assert "<strong>a</strong>" in text_html("**a**")
    assert "<h4>" in text_html("# t")
    assert "<img" not in text_html("![x](http://e.example/p.png)")
    assert "⟨U+202E⟩" in text_html("\u202eabc")
    assert text_html("<script>alert(1)</script>") == "<p>&lt;script&gt;alert(1)&lt;/script&gt;</p>\n"
    for link in ("javascript:alert(1)", "data:text/html,x", "vbscript:x", "JaVaScRiPt:x", "//e.example"):
        assert "href" not in text_html(f"[x]({link})") or "e.example" in link
    long = "*x* " * 20_000
    assert text_html(long).startswith("<pre>*x*")


def test_an_answer_that_says_nothing_is_shown_as_nothing(sqlite_store):
    import random

    with sqlite_store.write() as c:
        p = items.add_prompt(c, "q")
        a, b = items.add_answer(c, p, ""), items.add_answer(c, p, "\ud800")
        items.add_pair(c, p, a, b, rng=random.Random(0))
    page = client(sqlite_store).get("/")
    assert page.status_code == 200
    assert "⟨U+D800⟩" in page.text
