"""The server: routes, each a few lines, over a store. What is shown is in `desk`, what is refused in `security`."""

import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import quote

import sqlalchemy as sa
from fastapi import APIRouter, FastAPI, Form, Request, Response
from fastapi.exceptions import RequestValidationError
from fastapi.responses import PlainTextResponse, RedirectResponse
from starlette.exceptions import HTTPException

from prefiere.feedback import leases, people, schema
from prefiere.feedback.page import admin, desk, run_routes, words
from prefiere.feedback.page.desk import CONSENT, Desks
from prefiere.feedback.page.sampler import NoAnswer, Sampler, ask_model
from prefiere.feedback.page.security import Guard, loopback
from prefiere.feedback.page.site import COOKIE, LANG, YEAR, Asker, Here, Refused, Sender, Site
from prefiere.feedback.store import Store, StoreFull
from prefiere.feedback.votes import NotTheirs, Said

if TYPE_CHECKING:
    from prefiere.feedback.page.runs import RunFolder

vote_router = APIRouter()
MOST_QUESTIONS = 9
"""Questions to pick from: one for each key from 1 to 9."""


def create(
    store: Store,
    *,
    host: str = "127.0.0.1",
    guidelines: str | None = None,
    tokens: bool = False,
    sampler: Sampler | None = None,
    runs: "RunFolder | None" = None,
    questions: Sequence[str] = (),
) -> Guard:
    """The application. Without ``tokens`` whoever reaches it is the local person: only for a loopback host.

    questions: what the Ask page offers to pick from, the first MOST_QUESTIONS of them.
    """
    if not tokens and not loopback(host):
        raise ValueError(f"{host} can be reached from elsewhere: a token is required there.")
    site = Site(Desks(store, guidelines, open=not tokens), sampler, runs, questions)
    app = FastAPI(openapi_url=None, docs_url=None, redoc_url=None)
    app.state.site = site
    _errors(app, site)
    app.include_router(vote_router)
    app.include_router(admin.admin_router)
    app.include_router(run_routes.run_router)
    return Guard(app, host)  # outermost: what it sets is on the page of an error, too


def _errors(app: FastAPI, site: Site) -> None:
    def shown(request: Request, status: int, key: str) -> Response:
        if request.url.path.startswith("/api/"):
            return Response(f'{{"error": "{key}"}}', status, media_type="application/json")
        if request.headers.get("x-part"):
            return PlainTextResponse(site.say(request)[key], status)
        return site.page(request, "message.html", status, message=site.say(request)[key], body=None)

    def by(status: int, key: str) -> Callable[[Request, Exception], Response]:
        return lambda request, error: shown(request, status, key)

    app.exception_handler(Refused)(lambda r, e: shown(r, e.status, e.key))
    app.exception_handler(StoreFull)(by(507, "full"))
    app.exception_handler(NotTheirs)(by(403, "e403"))
    app.exception_handler(RequestValidationError)(by(422, "e422"))
    app.exception_handler(sa.exc.OperationalError)(by(503, "e500"))
    app.exception_handler(Exception)(by(500, "e500"))
    app.exception_handler(HTTPException)(
        lambda r, e: shown(r, e.status_code, "e404" if e.status_code == 404 else "e422")
    )


@vote_router.get("/")
def vote_page(request: Request, site: Here, who: Asker) -> Response:
    """The pair in this person's hands, why there is none, or the consent before the first."""
    if site.desks.needs_consent(who):
        csrf = desk.csrf_of(who["token_hash"])
        told = site.desks.guidelines_html
        return site.page(request, "consent.html", who=who, csrf=csrf, version=CONSENT, guidelines=told)
    return site.page(request, "vote.html", **site.desks.look(who))


@vote_router.post("/consent")
def consent_page(request: Request, site: Here, who: Sender, version: Annotated[str, Form()]) -> Response:
    """Keep that somebody agreed, and to which version."""
    if version != CONSENT:
        raise Refused(422, "e422")
    with site.desks.store.write() as c:
        people.consent(c, who["id"], version, site.say(request)["lang"])
    return RedirectResponse("/", 303)


@vote_router.post("/vote")
def vote(
    request: Request,
    site: Here,
    who: Sender,
    lease: Annotated[str, Form()] = "",
    seq: Annotated[int, Form()] = 0,
    undo_lease: Annotated[str, Form()] = "",
    undo_seq: Annotated[int, Form()] = 0,
    act: Annotated[str, Form()] = "",
    score: Annotated[str, Form()] = "",
    skip: Annotated[str, Form()] = "",
    ideal: Annotated[str, Form(max_length=50_000)] = "",
    note: Annotated[str, Form(max_length=2_000)] = "",
    ms: Annotated[str, Form()] = "",
    input: Annotated[str, Form()] = "",
) -> Response:
    """Keep a vote, a skip or an undo, and show what comes next."""
    if site.desks.needs_consent(who):
        raise Refused(403, "e403")
    took = int(ms) if ms.isdigit() and len(ms) < 10 else None
    by = input if input in ("key", "touch", "mouse") else None
    try:
        said = _said(act, score, skip, ideal.strip() or None, note.strip() or None, took, by)
    except ValueError:
        raise Refused(422, "e422") from None
    undo = said.kind == "undo"
    outcome, warn = site.desks.take(who, undo_lease if undo else lease, undo_seq if undo else seq, said)
    key = "conflict" if outcome == "conflict" else "late" if outcome == "late" else "warn" if warn else ""
    key = key or {"undo": "undone", "skip": "skipped"}.get(said.kind, "stored")
    status = 409 if outcome == "conflict" else 200
    return _after(site, request, who, status, key)


