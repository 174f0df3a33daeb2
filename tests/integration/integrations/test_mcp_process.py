"""``ldot mcp`` as a process, by the clients of the MCP SDK: stdin and stdout, streamable HTTP, and their ends."""

from __future__ import annotations

import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import anyio
import pytest
from click.testing import CliRunner
from mcp import Client, ClientSession, StdioServerParameters, stdio_client
from mcp.client.streamable_http import streamable_http_client

from ldot_milvus.cli import main
from ldot_milvus.errors import UsageError
from ldot_milvus.http_server import BodyLimits, is_loopback
from ldot_milvus.integrations.mcp_transports import parse_host_port
from tests.conftest import ROOT
from tests.integration.integrations.album import Album

LDOT = ["-m", "ldot_milvus", "mcp"]
FAULTY = ["-m", "tests.faulty_mcp"]


def environment(album: Album) -> dict[str, str]:
    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, **album.env, "PYTHONPATH": os.pathsep.join(paths)}


@asynccontextmanager
async def by_handshake(transport: Any):
    """A client of the protocol until 2025, which most programs speak."""
    async with transport as (incoming, outgoing), ClientSession(incoming, outgoing) as session:
        await session.initialize()
        yield session


CLIENTS: dict[str, Callable[[Any], Any]] = {"2025": by_handshake, "2026": Client}


async def test_a_client_on_stdin_and_stdout(album: Album, tmp_path: Path) -> None:
    """What libraries print does not reach the client."""
    server = StdioServerParameters(
        command=sys.executable, args=[*FAULTY, "noisy"], env=environment(album), cwd=tmp_path
    )
    with (tmp_path / "log").open("w+") as log:
        async with by_handshake(stdio_client(server, errlog=log)) as client:
            result = await client.call_tool("search_photos", {"text": "a red square", "k": 2})
        log.seek(0)
        assert {"printed by a library", "written by C code"} <= set(log.read().splitlines())
    assert [photo["id"] for photo in result.structured_content["photos"]] == [
        hit.id for hit in album.search("a red square", k=2)
    ]
    assert [block.type for block in result.content] == ["text", "image"] * 2


async def test_a_client_of_2026_on_stdin_and_stdout(album: Album, tmp_path: Path) -> None:
    server = StdioServerParameters(command=sys.executable, args=LDOT, env=environment(album), cwd=tmp_path)
    async with Client(stdio_client(server)) as client:
        (tool,) = (await client.list_tools()).tools
        refused = await client.call_tool(tool.name, {"text": "a", "k": 0})  # loads no model
    assert refused.is_error


class Server:
    """A server process whose stderr is read line by line."""

    def __init__(self, album: Album, folder: Path, *arguments: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *arguments], cwd=folder, env=environment(album),
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
        )  # fmt: skip

    def log_until(self, word: str) -> str:
        """Return the first line of stderr with this word."""
        assert self.process.stderr is not None
        for line in self.process.stderr:
            if word in line:
                return line
        raise AssertionError(f"the server ended with status {self.process.wait()} and never wrote {word!r}")

    def connections(self) -> int:
        """The number of its sockets, apart from the listening one and those of its event loop."""
        inodes = set()
        for entry in Path(f"/proc/{self.process.pid}/fd").iterdir():
            name = os.readlink(entry) if os.path.lexists(entry) else ""
            if name.startswith("socket:["):
                inodes.add(name[8:-1])
        table = Path(f"/proc/{self.process.pid}/net/tcp").read_text().splitlines()[1:]
        return sum(fields[9] in inodes and fields[3] != "0A" for fields in map(str.split, table))

    def end(self) -> None:
        self.process.kill()
        self.process.wait()
        for stream in (self.process.stdin, self.process.stdout, self.process.stderr):
            assert stream is not None
            with suppress(OSError):
                stream.close()


@pytest.fixture
def start(album: Album, tmp_path: Path) -> Iterator[Callable[..., Server]]:
    servers: list[Server] = []

    def begin(*arguments: str) -> Server:
        servers.append(Server(album, tmp_path, *arguments))
        return servers[-1]

    yield begin
    for server in servers:
        server.end()


def messages(*, then: str) -> str:
    """A handshake, and a search."""
    about = {"protocolVersion": "2025-06-18", "capabilities": {}, "clientInfo": {"name": "test", "version": "1"}}
    sent = [
        {"id": 1, "method": "initialize", "params": about},
        {"method": "notifications/initialized"},
        {"id": 2, "method": "tools/call", "params": {"name": "search_photos", "arguments": {"text": then}}},
    ]
    return "".join(json.dumps({"jsonrpc": "2.0", **message}) + "\n" for message in sent)


