"""Photos, tar files, lists and region data in a bucket work as in a folder."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from ldot_milvus import Retriever, open_store
from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.images import files
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import Source, expand, locate, read, read_all
from ldot_milvus.sources.metadata import load_metadata
from ldot_milvus.sources.selection import Skipped
from tests.conftest import make_photo
from tests.unit.sources.test_sources import make_tar

pytestmark = [pytest.mark.servers, pytest.mark.xdist_group("s3")]


def put(bucket: str, name: str, data: bytes) -> str:
    import s3fs

    s3fs.S3FileSystem().pipe_file(f"{bucket}/{name}", data)
    return f"s3://{bucket}/{name}"


def paths(*given: str) -> list[str]:
    return [source.path for source in expand(given)]


def refused(*given: str) -> str:
    with pytest.raises(UsageError) as caught:
        expand(given)
    return str(caught.value)


def test_a_bucket_is_a_folder(bucket: str) -> None:
    names = ["photos/a.jpg", "photos/b b/ü?#[1].PNG", "photos/c.webp"]
    wanted = [put(bucket, name, name.encode()) for name in names]
    for name in ("photos/.hidden.jpg", "photos/.git/x.jpg", "photos/notes.txt", "photos2/other.jpg"):
        put(bucket, name, b"x")
    put(bucket, "photos/b b/", b"")  # as consoles make folders
    for given in (f"s3://{bucket}/photos", f"s3://{bucket}/photos/"):
        found = list(expand([given]))
        assert [source.path for source in found] == wanted
        travelled = [Source.from_dict(json.loads(json.dumps(source.to_dict()))) for source in found]
        assert list(read_all(travelled)) == [name.encode() for name in names]
    assert paths(f"s3://{bucket}/photos/*.jpg") == wanted[:1]
    assert paths(f"s3://{bucket}/**/*.webp") == wanted[2:]
    assert paths(wanted[1]) == wanted[1:2]
    late = put(bucket, "photos/late.jpg", b"x")
    assert paths(f"s3://{bucket}/photos") == [*wanted, late]


def test_what_a_bucket_holds_besides_photos_is_counted(bucket: str) -> None:
    wanted = put(bucket, "photos/a.jpg", b"x")
    for name in (".hidden.jpg", ".git/x.jpg", "x.mov", "@eaDir/a.jpg/T.jpg", "b/y.gif", "s.tar"):
        put(bucket, f"photos/{name}", b"x")
    skipped = Skipped()
    found = list(expand([f"s3://{bucket}/photos"], exclude=["*.gif"], skipped=skipped))
    assert [source.path for source in found] == [wanted]
    assert {reason.what: count for reason, count in skipped.counts.items()} == {
        "hidden files and folders": 2, "videos": 1, "system folders": 1,
        "excluded files and folders": 1, "tar files": 1,
    }  # fmt: skip
    assert paths(f"s3://{bucket}/photos/**/*.jpg") == [wanted]


def test_what_is_not_there(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket, "texts/a.md", b"x")
    assert "no such file or folder" in refused(f"s3://{bucket}/gone")
    assert "no such file or folder" in refused("s3://no-such-bucket/x.jpg")
    assert "it contains no image" in refused(f"s3://{bucket}/texts")
    assert "no file matches" in refused(f"s3://{bucket}/*.jpg")
    assert "region features are read from local files only" in refused(put(bucket, "x.tsv", b"x"))
    with pytest.raises(InputError, match="no such file"):
        read(Source(f"s3://{bucket}/gone.jpg"))
    assert read(Source(put(bucket, "empty.jpg", b""))) == b""
    large = put(bucket, "large.jpg", bytes(2001))
    monkeypatch.setattr(files, "MAX_BYTES", 2000)
    with pytest.raises(InputError, match="2,001 bytes are more than the limit"):
        read(Source(large))
    assert {source.problem for source in expand([f"s3://{bucket}/"]) if source.path == large} == {
        "2,001 bytes are more than the limit of 2,000 bytes"
    }


def test_a_store_that_is_down(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """The caller gets a message of one line, and a worker a failure for each photo, without a traceback."""
    import s3fs

    monkeypatch.setenv("AWS_ENDPOINT_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("AWS_MAX_ATTEMPTS", "1")
    monkeypatch.setattr(s3fs.S3FileSystem, "retries", 1)
    with monkeypatch.context() as patch:
        patch.setattr(s3fs.S3FileSystem, "_cache", {})
        assert "s3://bucket/photos: " in refused("s3://bucket/photos")
        with pytest.raises(InputError, match=r"^s3://bucket/a\.jpg: "):
            read(Source("s3://bucket/a.jpg"))


def test_a_missing_package_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec  # noqa: F401  (its registry may hold s3fs already)

    monkeypatch.setitem(sys.modules, "s3fs", None)
    monkeypatch.delitem(sys.modules["fsspec.registry"]._registry, "s3", raising=False)
    assert "pip install 'ldot-milvus[s3]'" in refused("s3://bucket/photos")


def test_tars_lists_and_manifests(bucket: str, tmp_path: Path) -> None:
    members = {f"{n}.jpg": make_photo(n) for n in range(3)} | {"1.json": b'{"caption": "one"}'}
    shard = put(bucket, "shards/s.tar", Path(make_tar(tmp_path / "s.tar", members)).read_bytes())
    found = list(expand([shard]))
    assert [source.member for source in found] == ["0.jpg", "1.jpg", "2.jpg"]
    assert [source.caption for source in found] == ["", "one", ""]
    assert list(read_all(found)) == [members[f"{n}.jpg"] for n in range(3)]
    assert found[1].source == f"{shard}/1.jpg"
    assert read(locate(found[1].source)) == members["1.jpg"]
    torn = put(bucket, "torn.tar", Path(tmp_path / "s.tar").read_bytes()[:3000])
    assert "damaged or truncated" in (list(expand([torn]))[-1].problem or "")

    near = put(bucket, "lists/near.jpg", b"near")
    far = put(bucket, "photos/far.jpg", b"far")
    listing = put(bucket, "lists/l.txt", f"near.jpg\n{far}\n{shard}\ngone.jpg\n".encode())
    found = list(expand([listing]))
    assert [source.source for source in found[:2]] == [near, far]
    assert [source.member for source in found[2:5]] == ["0.jpg", "1.jpg", "2.jpg"]
    assert isinstance(list(read_all(found))[5], InputError)
    lines = [{"path": "near.jpg", "id": "n"}, {"path": far, "caption": "far away"}, {"text": "a text"}]
    manifest = put(bucket, "lists/m.jsonl", "\n".join(map(json.dumps, lines)).encode())
    found = list(expand([manifest]))
    assert [(source.path, source.id, source.caption) for source in found[:2]] == [
        (near, "n", ""),
        (far, None, "far away"),
    ]
    assert list(read_all(found)) == [b"near", b"far", b"a text"]
    local = tmp_path / "l.txt"
    local.write_text(f"{far}\n")
    assert paths(str(local)) == [far]


def test_from_a_bucket_to_a_re_ranked_answer(bucket: str, tiny, tiny_model: str, tmp_path: Path) -> None:
    """Photos and region data both in the bucket; a second run reads and changes nothing."""
    for n in range(5):
        put(bucket, f"photos/{n}.jpg", make_photo(n))
    put(bucket, "photos/bad.jpg", b"\xff\xd8\xff no photo")
    meta = tmp_path / "m.jsonl"
    meta.write_text('{"file": "3.jpg", "caption": "three", "album": "x"}')
    sources = list(expand([f"s3://{bucket}/photos"], metadata=load_metadata(str(meta))))
    with open_store(f"faiss:{tmp_path / 'store'}", "photos") as store:
        ingestor = Ingestor(store, tiny_model, region_store=f"s3://{bucket}/regions")
        report = ingestor.ingest(sources)
        assert report.added == 5
        assert [failure.source for failure in report.failed] == [f"s3://{bucket}/photos/bad.jpg"]
        hits = Retriever(tiny, store, ingestor.region_store).search("a red square", k=5, rerank=5)
        assert len(hits) == 5
        assert all(hit.rerank_score is not None for hit in hits)
        (third,) = (hit for hit in hits if hit.caption == "three")
        assert (third.source, third.metadata) == (f"s3://{bucket}/photos/3.jpg", {"album": "x"})
        again = Ingestor(store, tiny_model, region_store=f"s3://{bucket}/regions")
        assert again.ingest(sources[:5]).unchanged == 5
        assert "embedder" not in vars(again)
