"""The tool ``search_photos``, by the client of the MCP SDK that is connected in memory."""

from __future__ import annotations

import base64
import io
import json
import sys
import threading
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import anyio
import pytest
from mcp import Client, MCPError
from mcp.types import CallToolResult, ImageContent, TextContent
from PIL import Image

from ldot_milvus import LightningDOTEmbedder, Retriever, open_store
from ldot_milvus.errors import ModelError
from ldot_milvus.integrations import mcp as photos_mcp
from ldot_milvus.integrations.mcp import photo_server
from ldot_milvus.search import shared
from ldot_milvus.search.shared import shared_retriever
from ldot_milvus.search.thumbnails import thumbnail
from ldot_milvus.stores import Record
from tests.conftest import make_photo
from tests.integration.integrations.album import Album


@pytest.fixture
def server(album: Album):
    return photo_server(partial(shared_retriever, **album.parts))


async def call(server, **arguments) -> CallToolResult:
    async with Client(server) as client:
        return await client.call_tool("search_photos", arguments)


def found(result: CallToolResult) -> list[str]:
    assert not result.is_error, result.content
    return [photo["id"] for photo in result.structured_content["photos"]]


def refusal(result: CallToolResult) -> str:
    """The one line of an error."""
    assert result.is_error
    assert result.structured_content is None
    (only,) = result.content
    assert only.text.isprintable()
    return only.text


async def test_the_tool_describes_itself(server) -> None:
    async with Client(server) as client:
        (tool,) = (await client.list_tools()).tools
    schema = tool.input_schema
    assert list(schema["properties"]) == ["text", "photo", "filter", "k", "min_probability"]
    assert all(field["description"] for field in schema["properties"].values())
    assert schema["additionalProperties"] is False
    assert "required" not in schema
    assert tool.annotations.read_only_hint
    json.dumps(tool.output_schema)


async def test_photos_come_with_their_fields_and_thumbnails(server, album: Album) -> None:
    result = await call(server, text="a red square", k=3)
    hits = album.search("a red square", k=3)
    assert found(result) == [hit.id for hit in hits]
    for photo, hit in zip(result.structured_content["photos"], hits, strict=True):
        scores = {name: photo.pop(name) for name in ("score", "rerank_score")}
        assert scores == pytest.approx({"score": hit.score, "rerank_score": hit.rerank_score}, abs=1e-4)
        assert photo == {name: value for name, value in hit.to_dict().items() if name not in scores}
    assert [block.type for block in result.content] == ["text", "image"] * 3
    for text, picture, hit in zip(result.content[::2], result.content[1::2], hits, strict=True):
        assert json.loads(text.text)["source"] == hit.source
        assert picture.mime_type == "image/jpeg"
        data = base64.b64decode(picture.data)
        assert data == thumbnail(hit.source, 480)
        assert max(Image.open(io.BytesIO(data)).size) == 480


async def test_filters_limits_and_nothing_found(server, album: Album) -> None:
    assert len(found(await call(server, text="red", k=6))) == 6
    assert len(found(await call(server, text="red"))) == 5
    for condition in ({"metadata.album": "a"}, '{"metadata.album": "a"}'):  # some models write objects as texts
        result = await call(server, text="red", filter=condition)
        assert {photo["metadata"]["album"] for photo in result.structured_content["photos"]} == {"a"}
    assert found(await call(server, text="red", photo="", filter=None, min_probability=None))  # what models leave out
    nothing = await call(server, text="red", filter={"width": {"$gt": 9999}})
    assert found(nothing) == []
    assert [block.type for block in nothing.content] == ["text"]


async def test_a_photo_is_an_id_or_the_photo_itself(server, album: Album) -> None:
    photo = album.photos / "2.jpg"
    data = base64.b64encode(photo.read_bytes()).decode()
    expected = {hit.id: hit.score for hit in album.search(image=photo, k=6)}
    (row,) = (hit for hit in album.search("red", k=6) if hit.source == str(photo))
    percent = "".join(f"%{byte:02x}" for byte in photo.read_bytes())
    for form in (
        row.id,
        data,
        "\n".join(data[at : at + 76] for at in range(0, len(data), 76)),
        f"data:image/jpeg;base64,{data}",
        f"DATA:;charset=x;BASE64,{data}",
        f"data:image/jpeg,{percent}",
    ):
        result = await call(server, photo=form, k=6)
        assert {p["id"]: p["score"] for p in result.structured_content["photos"]} == pytest.approx(expected, rel=1e-3)


