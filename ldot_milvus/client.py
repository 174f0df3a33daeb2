"""A client of ``ldot serve``, with the calls of the retriever. Importing it loads neither NumPy nor the models."""

from __future__ import annotations

import asyncio
import http.client
import io
import json
import os
import secrets
from collections.abc import Iterable, Iterator
from dataclasses import fields
from typing import TYPE_CHECKING, Any
from urllib.parse import quote, urlsplit

from ldot_milvus.errors import InputError, LdotError, StoreError, UsageError, first_line, reason
from ldot_milvus.forks import Lock
from ldot_milvus.search.hits import Hit

if TYPE_CHECKING:
    from ldot_milvus.models.base import ImageInput
    from ldot_milvus.search.query import Part

MAX_ANSWER = 64 * 2**20
_FIELDS = {field.name for field in fields(Hit)}
_BROKEN = (http.client.HTTPException, OSError)


class Client:
    """Searches the collections of a service. Instances are thread-safe, and usable after a fork.

    Args:
        url: address of the service, such as ``http://127.0.0.1:8080``.
        token: its token; None if it needs none.
        collection: name of the collection; None takes the service's default.
        timeout: seconds without an answer after which a call fails.

    Raises:
        UsageError: the address is not one of HTTP, or contains a user or a query.
    """

    def __init__(
        self, url: str, token: str | None = None, *, collection: str | None = None, timeout: float = 60
    ) -> None:
        try:
            parts = urlsplit(url)
            self._place = parts.hostname, parts.port
        except ValueError:
            self._place = None, None
        if self._place[0] is None or parts.scheme not in ("http", "https") or "@" in parts.netloc or parts.query:
            raise UsageError(f"{url!r} is no address of a service: give one such as http://127.0.0.1:8080")
        self.url = url.rstrip("/")
        self.collection = collection
        self._secure, self._path, self._timeout = parts.scheme == "https", parts.path.rstrip("/"), timeout
        self._token = token
        self._lock = Lock()
        self._idle: tuple[int, list[http.client.HTTPConnection]] = os.getpid(), []

    def search(
        self,
        text: str | Iterable[Part] | None = None,
        *,
        image: ImageInput | None = None,
        id: str | None = None,
        k: int = 5,
        offset: int = 0,
        rerank: int | None = None,
        filter: dict[str, Any] | None = None,
        kind: str = "image",
        namespace: str | None = None,
        min_probability: float | None = None,
    ) -> list[Hit]:
        """Return the k best rows, best first, as :meth:`Retriever.search <ldot_milvus.Retriever.search>` does.

        Args:
            text: query text, or pairs of a weight and a text or a row (``RowId``); no part is a photo.
            image: query image. A file is read by this process, and sent as it is.
            id, k, offset, rerank, filter, kind, namespace, min_probability: see
                :meth:`Retriever.search <ldot_milvus.Retriever.search>`. The service has limits for ``k``.

        Raises:
            LdotError: of the class that the retriever would raise.
            StoreError: the service does not answer, or is overloaded.
            UsageError: it wants a token, or refuses the request.
        """
        options = {
            "collection": self.collection, "k": k, "offset": offset, "rerank": rerank, "filter": filter, "kind": kind,
            "namespace": namespace, "min_probability": min_probability,
        }  # fmt: skip
        given = {name: value for name, value in options.items() if value is not None}
        if sum(value is not None for value in (text, image, id)) != 1:
            raise UsageError("search takes a text, an image or an id: give exactly one of them")
        if image is not None:
            head, body = _multipart(_encoded(image), _json(given))
            answer = self._ask("POST", "/v1/search/image", body, head)
        else:
            query = (
                {"id": id} if id is not None else {"text": text} if isinstance(text, str) else {"parts": _parts(text)}
            )
            answer = self._ask("POST", "/v1/search", _json({**query, **given}), "application/json")
        return [_hit(entry) for entry in answer["hits"]]

    async def asearch(self, text: str | Iterable[Part] | None = None, **arguments: Any) -> list[Hit]:
        """Run :meth:`search`, with the same arguments, in a thread, without blocking the event loop."""
        return await asyncio.to_thread(self.search, text, **arguments)

    def close(self) -> None:
        """Close the connections. A later call opens another one."""
        with self._lock:
            (_, idle), self._idle = self._idle, (os.getpid(), [])
        for connection in idle:
            connection.close()

    def __enter__(self) -> Client:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _ask(self, method: str, path: str, body: bytes, content_type: str) -> Any:
        """Send a request and return the JSON of the answer; an error answer is raised."""
        headers = {"Content-Type": content_type, "Accept": "application/json"}
        if self._token is not None:
            headers["Authorization"] = f"Bearer {self._token}"
        for connection, is_last in self._connections():
            try:
                connection.request(method, quote(self._path) + path, body, headers)
                response = connection.getresponse()
                content = response.read(MAX_ANSWER + 1)
            except _BROKEN as error:
                connection.close()
                # The service closes idle connections, and a client learns it by the next request.
                if is_last or isinstance(error, TimeoutError):
                    raise StoreError(f"the service at {self.url} does not answer ({_reason(error)})") from error
                continue
            self._keep(connection)
            return self._content(response.status, content)
        raise AssertionError  # the last connection has returned or raised

    def _connections(self) -> Iterator[tuple[http.client.HTTPConnection, bool]]:
        """Yield an idle connection if there is one, then a new one, and whether it is new."""
        with self._lock:
            process, idle = self._idle
            if process != os.getpid():  # a connection of the parent belongs to it
                process, idle = self._idle = os.getpid(), []
            kept = idle.pop() if idle else None
        if kept is not None:
            yield kept, False
        host, port = self._place
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        yield kind(str(host), port, timeout=self._timeout), True

    def _keep(self, connection: http.client.HTTPConnection) -> None:
        with self._lock:
            process, idle = self._idle
            if process == os.getpid() and connection.sock is not None:
                idle.append(connection)

    def _content(self, status: int, content: bytes) -> Any:
        try:
            answer = json.loads(content)
            if status == 200:
                return answer
            code, text = str(answer["code"]), str(answer["error"])
        except (ValueError, KeyError, TypeError):
            raise StoreError(
                f"the service at {self.url} answers with status {status} and no JSON: is it an ldot serve?"
            ) from None
        kind = _errors().get(code) or (UsageError if status < 429 else StoreError)
        raise kind(text)