def _after(site: Site, request: Request, who: Any, status: int, key: str) -> Response:
    """The next pair: for the script a part of the page; without it a redirect, or a page with the conflict."""
    w = site.say(request)
    if not request.headers.get("x-part"):
        if status == 200:
            return RedirectResponse("/", 303)
        return site.page(request, "vote.html", status, **site.desks.look(who) | {"notice": w[key]})
    shown = site.desks.look(who)
    answer = site.page(request, shown["part"], status, **shown)
    answer.headers["X-Replace"], answer.headers["X-Notice"] = "1", quote(w[key])
    return answer


@vote_router.get("/ask")
def ask_page(request: Request, site: Here, who: Asker) -> Response:
    """Where a person types a prompt."""
    if site.sampler is None:
        raise Refused(404, "e404")
    if site.desks.needs_consent(who):
        return RedirectResponse("/", 303)
    return _ask_page(site, request, who)


@vote_router.post("/ask")
def post_question(
    request: Request, site: Here, who: Sender, prompt: Annotated[str, Form(max_length=20_000)] = "",
    pick: Annotated[str, Form(max_length=20_000)] = "",
) -> Response:  # fmt: skip
    """Let the model answer twice what was typed, or picked; the pair is then in the person's hands."""
    prompt = pick or prompt
    if site.sampler is None or site.desks.needs_consent(who):
        raise Refused(403, "e403")
    if not prompt.strip():
        raise Refused(422, "e422")
    try:
        ask_model(site.desks.store, site.sampler, who["id"], prompt.strip(), site.desks.guidelines_version)
    except NoAnswer as e:
        problem = " ".join((site.say(request)[e.key], e.detail)).strip()
        return _ask_page(site, request, who, 503, prompt, problem)
    return RedirectResponse("/", 303)


def _ask_page(
    site: Site, request: Request, who: Any, status: int = 200, prompt: str = "", problem: str | None = None
) -> Response:
    csrf = desk.csrf_of(who["token_hash"])
    return site.page(
        request, "ask.html", status, who=who, csrf=csrf, prompt=prompt, problem=problem,
        guidelines=site.desks.guidelines, questions=site.questions[:MOST_QUESTIONS],
    )  # fmt: skip


@vote_router.post("/alive")
def alive(site: Here, who: Sender, lease: Annotated[str, Form()]) -> Response:
    """Keep the pair of somebody who is still reading."""
    with site.desks.store.write() as c:
        kept = leases.renew(c, who["id"], lease, time.time())
    return Response(status_code=204 if kept else 410)


@vote_router.get("/static/{name}")
def file(site: Here, name: str) -> Response:
    """The style, the script and the icon: nothing else is there."""
    if name not in site.static:
        raise Refused(404, "e404")
    kind, contents = site.static[name]
    return Response(contents, media_type=kind)


def _said(act: str, score: str, skip: str, ideal: str | None, note: str | None, ms: int | None, by: str | None) -> Said:
    """What a form says. Raises ValueError for what is no vote."""
    how: dict[str, Any] = {"ms": ms, "input": by, "text": note}
    if act == "undo":
        return Said(kind="undo")
    if skip:
        return Said(kind="skip", reason=skip, **how)
    if act in ("bad", "ideal"):
        if act == "ideal" and ideal is None:
            raise ValueError("an ideal answer without text.")
        return Said(both_bad=True, ideal=ideal, **how)
    return Said(score=int(score), ideal=ideal, **how)


@vote_router.get("/join/{token}")
def join(request: Request, site: Here, token: str) -> Response:
    """Open somebody's link: their token becomes a cookie."""
    with site.desks.store.read() as c:
        found = people.who(c, token)
    if found is None:
        raise site.wrong()
    answer = RedirectResponse("/", 303)
    secure = request.url.scheme == "https"
    answer.set_cookie(COOKIE, token, max_age=YEAR, httponly=True, samesite="strict", secure=secure)
    return answer


@vote_router.get("/lang/{lang}")
def switch(lang: str) -> Response:
    """Choose a language."""
    answer = RedirectResponse("/", 303)
    answer.set_cookie(LANG, words.choose(lang, None), max_age=YEAR, httponly=True, samesite="strict")
    return answer


@vote_router.get("/guidelines")
def guidelines(request: Request, site: Here, who: Asker) -> Response:
    """What people are told."""
    w = site.say(request)
    told = site.desks.guidelines_html or w["no_guidelines"]
    return site.page(request, "message.html", who=who, message=w["guidelines"], body=told)


@vote_router.get("/me")
def me(request: Request, site: Here, who: Asker) -> Response:
    """One's own progress, copy and way out."""
    with site.desks.store.read() as c:
        done = desk.done_by(c, who["id"])
    return site.page(
        request, "me.html", who=who, done=done, csrf=desk.csrf_of(who["token_hash"]), pace=None,
        may_leave=who["role"] != "admin", guidelines=site.desks.guidelines,
    )  # fmt: skip


@vote_router.get("/me/copy")
def copy(site: Here, who: Asker) -> Response:
    """Everything that is kept about oneself."""
    with site.desks.store.read() as c:
        return Response(desk.copy_of(c, who), media_type="application/json")


@vote_router.post("/me/leave")
def leave(request: Request, site: Here, who: Sender, sure: Annotated[str, Form()] = "") -> Response:
    """Forget whoever asks for it."""
    if sure != "yes" or who["role"] == "admin":
        raise Refused(422, "e422")
    people.forget(site.desks.store, who["pseudonym"])
    answer = site.page(request, "message.html", message=site.say(request)["e410"], body=None)
    answer.delete_cookie(COOKIE)
    return answer


@vote_router.get("/health")
def health(site: Here) -> dict[str, bool]:
    """Whether the store answers."""
    with site.desks.store.read() as c:
        c.execute(sa.select(schema.person.c.id).limit(1)).first()
    return {"ok": True}
