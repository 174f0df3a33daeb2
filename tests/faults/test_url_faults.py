"""URLs of internal services, and local servers that are slow, endless, dishonest or briefly unavailable."""

from __future__ import annotations

import json
import socket
import ssl
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpcore
import pytest

from ldot_milvus import open_store, urls
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import Source, expand, read, read_all
from ldot_milvus.urls import Fetcher, Limits, is_public
from tests.conftest import make_photo
from tests.http_server import RawServer, ok, status
from tests.silent_servers import certificate

LIMITS = Limits(connect=5.0, read=5.0, total=6.0, bytes=100_000, pause=0.01)
HASTY = replace(LIMITS, read=0.5, total=1.5)  # where the answer is meant to come too late
PHOTO = make_photo(1)


@pytest.fixture
def server() -> Iterator[RawServer]:
    opened = RawServer()
    yield opened
    opened.close()


@pytest.fixture
def fetcher() -> Fetcher:
    """A fetcher that may connect to 127.0.0.1 only, where the servers of these tests listen."""
    return Fetcher(LIMITS, is_allowed=lambda address: address == "127.0.0.1")


@pytest.fixture
def hasty() -> Fetcher:
    return Fetcher(HASTY, is_allowed=lambda address: address == "127.0.0.1")


@pytest.fixture
def allowed(fetcher: Fetcher, monkeypatch: pytest.MonkeyPatch) -> None:
    """Read sources with the fixture ``fetcher``."""
    monkeypatch.setenv("LDOT_ALLOW_URLS", "true")
    monkeypatch.setattr(urls, "_fetcher", fetcher)


@pytest.fixture
def no_connection(monkeypatch: pytest.MonkeyPatch) -> None:
    def connect(*arguments: Any, **_: Any) -> None:
        pytest.fail(f"connected to {arguments[1:3]}")

    monkeypatch.setattr(httpcore.SyncBackend, "connect_tcp", connect)


def refused(fetcher: Fetcher, url: str) -> str:
    with pytest.raises(InputError) as caught:
        fetcher.fetch(url)
    message = str(caught.value)
    assert message.isprintable()
    return message.partition(": ")[2]


# ---- server-side request forgery


