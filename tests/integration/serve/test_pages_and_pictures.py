"""The pages, their files, and pictures of rows: what is served, from where, and what is refused."""

from __future__ import annotations

import io
import shutil
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from PIL import Image

from ldot_milvus import Ingestor, expand, open_store
from ldot_milvus.serve import pictures
from ldot_milvus.settings import Settings
from tests.conftest import make_photo

testing = pytest.importorskip("fastapi.testclient", reason="needs pip install 'ldot-milvus[serve]'")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("pictures")


@pytest.fixture(scope="module")
def client(folder: Path, tiny_model: str) -> Iterator:
    from ldot_milvus.serve.app import create_app

    photos = folder / "photos"
    photos.mkdir()
    for seed, size in enumerate([(900, 600), (60, 90), (400, 400)]):
        (photos / f"{seed}.jpg").write_bytes(make_photo(seed, size))
    (folder / "secret.jpg").write_bytes(make_photo(9))
    with open_store(f"faiss:{folder}/store", "images") as store:
        assert Ingestor(store, tiny_model).ingest(list(expand([str(photos)]))).added == 3
        row = next(store.iterate(with_embeddings=True))
        store.upsert(
            [replace(row, id="text", kind="text", caption="a text"), replace(row, id="gone", source="/no.jpg")]
        )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder / "cache"))
        with testing.TestClient(create_app(Settings(store=f"faiss:{folder}/store", model=tiny_model))) as opened:
            deadline = time.monotonic() + 60
            while opened.get("/health/ready").status_code != 200:
                assert time.monotonic() < deadline
                time.sleep(0.05)
            yield opened


def ids(client) -> dict[str, str]:
    hits = client.post("/v1/search", json={"text": "photo", "k": 10}).json()["hits"]
    return {Path(hit["source"]).name: hit["id"] for hit in hits}


def size_of(content: bytes) -> tuple[int, int]:
    with Image.open(io.BytesIO(content)) as image:
        assert image.format == "JPEG"
        return image.size


@pytest.mark.parametrize(("asked", "side"), [(1, 160), (160, 160), (161, 320), (320, 320), (1000, 1280)])
def test_a_thumbnail_has_the_next_size_and_no_photo_grows(client, asked: int, side: int) -> None:
    found = ids(client)
    for name, (width, height) in {"0.jpg": (900, 600), "1.jpg": (60, 90)}.items():
        answer = client.get(f"/v1/rows/{found[name]}/thumbnail", params={"size": asked})
        scale = min(1, side / max(width, height))
        assert size_of(answer.content) == (round(width * scale), round(height * scale))
        assert answer.headers["content-type"] == "image/jpeg"
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "immutable" in answer.headers["cache-control"]


def test_what_the_browser_has_is_not_sent_again(client) -> None:
    place = f"/v1/rows/{ids(client)['0.jpg']}/picture"
    first = client.get(place)
    again = client.get(place, headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    other = client.get(place.replace("picture", "thumbnail"), headers={"If-None-Match": first.headers["etag"]})
    assert other.status_code == 200


def test_a_picture_is_made_once(client, monkeypatch: pytest.MonkeyPatch) -> None:
    made = []
    monkeypatch.setattr(pictures, "thumbnail", lambda *given: made.append(given) or make_photo(1))
    place = f"/v1/rows/{ids(client)['2.jpg']}/thumbnail?size=640"
    answers = [client.get(place) for _ in range(3)]
    assert len(made) == 1
    assert len({answer.content for answer in answers}) == 1


@pytest.mark.parametrize(
    "id", ["0" * 64, "text", "gone", "..%2F..%2Fsecret.jpg", "%2Fetc%2Fpasswd", "..", "a'; DROP TABLE rows", "x" * 64]
)
@pytest.mark.parametrize("what", ["thumbnail", "picture"])
def test_only_photos_of_the_collection_are_served(client, id: str, what: str) -> None:
    answer = client.get(f"/v1/rows/{id}/{what}")
    assert answer.status_code == 404, answer.text
    assert answer.json()["code"] in ("row_not_found", "no_picture", "not_found")
    assert len(answer.json()["error"].splitlines()) == 1


def test_a_file_with_another_content_is_not_served(client, folder: Path) -> None:
    path = folder / "photos" / "2.jpg"
    before, id = path.read_bytes(), ids(client)["2.jpg"]
    shutil.copy(folder / "secret.jpg", path)
    try:
        answer = client.get(f"/v1/rows/{id}/thumbnail?size=1280")
        assert answer.status_code == 404
        assert "another content" in answer.json()["error"]
    finally:
        path.write_bytes(before)
    assert client.get(f"/v1/rows/{id}/thumbnail?size=1280").status_code == 200


def test_pages_come_with_their_policy_and_without_anything_from_elsewhere(client) -> None:
    for path in ("/", "/runs"):
        answer = client.get(path)
        assert answer.headers["content-security-policy"].startswith("default-src 'self'")
        assert "<script>" not in answer.text
        assert " style=" not in answer.text
        assert "http" not in answer.text
        for name in answer.text.split('="assets/')[1:]:
            asset = client.get("/assets/" + name.partition('"')[0])
            assert asset.status_code == 200
            again = client.get(asset.url.path, headers={"If-None-Match": asset.headers["etag"]})
            assert again.status_code == 304


@pytest.mark.parametrize("name", ["..%2Fapp.py", "app.py", "%2Fetc%2Fpasswd", "", "page.css%00"])
def test_only_the_files_of_the_pages_are_assets(client, name: str) -> None:
    assert client.get(f"/assets/{name}").status_code in (404, 422)


def test_why_is_told_for_photos_of_the_collection(client) -> None:
    (info,) = client.get("/v1/collections").json()
    assert info["words"] is True
    id = ids(client)["0.jpg"]
    told = client.post(f"/v1/rows/{id}/why", json={"text": "a red bus"}).json()
    assert [word["text"] for word in told["words"]] == ["a", "red", "bus"]
    assert len(told["weights"]) == 3
    assert {len(row) for row in told["weights"]} == {len(told["regions"])} == {len(told["names"])}
    assert client.post("/v1/rows/unknown/why", json={"text": "a"}).status_code == 404
    assert client.post(f"/v1/rows/{id}/why", json={"text": " "}).status_code == 400
    assert client.post(f"/v1/rows/{id}/why", json={}).status_code == 422
    assert client.post("/v1/rows/gone/why", json={"text": "a"}).status_code == 400  # it has no region data


def test_runs_and_failures_are_empty_and_a_retry_is_off(client) -> None:
    assert client.get("/v1/runs").json() == []
    assert client.get("/v1/runs/none").status_code == 404
    assert client.get("/v1/failures").json() == {"total": 0, "failures": []}
    assert client.post("/v1/failures/retry", json={}).status_code == 403