def _errors() -> dict[str, type[LdotError]]:
    """Return the classes of errors by their codes."""
    found, left = {}, [LdotError]
    while left:
        error = left.pop()
        found[error.code] = error
        left += [one for one in error.__subclasses__() if one.__module__ == LdotError.__module__]
    return found


def _hit(entry: dict[str, Any]) -> Hit:
    try:
        return Hit(**{name: value for name, value in entry.items() if name in _FIELDS})
    except TypeError as error:
        raise StoreError(
            f"the service answers with hits of another form ({error}): is it of another version?"
        ) from error


def _json(value: Any) -> bytes:
    try:
        return json.dumps(value, allow_nan=False).encode()
    except (TypeError, ValueError) as error:
        raise UsageError(f"an argument of the search cannot be written as JSON ({first_line(error)})") from error


def _parts(parts: Any) -> list[Any]:
    from ldot_milvus.search.query import RowId, check_parts

    written: list[Any] = []
    for weight, content in check_parts(parts):
        if not isinstance(content, (str, RowId)):
            raise UsageError(
                "the service takes texts and rows as parts of a query, and no photos: ingest the photo first"
            )
        written.append([weight, {"text": content} if isinstance(content, str) else {"id": content.id}])
    return written


def _encoded(image: Any) -> bytes:
    """Return the bytes of an image, as they are where it is encoded."""
    from ldot_milvus.images.files import read_file
    from ldot_milvus.images.inputs import as_image
    from ldot_milvus.search.query import photo_of

    photo = photo_of(image, "the query image")
    if isinstance(photo, bytes):
        return photo
    if isinstance(photo, os.PathLike):
        try:
            return read_file(os.fsdecode(photo))
        except (OSError, ValueError) as error:
            raise InputError(f"{os.fsdecode(photo)}: {reason(error)}") from error
    pixels = as_image(photo)
    if isinstance(pixels, (str, bytes)):
        raise AssertionError  # of a path and of bytes above
    buffer = io.BytesIO()
    pixels.save(buffer, "PNG")
    return buffer.getvalue()


def _multipart(photo: bytes, options: bytes) -> tuple[str, bytes]:
    """Return the content type and the body of a form with a file and options."""
    mark = secrets.token_hex(16)
    start = (
        f'--{mark}\r\nContent-Disposition: form-data; name="options"\r\n\r\n'.encode()
        + options
        + f'\r\n--{mark}\r\nContent-Disposition: form-data; name="file"; filename="query"\r\n\r\n'.encode()
    )
    return f"multipart/form-data; boundary={mark}", start + photo + f"\r\n--{mark}--\r\n".encode()


def _reason(error: Exception) -> str:
    return reason(error) if isinstance(error, OSError) else first_line(error)
