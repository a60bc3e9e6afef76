"""What every route of the server needs: who asks, in which language, and a page to answer with."""

import hashlib
import threading
import time
from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated, Any

import sqlalchemy as sa
from fastapi import Depends, Form, Request, Response
from fastapi.responses import HTMLResponse

from prefiere.feedback.figures import Figures, figures
from prefiere.feedback.page import words
from prefiere.feedback.page.desk import Desks
from prefiere.feedback.page.render import jinja_environment, static
from prefiere.feedback.page.sampler import Sampler
from prefiere.feedback.page.security import Guesses, csrf_fits

if TYPE_CHECKING:
    from prefiere.feedback.page.runs import RunFolder

COOKIE, LANG = "prefiere", "prefiere-lang"
YEAR = 365 * 24 * 3600


class Refused(Exception):
    """A request that gets a page with one sentence: its status, and the key of the sentence in `words`."""

    def __init__(self, status: int, key: str):
        self.status, self.key = status, key


class Site:
    """What every route needs: the desks, the templates, the words of a request."""

    def __init__(
        self,
        desks: Desks,
        sampler: Sampler | None = None,
        runs: "RunFolder | None" = None,
        questions: Sequence[str] = (),
    ):
        self.sampler, self.runs, self.questions = sampler, runs, questions
        self.desks, self.templates, self.static = desks, jinja_environment(), static()
        self.guesses = Guesses()
        self._board: tuple[float, Figures] | None = None
        self._lock = threading.Lock()

    def say(self, request: Request) -> dict[str, str]:
        """The words of the language that this browser reads."""
        return words.WORDS[words.choose(request.cookies.get(LANG), request.headers.get("accept-language"))]

    def page(self, request: Request, template: str, status: int = 200, /, **values: Any) -> HTMLResponse:
        """A template as an answer."""
        given = {
            "w": self.say(request),
            "notice": "",
            "title": None,
            "who": None,
            "guidelines": None,
            "asks": self.sampler,
            "has_runs": self.runs,
        } | values
        return HTMLResponse(self.templates.get_template(template).render(given), status)

    def part(self, request: Request, template: str, **values: Any) -> Response:
        """A part of a page that is asked for again and again; 304 while it has not changed."""
        made = self.page(request, template, **values)
        tag = f'"{hashlib.sha256(bytes(made.body)).hexdigest()[:32]}"'
        if request.headers.get("if-none-match") == tag:
            return Response(status_code=304, headers={"ETag": tag})
        made.headers["ETag"] = tag
        return made

    def wrong(self) -> Refused:
        """What a wrong token gets; it is counted."""
        if self.guesses.too_many():
            return Refused(429, "e429")
        self.guesses.note()
        return Refused(401, "e401_wrong")

    def board(self) -> Figures:
        """The figures, computed at most every two seconds however many look."""
        with self._lock:
            if self._board is None or time.monotonic() - self._board[0] > 2:
                self._board = (time.monotonic(), figures(self.desks.store, time.time()))
            return self._board[1]


def site_of(request: Request) -> Site:
    """The site that a request was sent to."""
    found: Site = request.app.state.site
    return found


Here = Annotated[Site, Depends(site_of)]


def asker(request: Request, site: Here) -> sa.RowMapping:
    """Who asks. Raises Refused without a token that is somebody's; many wrong ones make everybody's wrong ones wait."""
    bearer = request.headers.get("authorization", "")
    token = bearer[7:].strip() if bearer.lower().startswith("bearer ") else request.cookies.get(COOKIE)
    found = site.desks.who(token)
    if found is None:
        raise site.wrong() if token else Refused(401, "e401")
    return found


Asker = Annotated[Any, Depends(asker)]


def admin_of(who: Asker) -> sa.RowMapping:
    """Who asks, if an admin. Raises Refused."""
    if who["role"] != "admin":
        raise Refused(403, "e403_admin")
    found: sa.RowMapping = who
    return found


def sender(who: Asker, csrf: Annotated[str, Form()] = "") -> sa.RowMapping:
    """Who sends a form of ours. Raises Refused where the form is not ours."""
    if not csrf_fits(csrf, who["token_hash"]):
        raise Refused(403, "e403")
    found: sa.RowMapping = who
    return found


def scripted(request: Request, who: Asker) -> sa.RowMapping:
    """Who asks with a token in the header, as no page from elsewhere can send one. Raises Refused."""
    if not request.headers.get("authorization", "").lower().startswith("bearer "):
        raise Refused(401, "e401")
    found: sa.RowMapping = who
    return found


Admin = Annotated[Any, Depends(admin_of)]
Sender = Annotated[Any, Depends(sender)]
Scripted = Annotated[Any, Depends(scripted)]