@pytest.fixture
def opened() -> Iterator[list[str]]:
    """The paths that this process opens."""
    paths: list[str] = []
    watching = True

    def watch(event: str, arguments: tuple) -> None:
        if watching and event == "open":
            paths.append(str(arguments[0]))

    sys.addaudithook(watch)  # cannot be removed
    yield paths
    watching = False


@pytest.mark.parametrize(
    "form",
    ["{path}", "file://{path}", "{path}\n", "./{name}", "~/{name}", "../{name}", "data:{path}", "data:,{path}",
     "data:image/jpeg;base64,{path}", "data:text/plain,file://{path}", "http://127.0.0.1:9/{name}", "s3://bucket/{name}",
     "{path}#{fill}", "{fill}/../../../../../../../..{path}"],
)  # fmt: skip
async def test_no_path_of_a_client_is_opened(
    server, opened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, form: str
) -> None:
    secret = tmp_path / "secret.jpg"
    secret.write_bytes(make_photo(99))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HOME", str(tmp_path))
    opened.clear()
    photo = form.format(path=secret, name=secret.name, fill="x" * 80)
    message = refusal(await call(server, photo=photo))
    assert message.startswith(("photo: ", "the query image: "))
    assert not [path for path in opened if "secret" in path]


async def test_an_id_has_no_probability(server, album: Album) -> None:
    id = album.search("red", k=1)[0].id
    assert "leave it out" in refusal(await call(server, photo=id, min_probability=0.5))


async def test_a_source_of_a_row_is_no_photo_to_give(server, album: Album) -> None:
    assert "no photo with the id" in refusal(await call(server, photo="photos/2.jpg"))
    assert "neither an id" in refusal(await call(server, photo=f"{album.photos}/../{'x' * 64}/2.jpg"))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "search_photos takes a text or a photo"),
        ({"text": "red", "photo": "0" * 64}, "exactly one of them"),
        ({"text": ""}, "search_photos takes a text or a photo"),
        ({"text": " \n"}, "empty"),
        ({"text": ["red"]}, "text: it should be a valid string"),
        ({"text": "red", "k": 0}, "k: it should be greater than or equal to 1"),
        ({"text": "red", "k": 51}, "k: it should be less than or equal to 50"),
        ({"text": "red", "k": 2.5}, "k: it should be a valid integer"),
        ({"text": "red", "top_k": 3}, "search_photos takes no argument 'top_k': did you mean 'k'?"),
        ({"text": "red", "min_probability": 1.5}, "min_probability: it should be less"),
        ({"text": "red", "min_probability": 0.5}, "no calibration"),
        ({"photo": base64.b64encode(make_photo(0)).decode(), "min_probability": 0}, "leave it out"),
        ({"photo": "0" * 64, "k": 2}, "no photo with the id '000"),
        ({"photo": "text row"}, "no photo with the id 'text row'"),
        ({"text": "red", "filter": {"colour": 1}}, "unknown field 'colour'"),
        ({"text": "red", "filter": "{colour"}, "filter: this is not JSON"),
        ({"text": "red", "filter": [1]}, "filter: it should be a valid dictionary"),
        ({"photo": base64.b64encode(b"no photo" * 20).decode()}, "not an image"),
        ({"photo": base64.b64encode(make_photo(0)[:-400]).decode()}, "truncated"),
        ({"photo": "A" * 65}, "neither an id nor base64"),
        ({"photo": "é" * 40}, "an id has 80 bytes"),
        ({"photo": "é" * 70}, "neither an id nor base64"),
        ({"photo": "\ud800"}, "not valid Unicode"),
    ],
    ids=str,
)
async def test_what_cannot_be_searched_is_one_line(server, album: Album, tiny, arguments: dict, message: str) -> None:
    with open_store(album.store, "photos") as store:
        store.upsert([Record("text row", tiny.encode_texts(["a"])[0], kind="text", caption="a")])
    assert message in refusal(await call(server, **arguments))