def test_a_client_that_goes_away_leaves_no_process(start: Callable[..., Server]) -> None:
    server = start(*FAULTY, "stuck")
    assert server.process.stdin is not None
    assert server.process.stdout is not None
    server.process.stdin.write(messages(then="red"))
    server.process.stdin.flush()
    server.log_until("loading")  # takes a minute
    server.process.stdin.close()
    for line in server.process.stdout:
        assert json.loads(line)["jsonrpc"] == "2.0"
    assert server.process.wait(timeout=30) == 0


def test_a_client_that_reads_no_longer_leaves_no_process(start: Callable[..., Server]) -> None:
    """Its stdin stays open, as that of a client whose child processes have inherited the pipe."""
    server = start(*LDOT)
    assert server.process.stdin is not None
    assert server.process.stdout is not None
    server.process.stdout.close()
    server.process.stdin.write(messages(then=""))
    server.process.stdin.flush()
    assert server.process.wait(timeout=60) == 0
    assert server.process.stderr is not None
    assert "Traceback" not in server.process.stderr.read()


def test_ctrl_c_ends_it_while_it_waits_for_a_line(start: Callable[..., Server]) -> None:
    server = start(*LDOT)
    assert server.process.stdin is not None
    assert server.process.stdout is not None
    server.process.stdin.write(messages(then="").splitlines(keepends=True)[0])
    server.process.stdin.flush()
    assert json.loads(server.process.stdout.readline())["id"] == 1
    server.process.send_signal(signal.SIGINT)
    assert server.process.wait(timeout=20) == -signal.SIGINT


