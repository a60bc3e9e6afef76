"""One request to an OpenAI-compatible endpoint, whoever makes it: a judge that votes, a server that answers prompts.

The other side may be anybody's: what it sends is read up to a size, no redirect is followed, and the key is written
nowhere.
"""

from __future__ import annotations

import http.client
import json
import os
import time
import urllib.error
import urllib.parse
import urllib.request
from dataclasses import dataclass, field
from typing import Any

from prefiere.files import visible

_TRIES, _WAIT = 5, 1.0  # per request; seconds before the second try, doubled each time
_SAID = 200  # bytes of an error that are shown


class EndpointError(ValueError):
    """An endpoint that cannot be asked, or whose answer is none, in one line."""


def names_endpoint(name: str) -> bool:
    """Whether a name is the address of an endpoint."""
    return name.startswith(("http://", "https://"))


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """A redirect would carry prompts, answers and the key elsewhere."""

    def redirect_request(self, *args: Any, **kwargs: Any) -> None:
        return None


_opener = urllib.request.build_opener(_NoRedirect)


@dataclass(frozen=True, slots=True)
class Address:
    """An endpoint's ``url``, as ``http://host/v1``. key_variable: the environment variable that holds its key, which is
    sent and written nowhere."""

    url: str
    key_variable: str
    _key: str | None = field(default=None, repr=False)

    @classmethod
    def read(cls, url: str, key_variable: str, example: str) -> Address:
        """From what a user wrote. Raises EndpointError for what is no address, with an ``example`` of one."""
        parts = urllib.parse.urlsplit(url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise EndpointError(f"{visible(url)} is no address of an endpoint: write {example}.")
        if parts.username or parts.password:
            raise EndpointError(
                f"the endpoint at {parts.hostname}: its key goes into {key_variable}, not into its address."
            )
        return cls(url.rstrip("/"), key_variable, os.environ.get(key_variable))

    def ask(
        self,
        route: str,
        body: dict[str, Any] | None = None,
        *,
        name: str,
        largest: int,
        slowest: float,
        after: str,
        hints: dict[int, str] | None = None,
        tries: int = _TRIES,
    ) -> bytes:
        """The answer to a request of this route: a POST of ``body``, or a GET where there is none. A route that begins
        with / begins at the host, any other at the address.

        It is asked again, slower each time, where it is overloaded or cannot be reached. name: what errors call it.
        largest: bytes of an answer. slowest: seconds without a sign of it. after: what a user reads once it was asked
        for the last time. hints: what to do about a status. Raises EndpointError.
        """
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self._key}"} if self._key else {})
        data = None if body is None else json.dumps(body).encode()
        where = urllib.parse.urljoin(self.url, route) if route.startswith("/") else f"{self.url}/{route}"
        request = urllib.request.Request(where, data, headers)
        known = dict.fromkeys((401, 403), f" Put its key into {self.key_variable}.") | (hints or {})
        why = ""
        for attempt in range(tries):
            if attempt:
                time.sleep(_WAIT * 2 ** (attempt - 1))
            try:
                with _opener.open(request, timeout=slowest) as answer:
                    return _read(answer, largest, name)
            except urllib.error.HTTPError as e:
                with e:
                    said = " ".join(e.read(_SAID).decode(errors="replace").split())
                    why = visible(f"{e.code} {e.reason}: {said}").rstrip(": ")
                if e.code != 429 and e.code < 500:
                    raise EndpointError(f"{name}: {why}.{known.get(e.code, '')}") from None
            except (urllib.error.URLError, OSError, http.client.HTTPException) as e:
                why = visible(str(getattr(e, "reason", e)) or type(e).__name__)
        times = f"{tries} tries" if tries > 1 else "a try"
        raise EndpointError(f"{name}: no answer after {times} ({why}). {after}")


def _read(answer: http.client.HTTPResponse, largest: int, name: str) -> bytes:
    found = answer.read(largest + 1)
    if len(found) > largest:
        raise EndpointError(f"{name}: its answer is longer than {largest:,} bytes, which no answer to this is.")
    return found