@pytest.mark.parametrize(
    "host",
    [
        "127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "0177.0.0.1", "0", "0.0.0.0",
        "10.0.0.1", "172.16.0.1", "172.31.255.255", "192.168.1.1", "100.64.0.1", "198.18.0.1", "192.0.2.1",
        "169.254.169.254", "169.254.170.2", "100.100.100.200", "192.0.0.192", "168.63.129.16",
        "224.0.0.1", "240.0.0.1", "255.255.255.255", "192.88.99.1",
        "[::1]", "[::]", "[::ffff:127.0.0.1]", "[::ffff:a9fe:a9fe]", "[::127.0.0.1]", "[64:ff9b::7f00:1]",
        "[64:ff9b::169.254.169.254]", "[64:ff9b:1::1]", "[2002:7f00:1::1]", "[2001:0:7f00:1::1]", "[fe80::1]",
        "[fe80::1%25lo]", "[fc00::1]", "[fd00:ec2::254]", "[fec0::1]", "[ff02::1]", "[2001:db8::1]", "[3fff::1]",
        "[100::1]",
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(host: str, no_connection: None) -> None:
    """Loopback, private, link-local, metadata, reserved, multicast, and their IPv6 forms: never connected to."""
    reason = refused(Fetcher(LIMITS), f"http://{host}/latest/meta-data")
    assert "is not a public address" in reason or "cannot be resolved" in reason or "not a valid host name" in reason


@pytest.mark.parametrize("address", ["8.8.8.8", "2606:4700::1111", "64:ff9b::808:808", "::ffff:8.8.8.8", "1.1.1.1"])
def test_public_addresses_are_public(address: str) -> None:
    assert is_public(address)


def test_one_private_address_among_public_ones(no_connection: None) -> None:
    """A name with several addresses is refused if any of them is inside."""

    def resolve(*_: Any, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", (address, 80)) for address in ("8.8.8.8", "10.0.0.1")]

    assert "10.0.0.1, which is not a public" in refused(Fetcher(LIMITS, resolve=resolve), "http://photos.example/a.jpg")


def test_a_name_that_resolves_to_another_address_at_the_second_look(server: RawServer) -> None:
    """DNS rebinding: the connection uses the checked address, and the name is not resolved again."""
    answers = iter(["127.0.0.1", "127.0.0.2", "127.0.0.2"])
    asked = []

    def resolve(host: str, port: int, **_: Any) -> list[Any]:
        asked.append(host)
        return [(0, 0, 0, "", (next(answers), port))]

    server.says("/a.jpg", ok(PHOTO))
    fetcher = Fetcher(LIMITS, resolve=resolve, is_allowed=lambda address: address == "127.0.0.1")
    assert fetcher.fetch(f"http://photos.example:{server.port}/a.jpg") == PHOTO
    assert asked == ["photos.example"]
    assert server.hosts == [f"photos.example:{server.port}"]
    assert "127.0.0.2, which is not" in refused(fetcher, f"http://photos.example:{server.port}/a.jpg")


def test_redirects_to_a_private_address(server: RawServer, fetcher: Fetcher) -> None:
    """The redirect is a new URL, checked like the first: the server inside is never asked."""
    inside = RawServer("127.0.0.2")
    try:
        secret = inside.says("/secret", ok(PHOTO))
        for code in (301, 302, 303, 307, 308):
            url = server.says("/a.jpg", status(code, f"Location: {secret}"))
            assert refused(fetcher, url) == "127.0.0.2 is not a public address"
        assert not inside.hits
    finally:
        inside.close()


@pytest.mark.parametrize(
    "target",
    ["file:///etc/passwd", "ftp://127.0.0.1/a", "gopher://127.0.0.1/", "//user:pw@127.0.0.1/", "http://["],
)
def test_redirects_to_what_is_no_web_address(server: RawServer, fetcher: Fetcher, target: str) -> None:
    assert refused(fetcher, server.says("/a.jpg", status(302, f"Location: {target}")))
    assert server.hits["/a.jpg"] == 1


def test_redirects_that_lead_to_a_photo(server: RawServer, fetcher: Fetcher) -> None:
    server.says("/b/two.jpg", ok(PHOTO))
    server.says("/b/one.jpg", status(302, "Location: two.jpg"))
    assert fetcher.fetch(server.says("/a.jpg", status(301, "Location: /b/one.jpg"))) == PHOTO


def test_redirects_in_a_circle(server: RawServer, fetcher: Fetcher) -> None:
    assert "more than 5 redirects" in refused(fetcher, server.says("/a.jpg", status(302, "Location: /a.jpg")))
    assert server.hits["/a.jpg"] == 6


@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("http://user:pw@8.8.8.8/a.jpg", "user name"),
        ("http://a\nb/a.jpg", "control characters"),
        ("http:///a.jpg", "not a URL of http"),
        ("file:///etc/passwd", "not a URL of http"),
        ("http://8.8.8.8:x/", "not a URL"),
        ("http://" + "a" * 70 + ".example/", "not a URL"),
        ("http://8.8.8.8/" + "a" * 5000, "longer than 4,096 bytes"),
    ],
)
def test_malformed_urls(url: str, reason: str, no_connection: None) -> None:
    assert reason in refused(Fetcher(LIMITS), url)


def test_letters_beyond_ascii_are_quoted(server: RawServer, fetcher: Fetcher) -> None:
    server.says("/gr%C3%BC%C3%9Fe%20%25/a.jpg?q=%E5%86%99", ok(PHOTO))
    assert fetcher.fetch(f"{server.url}/grüße %25/a.jpg?q=写#top") == PHOTO


def test_off_unless_allowed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without LDOT_ALLOW_URLS nothing is even resolved: not on a command line, not in a list, not in a worker."""
    monkeypatch.setattr(urls, "_fetcher", Fetcher(resolve=lambda *_, **__: pytest.fail("resolved a name")))
    url = "http://photos.example/a.jpg"
    (tmp_path / "l.txt").write_text(f"{url}\n")
    (tmp_path / "m.jsonl").write_text(json.dumps({"url": url}))
    for path in (url, str(tmp_path / "l.txt")):
        with pytest.raises(UsageError, match="LDOT_ALLOW_URLS=true"):
            expand([path])
    for source in (Source(url), *expand([str(tmp_path / "m.jsonl")])):
        with pytest.raises(InputError, match="LDOT_ALLOW_URLS=true"):
            read(source)


# ---- slow, endless, lying


@pytest.mark.parametrize(
    "first", [b"", b"HTTP/1.1 200 OK\r\nX: ", b"HTTP/1.1 200 OK\r\n\r\n"], ids=["status line", "headers", "body"]
)
def test_a_byte_at_a_time(server: RawServer, hasty: Fetcher, first: bytes) -> None:
    """Each byte comes well within the read time-out; the time for the whole photo ends it."""
    url = server.says("/a.jpg", lambda: server.dripping(first, b"H", 0.05))
    assert "does not answer in time" in refused(hasty, url)
    assert 3 < server.sent["/a.jpg"] - len(first) < 300


def test_no_answer(server: RawServer, hasty: Fetcher) -> None:
    """A server that takes the request and says nothing, one that stops in the middle, and one that never accepts."""
    url = server.says("/a.jpg", lambda: server.dripping(b"", b"", 0.05))
    assert "0.5 s between two parts" in refused(hasty, url)
    url = server.says("/b.jpg", lambda: server.dripping(ok(PHOTO)[:-100], b"", 0.05))
    assert "does not answer in time" in refused(hasty, url)
    assert server.hits == {"/a.jpg": 1, "/b.jpg": 1}  # a slow answer is not retried
    with socket.create_server(("127.0.0.1", 0), backlog=0) as full:
        port = full.getsockname()[1]
        waiting = [socket.socket() for _ in range(3)]
        for one in waiting:
            one.setblocking(False)
            one.connect_ex(("127.0.0.1", port))
        assert "does not answer in time" in refused(hasty, f"http://127.0.0.1:{port}/a.jpg")
        for one in waiting:
            one.close()


@pytest.mark.parametrize("headers", [["X: y"], ["Transfer-Encoding: chunked"]], ids=["until it closes", "chunks"])
def test_a_body_without_end(server: RawServer, fetcher: Fetcher, headers: list[str]) -> None:
    """The body is capped while it comes, not after."""
    drop = bytes(65536)
    if "chunked" in headers[0]:
        drop = b"10000\r\n" + drop + b"\r\n"
    url = server.says("/a.jpg", lambda: server.dripping(ok(b"", *headers), drop, 0))
    assert "more than the limit of 100,000 bytes" in refused(fetcher, url)
    assert server.sent["/a.jpg"] < 20_000_000  # what the sockets' buffers take in


def test_a_length_above_the_limit_is_refused_unread(server: RawServer, fetcher: Fetcher) -> None:
    url = server.says("/a.jpg", ok(b"x", "Content-Length: 99999999999"))
    assert "more than the limit of 100,000 bytes" in refused(fetcher, url)
    assert server.hits["/a.jpg"] == 1


def test_a_length_that_lies(
    server: RawServer, fetcher: Fetcher, allowed: None, tmp_path: Path, tiny_model: str
) -> None:
    """A body shorter than its length, or an invalid length, fails after three attempts; a longer one is truncated."""
    url = server.says("/short.jpg", ok(PHOTO, f"Content-Length: {len(PHOTO) + 10}"))
    assert "without sending complete message body" in refused(fetcher, url)
    assert server.hits["/short.jpg"] == 3
    for length in ("-5", "abc", "1e3", "9" * 5000):
        assert refused(fetcher, server.says("/odd.jpg", ok(PHOTO, f"Content-Length: {length}")))
    url = server.says("/long.jpg", ok(PHOTO, f"Content-Length: {len(PHOTO) - 100}"))
    assert fetcher.fetch(url) == PHOTO[:-100]
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        (failure,) = Ingestor(store, tiny_model).ingest([Source(url)]).failed
    assert (failure.source, failure.reason) == (url, "the image is truncated")


def test_a_compressed_answer(server: RawServer, fetcher: Fetcher) -> None:
    """A compressed answer, which may expand a thousandfold, was not requested and is refused."""
    url = server.says("/a.jpg", ok(b"\x1f\x8b", "Content-Encoding: gzip", "Content-Length: 2"))
    assert "the answer is compressed (gzip)" in refused(fetcher, url)


@pytest.mark.parametrize("answer", [b"", b"nonsense\r\n\r\n", b"HTTP/1.1 200 OK\r\nX: " + b"y" * 300_000, b"\0" * 1000])
def test_what_is_no_http(server: RawServer, fetcher: Fetcher, answer: bytes) -> None:
    assert "the connection failed" in refused(fetcher, server.says("/a.jpg", answer))


# ---- down for a moment, or for good


def test_500_twice_and_then_well(server: RawServer, fetcher: Fetcher) -> None:
    answers = iter([status(500), status(503), ok(PHOTO)])
    assert fetcher.fetch(server.says("/a.jpg", lambda: next(answers))) == PHOTO
    assert server.hits["/a.jpg"] == 3


@pytest.mark.parametrize(("code", "attempts"), [(500, 3), (503, 3), (429, 3), (404, 1), (403, 1), (204, 1)])
def test_an_error_that_stays(server: RawServer, fetcher: Fetcher, code: int, attempts: int) -> None:
    reason = refused(fetcher, server.says("/a.jpg", status(code)))
    assert reason == f"the server answers {code}" + (" (3 attempts)" if attempts == 3 else "")
    assert server.hits["/a.jpg"] == attempts


def test_nobody_listens_and_nobody_has_that_name(fetcher: Fetcher) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    assert "refused (3 attempts)" in refused(fetcher, f"http://127.0.0.1:{port}/a.jpg")

    def unknown(*_: Any, **__: Any) -> list[Any]:
        raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

    assert "the name x.example cannot be resolved" in refused(Fetcher(LIMITS, resolve=unknown), "http://x.example/")


def test_a_slow_host_does_not_stall_the_others(server: RawServer, allowed: None) -> None:
    """Eight photos are requested before the first is answered, since the barrier waits for all eight."""
    together = threading.Barrier(8, timeout=20)

    def answer() -> bytes:
        together.wait()
        return ok(PHOTO)

    slow = server.says("/slow.jpg", lambda: server.dripping(b"", b"H", 0.05))
    asked = [Source(server.says(f"/{n}.jpg", answer)) for n in range(8)]
    *found, last = read_all([*asked, Source(slow)])
    assert found == [PHOTO] * 8
    assert isinstance(last, InputError)


# ---- all of them in one run


def test_one_list_of_everything(
    server: RawServer, allowed: None, tmp_path: Path, tiny_model: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Valid photos are stored once, and each of the others fails with its own reason."""
    flaky = iter([status(500), status(500), ok(make_photo(2))])
    expected = {
        server.says("/good.jpg", ok(PHOTO)): None,
        server.says("/flaky.jpg", lambda: next(flaky)): None,
        # The suffix of a URL does not determine the format: many servers send WebP for .jpg.
        server.says("/png.jpg", ok(make_photo(3, format="PNG"))): None,
        server.says("/inside.jpg", status(302, "Location: http://169.254.169.254/latest")): "not a public address",
        server.says("/drip.jpg", lambda: server.dripping(b"HTTP/1.1 200 OK\r\n\r\n", b"x", 0.05)): "in time",
        server.says("/endless.jpg", lambda: server.dripping(ok(b"", "X: y"), bytes(65536), 0)): "more than the limit",
        server.says("/liar.jpg", ok(PHOTO, "Content-Length: 9999")): "without sending complete",
        server.says("/gone.jpg", status(404)): "the server answers 404",
        server.says("/page.jpg", ok(b"<html>Not a photo</html>")): "not an image",
    }
    manifest = tmp_path / "urls.jsonl"
    manifest.write_text("".join(json.dumps({"url": url, "caption": url[-9:]}) + "\n" for url in expected))
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        report = Ingestor(store, tiny_model).ingest(list(expand([str(manifest)])))
        rows = {row.source: row for row in store.iterate()}
    failed = {failure.source: failure.reason for failure in report.failed}
    assert rows.keys() == {url for url, reason in expected.items() if reason is None}
    assert (rows[f"{server.url}/good.jpg"].width, rows[f"{server.url}/good.jpg"].caption) == (80, "/good.jpg")
    assert failed.keys() == expected.keys() - rows.keys()
    for url, reason in failed.items():
        assert expected[url] in reason
        assert url not in reason


# ---- TLS


@pytest.fixture
def tls_server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[RawServer]:
    cert, key = certificate("photos.example", tmp_path)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(cert, key)
    opened = RawServer(wrap=lambda connection: context.wrap_socket(connection, server_side=True))
    monkeypatch.setattr(urls, "_tls", lambda: ssl.create_default_context(cafile=str(cert)))
    yield opened
    opened.close()


def test_the_certificate_is_that_of_the_name_though_the_address_is_pinned(tls_server: RawServer) -> None:
    def resolve(_: str, port: int, **__: Any) -> list[Any]:
        return [(0, 0, 0, "", ("127.0.0.1", port))]

    fetcher = Fetcher(LIMITS, resolve=resolve, is_allowed=lambda address: address == "127.0.0.1")
    tls_server.says("/a.jpg", ok(PHOTO))
    assert fetcher.fetch(f"https://photos.example:{tls_server.port}/a.jpg") == PHOTO
    assert "certificate" in refused(fetcher, f"https://other.example:{tls_server.port}/a.jpg").lower()
    assert tls_server.hits["/a.jpg"] == 1
