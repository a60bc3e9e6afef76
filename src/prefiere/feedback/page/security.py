"""Who may talk to the server, and what a browser may do with what it sends.

A page from elsewhere must not vote in somebody's name (a CSRF token, Sec-Fetch-Site), must not reach a server on this
machine under a name of its own (the Host header), and text from a model must not run or load anything (the CSP).
"""

from __future__ import annotations

import hashlib
import hmac
import ipaddress
import socket
import time
from collections import deque
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send

MOST = 256 * 1024
"""Bytes of a request's body."""

HEADERS = {
    "Content-Security-Policy": "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; "
    "img-src 'self'; form-action 'self'; base-uri 'none'; frame-ancestors 'none'",
    "X-Content-Type-Options": "nosniff",
    "Referrer-Policy": "no-referrer",
    "Cache-Control": "no-store",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
}


REPORT_POLICY = "sandbox; default-src 'none'; style-src 'unsafe-inline'; base-uri 'none'; form-action 'none'"
"""Of the report of a run, which is a whole page: in a browser it belongs to no site, so nothing in it acts on ours."""


def csrf_of(token_hash: str) -> str:
    """What a person's forms carry: nobody can compute it without the person's token or the store."""
    return hmac.new(token_hash.encode(), b"prefiere csrf", hashlib.sha256).hexdigest()


def csrf_fits(given: str, token_hash: str) -> bool:
    """Whether a form comes from a page of ours, compared in constant time."""
    return hmac.compare_digest(given.encode("utf-8", "surrogatepass"), csrf_of(token_hash).encode())


def loopback(host: str) -> bool:
    """Whether only this machine can reach a server that listens there."""
    try:
        return ipaddress.ip_address(host.strip("[]")).is_loopback
    except ValueError:
        return host == "localhost"


def host_allowed(header: str, served: str) -> bool:
    """Whether a Host header is one that this server goes by: an address, localhost, its own name, or ``--host``.

    An attack by rebinding needs a name of the attacker's, so an address is always safe.
    """
    name = header.rsplit(":", 1)[0] if not header.endswith("]") else header
    try:
        ipaddress.ip_address(name.strip("[]"))
    except ValueError:
        return name.lower() in {"localhost", served.lower(), socket.gethostname().lower()}
    return True


class Guesses:
    """Wrong tokens of the last minute: above ``most`` nobody's are looked at for a while."""

    def __init__(self, most: int = 30):
        self._most, self._wrong = most, deque[float]()

    def note(self) -> None:
        """One more wrong token."""
        self._wrong.append(time.monotonic())

    def too_many(self) -> bool:
        """Whether to refuse without looking."""
        while self._wrong and self._wrong[0] < time.monotonic() - 60:
            self._wrong.popleft()
        return len(self._wrong) >= self._most


class Guard:
    """The application behind a door: foreign hosts, cross-site posts and long bodies stay out; answers have HEADERS,
    but for what an answer says of its own."""

    def __init__(self, app: ASGIApp, served: str):
        self.app, self.served = app, served

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return

        async def guarded(message: Message) -> None:
            if message["type"] == "http.response.start":
                kept = [(k, v) for k, v in message["headers"] if k.lower() != b"server"]
                ours = [(k.lower().encode(), v.encode()) for k, v in HEADERS.items()]
                message["headers"] = kept + [h for h in ours if h[0] not in {k.lower() for k, _ in kept}]
            await send(message)

        headers = {k.decode("latin-1").lower(): v.decode("latin-1") for k, v in scope["headers"]}
        refused = self._refused(scope, headers)
        if refused:
            await _plain(guarded, *refused)
            return
        body, more = b"", scope["method"] not in ("GET", "HEAD")
        while more:
            part = await receive()
            if part["type"] == "http.disconnect":
                return
            body += part.get("body", b"")
            if len(body) > MOST:
                await _plain(guarded, 413, "This is too long: at most 256 kB.")
                return
            more = part.get("more_body", False)
        sent = False

        async def again() -> Message:
            nonlocal sent
            if sent:
                return await receive()
            sent = True
            return {"type": "http.request", "body": body, "more_body": False}

        await self.app(scope, again, guarded)

    def _refused(self, scope: Any, headers: dict[str, str]) -> tuple[int, str] | None:
        if not host_allowed(headers.get("host", ""), self.served):
            return 403, "This server does not go by that name. Open it by its address, or start it with --host NAME."
        if scope["method"] not in ("GET", "HEAD"):
            if headers.get("sec-fetch-site", "same-origin") not in ("same-origin", "none"):
                return 403, "This came from another site."
            length = headers.get("content-length", "0")
            if not length.isdigit() or int(length) > MOST:
                return 413, "This is too long: at most 256 kB."
        return None


async def _plain(send: Send, status: int, text: str) -> None:
    headers = [(b"content-type", b"text/plain; charset=utf-8")]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": text.encode()})
