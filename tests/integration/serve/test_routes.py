"""What the service answers: searches, rows, uploads, errors, health, metrics and logs, and its clients."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from ldot_milvus import Client, CollectionNotFound, FilterError, Hit, InputError, Retriever, RowNotFound, UsageError
from ldot_milvus.errors import StoreError
from ldot_milvus.search.query import RowId
from ldot_milvus.stores import open_store
from tests.brokers import free_port
from tests.conftest import Run, make_photo
from tests.integration.serve.conftest import Album, Running, until, upload


@pytest.fixture(scope="module")
def retriever(served: Album, tiny):
    with open_store(served.env["LDOT_STORE"], "images") as store:
        yield Retriever(tiny, store)


@pytest.fixture(scope="module")
def client(service: Running):
    with Client(service.url("/")) as client:
        yield client


def same(hits: list[Hit], others: list[Hit]) -> None:
    assert len(hits) == len(others)
    for hit, other in zip(hits, others, strict=True):
        for name in ("score", "rerank_score", "probability"):
            assert getattr(hit, name) == pytest.approx(getattr(other, name), rel=1e-3, abs=1e-3)


def test_the_client_finds_what_the_retriever_finds(client: Client, retriever: Retriever, served: Album) -> None:
    id = retriever.search("blue")[0].id
    for query in (
        {"text": "blue"}, {"text": "blue", "k": 3, "offset": 2},
        {"text": "blue", "rerank": 0, "filter": {"metadata.n": {"$gt": 4}}},
        {"id": id, "k": 20}, {"image": served.folder / "0003.jpg"}, {"image": make_photo(99), "k": 2},
        {"text": [(1, "blue"), (-0.5, RowId(id))]}, {"text": "blue", "namespace": "nobody"},
    ):  # fmt: skip
        same(client.search(**query), retriever.search(**query))
    assert client.search("blue")[0].metadata.keys() == {"n"}


async def test_the_client_raises_the_errors_of_the_retriever(client: Client, service: Running) -> None:
    for query, error in (
        ({"text": " "}, UsageError), ({"text": "a", "filter": {"x": 1}}, FilterError), ({"id": "0" * 64}, RowNotFound),
        ({"image": b"no photo"}, InputError), ({"image": Path("nowhere.jpg")}, InputError), ({}, UsageError),
        ({"text": "a", "k": 0}, UsageError), ({"text": "a", "kind": "video"}, UsageError),
        ({"text": "a", "filter": {"id": object()}}, UsageError), ({"text": [(1, make_photo(1))]}, UsageError),
    ):  # fmt: skip
        with pytest.raises(error) as refused:
            await client.asearch(**query)
        assert "\n" not in str(refused.value)
    with pytest.raises(CollectionNotFound, match="existing collections: images, more"):
        Client(service.url(""), collection="other").search("a")
    assert len(Client(service.url(""), collection="more").search("a")) == 3
    with pytest.raises(StoreError, match="does not answer"):
        Client(f"http://127.0.0.1:{free_port()}").search("a")
    for url in ("nowhere", "ftp://host", "http://user:S3cret@host", "http://", "http://host:port"):
        with pytest.raises(UsageError, match="no address of a service"):
            Client(url)


def test_the_command_asks_the_service(run: Run, service: Running) -> None:
    done = run("ldot", "search", "blue", "-k", "2", "--json", "--server", service.url(""))
    assert done.returncode == 0, done.stderr
    assert len(json.loads(done.stdout)["hits"]) == 2
    by_setting = run("ldot", "search", "blue", "-k", "2", "--json", env={"LDOT_SERVER": service.url("")})
    assert json.loads(by_setting.stdout)["hits"] == json.loads(done.stdout)["hits"]
    both = run("ldot", "search", "blue", "--server", service.url(""), "--store", "faiss:x")
    assert (both.returncode, both.stderr.count("\n")) == (2, 1)
    gone = run("ldot", "search", "blue", "--server", f"http://127.0.0.1:{free_port()}")
    assert (gone.returncode, gone.stderr.count("\n")) == (2, 1)


async def test_langchain_asks_the_service(service: Running, retriever: Retriever) -> None:
    from ldot_milvus import LightningDOTRetriever

    chain = LightningDOTRetriever(server=service.url(""), k=3)
    expected = [hit.id for hit in retriever.search("blue", k=3)]
    assert [document.id for document in chain.invoke("blue")] == expected
    assert [document.id for document in await chain.ainvoke("blue")] == expected
    assert len(chain.model_copy(update={"collection": "more"}).invoke("blue", k=10)) == 3
    with pytest.raises(UsageError, match="leave them out"):
        LightningDOTRetriever(server=service.url(""), store="faiss:x")


def test_rows_and_collections(service: Running, served: Album) -> None:
    hit = service.search(text="blue", k=1).json["hits"][0]
    row = service.ask("GET", f"/v1/rows/{hit['id']}").json
    assert row == {name: hit[name] for name in row}
    assert "score" not in row
    assert service.ask("GET", f"/v1/rows/{hit['id']}?collection=more").status in (200, 404)
    listed = {info["name"]: info["rows"] for info in service.ask("GET", "/v1/collections").json}
    assert listed == {"images": 12, "more": 3}


@pytest.mark.parametrize(
    ("method", "path", "body", "status", "code"),
    [
        ("POST", "/v1/search", {}, 400, "usage"),
        ("POST", "/v1/search", {"text": "a", "id": "b"}, 400, "usage"),
        ("POST", "/v1/search", {"parts": [[1, {}]]}, 400, "usage"),
        ("POST", "/v1/search", {"text": "a", "k": "3"}, 422, "shape"),
        ("POST", "/v1/search", {"text": "a", "k": 10**6}, 422, "shape"),
        ("POST", "/v1/search", {"text": "a", "limit": 3}, 422, "shape"),
        ("POST", "/v1/search", {"text": "a", "collection": "a-b"}, 422, "shape"),
        ("POST", "/v1/search", b"{", 422, "shape"),
        ("POST", "/v1/search", {"text": "a", "filter": {"$no": 1}}, 400, "filter"),
        ("POST", "/v1/search", {"text": "a", "collection": "nowhere"}, 404, "collection_not_found"),
        ("POST", "/v1/search", {"id": "nowhere"}, 404, "row_not_found"),
        ("GET", "/v1/rows/nowhere", None, 404, "row_not_found"),
        ("GET", "/v1/rows/..%2f..%2fetc%2fpasswd", None, 404, "not_found"),
        ("GET", "/nowhere", None, 404, "not_found"),
        ("GET", "/v1/search", None, 405, "method_not_allowed"),
        pytest.param("POST", "/v1/search", b"x" * (2**20 + 1), 413, "too_large", id="too large"),
    ],
)
def test_errors(service: Running, method: str, path: str, body: object, status: int, code: str) -> None:
    headers = {"Content_Type": "application/json"} if isinstance(body, bytes) else {}
    answer = service.ask(method, path, body, **headers)
    assert (answer.status, answer.json["code"]) == (status, code), answer.body
    assert "\n" not in answer.json["error"]
    assert answer.json.keys() == {"code", "error"}


def test_uploads_are_ingested_under_their_content(service: Running, served: Album) -> None:
    photos = [make_photo(seed, format=format) for seed, format in ((50, "PNG"), (51, "JPEG"))]
    body, headers = upload("files", *photos, photos[0], namespace="mine")
    answer = service.ask("POST", "/v1/ingest", body, **headers)
    assert answer.status == 200, answer.body
    assert answer.json["run"]
    found = until(lambda: service.search(text="a", namespace="mine").json["hits"])
    found = until(lambda: (hits := service.search(text="a", namespace="mine").json["hits"])[1:] and hits)
    kept = sorted(path for path in (served.folder / "ldot-data" / "uploads").rglob("*") if path.is_file())
    assert sorted(hit["source"] for hit in found) == sorted(map(str, kept))
    assert sorted(path.read_bytes() for path in kept) == sorted(photos)
    assert sorted(path.suffix for path in kept) == [".jpg", ".png"]
    body, headers = upload("files", make_photo(52), b"no photo")
    refused = service.ask("POST", "/v1/ingest", body, **headers)
    assert (refused.status, refused.json["code"]) == (400, "input")
    assert len(list((served.folder / "ldot-data" / "uploads").rglob("*.*"))) == 2


def test_health_metrics_and_logs(service: Running) -> None:
    assert service.ask("GET", "/health/live").json == {"status": "live"}
    assert service.ask("GET", "/health/ready").json == {"status": "ready"}
    given = service.ask("GET", "/v1/rows/x?token=S3cret", X_Request_ID="mine-1")
    assert given.headers["x-request-id"] == "mine-1"
    made = service.ask("GET", "/v1/rows/x", X_Request_ID="not\tsane " * 20).headers["x-request-id"]
    assert len(made) == 16
    service.search(text="something else")
    text = service.ask("GET", "/metrics").body.decode()
    for line in (
        'ldot_requests_total{route="/v1/rows/{id}",status="404"}', 'ldot_search_seconds_count{stage="queue"}',
        'ldot_search_seconds_count{stage="encode"}', 'ldot_search_seconds_count{stage="rerank"}',
        "ldot_search_queue 0.0", "ldot_ready 1.0", 'ldot_batch_searches_bucket{le="1.0"}',
    ):  # fmt: skip
        assert line in text
    records = {record.get("request_id"): record for record in service.records()}
    assert records["mine-1"]["status"] == 404
    assert records[made]["route"] == "/v1/rows/{id}"
    assert "S3cret" not in service.log.read_text()


def test_an_empty_store_is_served_and_filled(tmp_path: Path, tiny_model: str) -> None:
    env = {"LDOT_STORE": f"faiss:{tmp_path / 'new'}", "LDOT_MODEL": tiny_model, "LDOT_SERVE_INGEST": "true"}
    with Running(tmp_path, ["ldot", "serve", "--port", "{port}"], env) as empty:
        empty.wait_ready()
        assert empty.ask("GET", "/v1/collections").json == []
        assert empty.search(text="a").json["code"] == "collection_not_found"
        body, headers = upload("files", make_photo(1))
        assert empty.ask("POST", "/v1/ingest", body, **headers).status == 200
        until(lambda: empty.search(text="a").json.get("hits"))


def test_what_cannot_be_served_is_one_line(run: Run, served: Album, other_model: str) -> None:
    for arguments, words in (
        (["--model", "nowhere"], "nowhere"), (["--model", other_model], "another"),
        (["--reranker", "nowhere"], "nowhere"),
        (["--host", "192.0.2.1"], "choose another"), (["--host", "a" * 70], "choose another"),
    ):  # fmt: skip
        done = run("ldot", "serve", "--port", "0", *arguments, env=served.env)
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done.stderr
        assert words in done.stderr