@pytest.fixture(scope="module")
def http_server(album: Album, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """The URL of ``ldot mcp --http 127.0.0.1:0``."""
    server = Server(album, tmp_path_factory.mktemp("http"), *LDOT, "--http", "0", "--allow-host", "photos.example")
    try:
        line = server.log_until("http://")
        assert line.startswith(f"Collection 'photos' of {album.store}: http://127.0.0.1:")
        yield line.split()[-1]
    finally:
        server.end()


@pytest.mark.parametrize("era", CLIENTS)
async def test_clients_over_http(album: Album, http_server: str, era: str) -> None:
    expected = {text: [hit.id for hit in album.search(text, k=2)] for text in ("red", "blue", "green")}
    found: dict[str, list[str]] = {}

    async def search(text: str) -> None:
        async with CLIENTS[era](streamable_http_client(http_server)) as client:
            result = await client.call_tool("search_photos", {"text": text, "k": 2})
            assert [block.type for block in result.content] == ["text", "image"] * 2
            found[text] = [photo["id"] for photo in result.structured_content["photos"]]

    async with anyio.create_task_group() as tasks:
        for text in expected:
            tasks.start_soon(search, text)
    assert found == expected


def post(url: str, body: bytes = b"{}", **headers: str) -> http.client.HTTPResponse:
    place = urlsplit(url)
    connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
    sent = {"Content-Type": "application/json", "Accept": "application/json, text/event-stream", **headers}
    connection.request("POST", place.path, body, sent)
    return connection.getresponse()


PING = b'{"jsonrpc": "2.0", "id": 1, "method": "ping"}'


@pytest.mark.parametrize(
    ("headers", "status"),
    [
        ({}, 200),
        ({"Host": "127.0.0.1:{port}"}, 200),
        ({"Host": "localhost:{port}"}, 200),
        ({"Host": "[::1]:{port}"}, 200),
        ({"Host": "photos.example"}, 200),
        ({"Host": "photos.example:443", "Origin": "https://photos.example"}, 200),
        ({"Origin": "http://localhost:6274"}, 200),
        ({"Host": "evil.example:{port}"}, 421),
        ({"Host": "127.0.0.1.evil.example:{port}"}, 421),
        ({"Host": "evil.example:{port}", "Origin": "http://evil.example:{port}"}, 421),
        ({"Origin": "http://evil.example"}, 403),
        ({"Origin": "null"}, 403),
        ({"Content-Type": "text/plain"}, 400),
    ],
    ids=str,
)
def test_pages_of_other_hosts_are_refused(http_server: str, headers: dict[str, str], status: int) -> None:
    """DNS rebinding: a page gives its own name the address of this machine."""
    port = str(urlsplit(http_server).port)
    given = {name: value.format(port=port) for name, value in headers.items()}
    assert post(http_server, PING, **given).status == status


def test_a_request_that_is_too_large_is_refused(http_server: str) -> None:
    assert post(http_server, b"", **{"Content-Length": str(10**9)}).status == 413


def test_nothing_else_is_served(http_server: str) -> None:
    place = urlsplit(http_server)
    for path in ("/", "/etc/passwd", "/mcp/../etc/passwd", "/photos/0.jpg"):
        connection = http.client.HTTPConnection(place.hostname or "", place.port, timeout=30)
        connection.request("GET", path)
        assert connection.getresponse().status == 404


def test_http_clients_that_go_away_leave_no_sockets(start: Callable[..., Server]) -> None:
    server = start(*FAULTY, "stuck", "--http", "0")
    url = server.log_until("http://").split()[-1]
    place = urlsplit(url)
    search = json.dumps(
        {"jsonrpc": "2.0", "id": 1, "method": "tools/call",
         "params": {"name": "search_photos", "arguments": {"text": "red"}}}
    )  # fmt: skip
    head = f"POST /mcp HTTP/1.1\r\nHost: {place.netloc}\r\nContent-Type: application/json\r\n"
    head += f"Accept: application/json, text/event-stream\r\nContent-Length: {len(search)}\r\n\r\n"
    clients = []
    for text in (head + search, head + search[:20], head[:30], ""):  # a search, and requests that are not complete
        clients.append(socket.create_connection((place.hostname, place.port)))
        clients[-1].sendall(text.encode())
    server.log_until("loading")  # takes a minute
    assert server.connections() == 4
    for client in clients:
        client.close()
    deadline = time.monotonic() + 20
    while server.connections() and time.monotonic() < deadline:
        time.sleep(0.05)
    assert server.connections() == 0
    assert post(url, PING).status == 200
    server.process.terminate()
    assert server.process.wait(timeout=20) == -signal.SIGTERM


async def test_a_request_whose_body_does_not_arrive_is_given_up() -> None:
    sent: list[dict[str, Any]] = []

    async def app(scope, receive, send) -> None:
        while (await receive())["more_body"]:
            pass

    async def receive() -> dict[str, Any]:
        await anyio.sleep(0.02)
        return {"type": "http.request", "body": b"x", "more_body": True}

    async def send(message: dict[str, Any]) -> None:
        sent.append(message)

    with anyio.fail_after(10):
        limited = BodyLimits(app, bytes=lambda _: 1000, seconds=0.05)
        await limited({"type": "http", "headers": []}, receive, send)
    assert sent[0]["status"] == 408


@pytest.mark.parametrize(
    ("address", "expected"),
    [
        ("8765", ("127.0.0.1", 8765)),
        (":8765", ("127.0.0.1", 8765)),
        ("localhost:80", ("localhost", 80)),
        ("[::1]:80", ("::1", 80)),
        ("0.0.0.0:65535", ("0.0.0.0", 65535)),
    ],
)
def test_addresses(address: str, expected: tuple[str, int]) -> None:
    assert parse_host_port(address) == expected


@pytest.mark.parametrize("address", ["", "localhost", "localhost:", "host:http", "host:-1", "host:65536", "host:٨٠"])
def test_wrong_addresses(address: str) -> None:
    with pytest.raises(UsageError, match="give HOST:PORT or PORT"):
        parse_host_port(address)


def test_which_hosts_only_this_machine_reaches() -> None:
    hosts = ("127.0.0.1", "127.1.2.3", "localhost", "::1", "0.0.0.0", "::", "192.168.1.2", "photos.example")
    assert [is_loopback(host) for host in hosts] == [True] * 4 + [False] * 4


def test_mistakes_are_one_line(album: Album, other_model: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in album.env.items():
        monkeypatch.setenv(name, value)
    with socket.create_server(("127.0.0.1", 0)) as taken:
        cases = [
            (["--http", "nowhere"], "give HOST:PORT or PORT"),
            (["--http", str(taken.getsockname()[1])], "choose another address"),
            (["--http", "host.invalid:1"], "choose another address"),
            (["--allow-host", "photos.example"], "give --http HOST:PORT too"),
            (["--model", other_model], "other than"),
            (["--model", "/nowhere"], "/nowhere"),
            (["--store", "nothing://"], "nothing"),
        ]
        for arguments, message in cases:
            result = CliRunner().invoke(main, ["mcp", *arguments])
            assert result.exit_code == 2, arguments
            (line,) = result.stderr.splitlines()
            assert line.startswith("Error: ")
            assert message in line
            assert not result.stdout


@pytest.mark.parametrize(
    ("module", "needs", "extra"),
    [
        ("mcp", "mcp", "mcp"),
        ("llama_index", "llama_index.core", "llama-index"),
        ("haystack", "haystack", "haystack"),
        ("pymilvus_model", "milvus_model", "pymilvus-model"),
    ],
)
def test_a_missing_package_is_told_with_its_extra(
    monkeypatch: pytest.MonkeyPatch, module: str, needs: str, extra: str
) -> None:
    import importlib

    for name in [name for name in sys.modules if name == needs or name.startswith(f"{needs}.")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, needs, None)  # imports of it fail
    monkeypatch.delitem(sys.modules, f"ldot_milvus.integrations.{module}", raising=False)
    with pytest.raises(ImportError, match=rf"pip install 'ldot-milvus\[{extra}\]'$"):
        importlib.import_module(f"ldot_milvus.integrations.{module}")
    if module == "mcp":
        result = CliRunner().invoke(main, ["mcp"])
        assert (result.exit_code, result.stderr.count("\n")) == (2, 1)
        assert result.stderr.endswith("pip install 'ldot-milvus[mcp]'\n")