async def test_a_photo_that_is_too_large_is_refused(server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(photos_mcp, "MAX_PHOTO", 1000)
    assert "more than the limit of 1,000 bytes" in refusal(
        await call(server, photo=base64.b64encode(make_photo(0, (400, 400))).decode())
    )


async def test_an_unknown_tool_is_an_error_of_the_protocol(server) -> None:
    async with Client(server) as client:
        with pytest.raises(MCPError, match="there is search_photos"):
            await client.call_tool("read_file", {"path": "/etc/passwd"})


async def test_a_photo_that_is_gone_is_told(album: Album, tiny, tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        store.bind(tiny.fingerprint, tiny.dim)
        store.upsert([Record("a", tiny.encode_texts(["a"])[0], source="/nowhere/a.jpg")])
        result = await call(photo_server(lambda: Retriever(tiny, store, reranker="none")), text="a")
    assert found(result) == ["a"]
    assert "cannot read this photo" in result.content[1].text


async def test_a_collection_that_is_missing_may_come_later(tiny, tmp_path: Path) -> None:
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        server = photo_server(lambda: Retriever(tiny, store, reranker="none"))
        assert "no collection 'photos'" in refusal(await call(server, text="a"))
        store.bind(tiny.fingerprint, tiny.dim)
        store.upsert([Record("a", tiny.encode_texts(["a"])[0], source="/nowhere/a.jpg")])
        assert found(await call(server, text="a")) == ["a"]


async def test_the_model_is_loaded_once_and_the_server_answers_meanwhile(
    album: Album, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    begun, may_end, loaded = threading.Event(), threading.Event(), []

    def load(name: str, **options) -> LightningDOTEmbedder:
        loaded.append(threading.current_thread())
        begun.set()
        assert may_end.wait(30)
        return LightningDOTEmbedder(name, device="cpu")

    monkeypatch.setattr(shared, "load_embedder", load)
    results: list[CallToolResult] = []
    server = photo_server(partial(shared_retriever, **album.parts))
    async with Client(server) as client:

        async def search() -> None:
            results.append(await client.call_tool("search_photos", {"text": "red"}))

        async with anyio.create_task_group() as tasks:
            for _ in range(6):
                tasks.start_soon(search)
            await anyio.to_thread.run_sync(begun.wait)
            with anyio.fail_after(20):
                await client.list_tools()
            assert not results
            may_end.set()
    assert len(results) == 6
    assert len({tuple(found(result)) for result in results}) == 1
    assert len(loaded) == 1
    assert loaded[0] is not threading.main_thread()


async def test_a_model_that_cannot_be_loaded_is_tried_again(
    album: Album, monkeypatch: pytest.MonkeyPatch, loads: list[str]
) -> None:
    server = photo_server(partial(shared_retriever, **album.parts))
    with monkeypatch.context() as patch:

        def load(name: str, **options) -> LightningDOTEmbedder:
            raise ModelError(f"model {name!r}: the disk\nis gone")

        patch.setattr(shared, "load_embedder", load)
        assert "the disk\\nis gone" in refusal(await call(server, text="red"))
    assert found(await call(server, text="red"))


async def test_a_search_that_was_given_up_while_it_waited_never_runs() -> None:
    """Searches that run cannot be interrupted, and keep their turn until they end."""
    may_end, texts = threading.Event(), []

    class Blocked:
        def search(self, text: str, **options) -> list:
            texts.append(text)
            assert may_end.wait(30)
            return []

    server = photo_server(Blocked)
    async with Client(server) as client:
        async with anyio.create_task_group() as tasks:
            for number in range(8):
                tasks.start_soon(client.call_tool, "search_photos", {"text": f"text {number}"})
            with anyio.fail_after(20):
                while len(texts) < 4:
                    await anyio.sleep(0.01)
            await anyio.sleep(0.2)
            tasks.cancel_scope.cancel()
        assert len(texts) == 4
        may_end.set()
        result = await client.call_tool("search_photos", {"text": "the last one"})
    assert result.content == [TextContent(text="No photo was found.")]
    assert texts[4:] == ["the last one"]


async def test_a_fault_of_the_server_tells_the_client_nothing_of_it() -> None:
    class Broken:
        def search(self, text: str, **options) -> list:
            raise ZeroDivisionError("/secret/path")

    async with Client(photo_server(Broken)) as client:
        with pytest.raises(MCPError) as caught:
            await client.call_tool("search_photos", {"text": "a"})
    assert "secret" not in str(caught.value)


def test_content_blocks_are_those_of_the_sdk() -> None:
    assert ImageContent(data="", mime_type="image/jpeg").model_dump(by_alias=True, exclude_none=True) == {
        "type": "image", "data": "", "mimeType": "image/jpeg",
    }  # fmt: skip
