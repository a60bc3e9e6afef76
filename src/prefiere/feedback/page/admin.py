"""Routes that no annotator sees: the board, provenance, and the queue as JSON for judges and scripts."""

import time
from typing import Any

from fastapi import APIRouter, Request, Response
from pydantic import BaseModel

from prefiere.feedback import trace
from prefiere.feedback.leases import Nothing, next_lease
from prefiere.feedback.page import desk
from prefiere.feedback.page.render import said_html
from prefiere.feedback.page.site import Admin, Here, Refused, Scripted
from prefiere.feedback.schema import text_of
from prefiere.feedback.store import StoreError
from prefiere.feedback.votes import Said

admin_router = APIRouter()


@admin_router.get("/board")
def board(request: Request, site: Here, who: Admin) -> Response:
    """The board."""
    return site.page(request, "board.html", who=who, f=site.board(), guidelines=site.desks.guidelines)


@admin_router.get("/board/part")
def part(request: Request, site: Here, who: Admin) -> Response:
    """The figures of the board alone; 304 while they have not changed."""
    return site.part(request, "_board.html", f=site.board())


@admin_router.get("/why/{pair}")
def why_page(request: Request, site: Here, who: Admin, pair: int) -> Response:
    """Where a pair comes from, and who said what."""
    try:
        found = trace.why(site.desks.store, pair)
    except StoreError:
        raise Refused(404, "e404") from None
    said = {k: said_html(text_of(found[n]["content"])) for k, n in (("a", "answer_a"), ("b", "answer_b"))}
    return site.page(request, "why.html", who=who, found=found, prompt=said_html(text_of(found["prompt"])), **said)


class Posted(BaseModel):
    """A vote over the API: see `votes.Said`."""

    lease: str
    seq: int = 0
    score: int | None = None
    both_bad: bool = False
    skip: str | None = None
    undo: bool = False
    ms: int | None = None


@admin_router.post("/api/next")
def following(site: Here, who: Scripted) -> dict[str, Any]:
    """The pair to judge next, as JSON, for scripts and judges with a bearer token."""
    with site.desks.store.write() as c:
        found = next_lease(site.desks.store, c, who["id"], now=time.time(), rng=site.desks.rng)
        if isinstance(found, Nothing):
            return {"lease": None, "why": found.reason, "held": found.held, "until": found.until}
        texts = desk.texts_of(c, found)
    left, right = (texts["b"], texts["a"]) if found.swapped else (texts["a"], texts["b"])
    return {"lease": found.id, "seq": found.seq, "prompt": texts["prompt"], "left": left, "right": right}


@admin_router.post("/api/votes")
def keep(site: Here, who: Scripted, posted: Posted) -> Response:
    """Keep what a script or a judge says."""
    try:
        if posted.undo:
            said = Said(kind="undo")
        elif posted.skip is not None:
            said = Said(kind="skip", reason=posted.skip, ms=posted.ms, input="api")
        else:
            said = Said(score=posted.score, both_bad=posted.both_bad, ms=posted.ms, input="api")
    except ValueError:
        raise Refused(422, "e422") from None
    outcome, _ = site.desks.take(who, posted.lease, posted.seq, said)
    status = 409 if outcome == "conflict" else 200
    return Response(f'{{"outcome": "{outcome}"}}', status, media_type="application/json")
