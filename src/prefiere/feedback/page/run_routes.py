"""Routes of the Runs page: the runs of a folder, one run while it trains, and its report. Admins only."""

from contextlib import AbstractContextManager
from typing import TYPE_CHECKING

from fastapi import APIRouter, Request, Response
from fastapi.responses import HTMLResponse

from prefiere.asked.language import speaking
from prefiere.feedback.page.security import REPORT_POLICY
from prefiere.feedback.page.site import Admin, Here, Refused, Site

if TYPE_CHECKING:
    from prefiere.feedback.page.runs import RunFigures, RunFolder, RunLine

run_router = APIRouter()
MOST_ANSWERS_SHOWN = 12
"""Answers on a run's page; the report has more."""


def _folder(site: Site) -> "RunFolder":
    if site.runs is None:
        raise Refused(404, "e404")
    return site.runs


@run_router.get("/runs")
def all_runs(request: Request, site: Here, who: Admin) -> Response:
    """Every run of the folder: where it is, and its verdict."""
    with _in_their_language(site, request):
        lines, more = _folder(site).listed()
    return site.page(request, "runs.html", who=who, lines=lines, more=more, guidelines=site.desks.guidelines)


@run_router.get("/runs/part")
def all_runs_part(request: Request, site: Here, who: Admin) -> Response:
    """The list alone; 304 while it has not changed."""
    with _in_their_language(site, request):
        lines, more = _folder(site).listed()
    return site.part(request, "_runs.html", lines=lines, more=more)


@run_router.get("/run")
def one_run(request: Request, site: Here, who: Admin, name: str) -> Response:
    """One run: progress, verdict, curves, answers."""
    line, figures = _shown(site, request, name)
    return site.page(
        request, "run.html", who=who, line=line, figures=figures, most=MOST_ANSWERS_SHOWN, title=line.name,
        guidelines=site.desks.guidelines,
    )  # fmt: skip


@run_router.get("/run/part")
def one_run_part(request: Request, site: Here, who: Admin, name: str) -> Response:
    """What changes on a run's page; 304 while it has not changed."""
    line, figures = _shown(site, request, name)
    return site.part(request, "_run.html", line=line, figures=figures, most=MOST_ANSWERS_SHOWN)


@run_router.get("/run/report")
def one_report(request: Request, site: Here, who: Admin, name: str) -> Response:
    """The report of a run, made from its data, as a page that belongs to no site."""
    with _in_their_language(site, request):
        made = _folder(site).report(name)
    if made is None:
        raise Refused(404, "e404")
    return HTMLResponse(made, headers={"Content-Security-Policy": REPORT_POLICY})


def _shown(site: Site, request: Request, name: str) -> "tuple[RunLine, RunFigures | None]":
    folder = _folder(site)
    with _in_their_language(site, request):
        line = folder.line(name)
        if line is None:
            raise Refused(404, "e404")
        return line, None if line.problem else folder.figures(name)


def _in_their_language(site: Site, request: Request) -> AbstractContextManager[None]:
    """Within it, what is said of a run is in the language that the browser reads."""
    return speaking(site.say(request)["lang"])
