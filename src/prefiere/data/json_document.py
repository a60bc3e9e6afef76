"""A JSON document of many records, read one record at a time.

The standard library only parses whole documents, and a list of a million examples should not have to fit in memory.
Takes a list of records, a list wrapped in an object ({"data": [...]}), one object, or several one after the other.
"""

from __future__ import annotations

import codecs
import json
from collections.abc import Container, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from prefiere.data.values import DataError

_CHUNK = 1 << 20
_NEAR_END = 16  # an error this close to the end of what was read may only mean that more must be read


class Document:
    """A cursor over a UTF-8 JSON document that holds no more than the record under it."""

    def __init__(self, stream: BinaryIO, path: Path, limit: int, wrappers: Container[str]):
        self._stream, self._path, self._limit, self._wrappers = stream, path, limit, wrappers
        self._decode = codecs.getincrementaldecoder("utf-8")().decode
        self._json = json.JSONDecoder()
        self._text, self._at, self._line, self._ended = "", 0, 1, False

    def records(self) -> Iterator[tuple[int, Any]]:
        """(line at which it begins, value) of every record. Raises DataError with file and line."""
        while (c := self._peek()) != "":
            if c == "[":
                yield from self._list()
            elif c == "{":
                yield from self._object()
            else:
                raise self._error("expected a list or an object")

    def _list(self) -> Iterator[tuple[int, Any]]:
        self._take("[")
        while self._peek() != "]":
            yield self._line, self._value()
            if self._peek() == ",":
                self._take(",")
                if self._peek() == "]":
                    raise self._error("a comma before ]")
            elif self._peek() != "]":
                raise self._error("expected , or ] after a record; is the file cut off?")
        self._take("]")

    def _object(self) -> Iterator[tuple[int, Any]]:
        """The records under a wrapping key, or the object itself where it has none."""
        line, fields, wrapped = self._line, {}, False
        self._take("{")
        while self._peek() != "}":
            key = self._value()
            self._peek()
            self._take(":")
            if self._peek() == "[" and key in self._wrappers and self._peek_second() in ("{", "]"):
                wrapped = True
                yield from self._list()
            else:
                fields[key] = self._value()
            if self._peek() == ",":
                self._take(",")
            elif self._peek() != "}":
                raise self._error("expected , or } after a value; is the file cut off?")
        self._take("}")
        if not wrapped:
            yield line, fields

    def _more(self) -> bool:
        """Read on, dropping what lies behind the cursor."""
        if self._ended:
            return False
        pending = len(self._text) - self._at
        if pending > self._limit:
            raise self._error(f"a record of more than {self._limit:,} characters")
        # twice as much each time, so that a long record is not parsed again for every chunk
        chunk = self._stream.read(max(_CHUNK, pending))
        self._ended = not chunk
        try:
            more = self._decode(chunk, final=self._ended)
        except UnicodeDecodeError as e:
            self._line += self._text.count("\n", self._at) + e.object[: e.start].count(b"\n")
            raise self._error(f"not UTF-8: byte 0x{e.object[e.start]:02x}; convert the file to UTF-8") from e
        self._text, self._at = self._text[self._at :] + more, 0
        return True

    def _peek(self) -> str:
        """The next character that is not white space, or "" at the end."""
        while True:
            while self._at < len(self._text) and (c := self._text[self._at]) in " \t\r\n\ufeff":
                self._line += c == "\n"
                self._at += 1
            if self._at < len(self._text):
                return self._text[self._at]
            if not self._more():
                return ""

    def _peek_second(self) -> str:
        """The character after the next one, white space apart."""
        while not (rest := self._text[self._at + 1 :].lstrip()) and self._more():
            pass
        return rest[:1]

    def _take(self, expected: str) -> None:
        if self._text[self._at : self._at + 1] != expected:
            raise self._error(f"expected {expected}")
        self._at += 1

    def _value(self) -> Any:
        self._peek()
        while True:
            try:
                value, end = self._json.raw_decode(self._text, self._at)
            except json.JSONDecodeError as e:
                unfinished = e.pos > len(self._text) - _NEAR_END or e.msg.startswith("Unterminated string")
                if unfinished and self._more():
                    continue
                self._line += self._text.count("\n", self._at, e.pos)
                raise self._error(e.msg) from e
            except (ValueError, RecursionError) as e:
                raise self._error(str(e)) from e
            if end == len(self._text) and self._more():  # a number may go on
                continue
            self._line += self._text.count("\n", self._at, end)
            self._at = end
            return value

    def _error(self, what: str) -> DataError:
        return DataError(f"{self._path}:{self._line} (line): broken JSON: {what}")
