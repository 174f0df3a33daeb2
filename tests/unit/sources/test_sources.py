"""Expansion of paths, and changes of the file system between listing and reading."""

import io
import json
import os
import shutil
import tarfile
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from ldot_milvus.errors import InputError, UsageError, printable
from ldot_milvus.images import decode, files
from ldot_milvus.sources import Source, expand, locate, read
from ldot_milvus.sources.base import source_at
from ldot_milvus.sources.metadata import load_metadata


def jpeg(colour: str = "red") -> bytes:
    out = io.BytesIO()
    Image.new("RGB", (8, 8), colour).save(out, "JPEG")
    return out.getvalue()


def touch(path: Path, data: bytes = b"x") -> str:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(data)
    return str(path)


def paths(*given: object, **options: Any) -> list[str]:
    return [source.path for source in expand([str(path) for path in given], **options)]


def make_tar(path: Path, members: dict[str, bytes], mode: str = "w") -> str:
    with tarfile.open(path, mode) as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    return str(path)


def refused(*given: object, **options: Any) -> str:
    with pytest.raises(UsageError) as caught:
        expand([str(path) for path in given], **options)  # at once, not at the first source
    return str(caught.value)


def unreadable(source: Source) -> str:
    with pytest.raises(InputError) as caught:
        read(source)
    message = str(caught.value)
    assert message.startswith(f"{source.name}: ")
    assert message.count(source.name) == 1
    assert message.isprintable()
    return message.removeprefix(f"{source.name}: ")


def test_a_named_file_is_taken_whatever_its_suffix(tmp_path: Path) -> None:
    odd = touch(tmp_path / "photo.dat", jpeg())
    (only,) = expand([odd])
    assert (only.path, only.name, only.source, only.namespace) == (odd, odd, odd, "default")
    assert decode(read(only), name=only.name).width == 8


def test_a_folder_is_recursive_sorted_and_shows_images_only(tmp_path: Path) -> None:
    wanted = [touch(tmp_path / name) for name in ("a.jpg", "b/c.PNG", "b/d.webp", "c.jpg/e.tiff", "f.jfif")]
    for name in (".hidden.jpg", ".git/x.jpg", "b/notes.txt", "x.json", "b/shard.tar"):
        touch(tmp_path / name)
    assert paths(tmp_path) == wanted
    assert paths(f"{tmp_path}/") == wanted


def test_the_path_stays_as_given_and_a_worker_finds_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "photos/a.jpg", b"hello")
    monkeypatch.chdir(tmp_path)
    (source,) = expand(["photos"])
    assert (source.path, source.name, source.source) == ("photos/a.jpg", "photos/a.jpg", str(tmp_path / "photos/a.jpg"))
    monkeypatch.chdir("/")
    assert read(Source.from_dict(json.loads(json.dumps(source.to_dict())))) == b"hello"


def test_nothing_is_opened_while_listing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.jpg")
    monkeypatch.setattr("builtins.open", lambda *_: pytest.fail("opened a photo"))
    assert len(paths(tmp_path, tmp_path / "a.jpg")) == 2


def test_links(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    touch(outside / "secret.jpg")
    root = tmp_path / "root"
    real = touch(root / "real/a.jpg")
    (root / "inside.jpg").symlink_to(real)
    (root / "circle").symlink_to(root)
    (root / "self.jpg").symlink_to(root / "self.jpg")
    (root / "out.jpg").symlink_to(outside / "secret.jpg")
    (root / "out").symlink_to(outside)
    (root / "out.txt").symlink_to(outside / "secret.jpg")
    found = {os.path.relpath(source.path, root): source for source in expand([str(root)])}
    assert set(found) == {"real/a.jpg", "inside.jpg", "self.jpg", "out.jpg", "out"}
    assert read(found["inside.jpg"]) == b"x"
    for name in ("out.jpg", "out"):
        assert "a link out of" in unreadable(found[name])
    assert unreadable(found["self.jpg"])
    (tmp_path / "alias").symlink_to(root)  # the root itself may be a link
    assert str(tmp_path / "alias/real/a.jpg") in paths(tmp_path / "alias")


def test_patterns(tmp_path: Path) -> None:
    wanted = [touch(tmp_path / name) for name in ("a1.jpg", "a2.jpg", "sub/a3.jpg")]
    touch(tmp_path / "b.png")
    assert paths(tmp_path / "a?.jpg") == wanted[:2]
    assert paths(tmp_path / "**/a*") == wanted
    assert paths(tmp_path / "s*") == wanted[2:]
    assert "no file matches this pattern" in refused(tmp_path / "z*.jpg")
    literal = touch(tmp_path / "x[1].jpg")
    assert paths(literal) == [literal]


def test_usage_errors_name_the_path_and_come_before_anything(tmp_path: Path) -> None:
    good = touch(tmp_path / "a.jpg")
    (tmp_path / "empty").mkdir()
    touch(tmp_path / "texts/readme.md")
    assert refused(good, tmp_path / "gone") == f"{tmp_path}/gone: no such file or folder"
    assert refused(f"{good}/x.jpg") == f"{good}/x.jpg: no such file or folder"
    assert f"{tmp_path}/empty: it contains no image" in refused(good, tmp_path / "empty")
    assert "it contains no image" in refused(tmp_path / "texts")
    assert "LDOT_ALLOW_URLS=true" in refused("https://example.com/a.jpg")
    assert "the scheme ftp is not supported" in refused("ftp://example.com/a.jpg")
    assert "no such file" in refused("")
    assert "no such file" in refused("a\0b")
    assert refused("two\nlines") == "two\\nlines: no such file or folder"


def deny_listing(monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """Make the call itself fail, since root can list a folder of any mode."""
    scandir = os.scandir

    def denied(path: str) -> Any:
        if os.path.basename(path) == name:
            raise PermissionError(13, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", denied)


def test_unreadable_folders(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "a.jpg")
    touch(tmp_path / "locked/b.jpg")
    deny_listing(monkeypatch, "locked")
    assert refused(tmp_path / "locked") == f"{tmp_path}/locked: no permission to read it"
    first, second = expand([str(tmp_path)])
    assert first.path.endswith("a.jpg")
    assert "no permission" in unreadable(second)


def test_reading_what_changed_since(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = touch(tmp_path / "a.jpg", bytes(2000))
    (source,) = expand([path])
    os.remove(path)
    assert unreadable(source) == "no such file"
    os.mkdir(path)
    assert "a folder" in unreadable(source)
    os.rmdir(path)
    os.mkfifo(path)
    assert "pipe" in unreadable(source)  # opening it would hang
    os.remove(path)
    touch(tmp_path / "a.jpg", bytes(2000))
    monkeypatch.setattr(files, "MAX_BYTES", 1999)
    assert unreadable(source) == "2,000 bytes are more than the limit of 1,999 bytes"
    assert "embedded null" in unreadable(Source("a\0b"))  # "byte" or "character", as this Python says


def test_addresses_that_no_listing_lets_through() -> None:
    """A source may come from another program, or from a row."""
    assert "the scheme ftp is not supported" in unreadable(Source("ftp://host/a.jpg"))
    with pytest.raises(InputError, match="not found from /"):
        locate("ftp://host/s.tar/a.jpg")


def test_permission_denied_on_reading(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = touch(tmp_path / "a.jpg")

    def denied(*_: object) -> None:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr("builtins.open", denied)  # root may read anything: see deny_listing
    assert unreadable(Source(path)) == "no permission to read it"


def test_odd_names_survive(tmp_path: Path) -> None:
    names = [b"two words.jpg", b"new\nline.jpg", b"latin\xe9.jpg", "грüße 写真 🐕.jpg".encode(), b"-rf.jpg"]
    for name in names:
        with open(os.path.join(os.fsencode(tmp_path), name), "wb") as file:
            file.write(name)
    found = list(expand([str(tmp_path)]))
    assert len(found) == len(names)
    for source in found:
        assert Source.from_dict(json.loads(json.dumps(source.to_dict()))) == source
        assert read(source) == os.path.basename(os.fsencode(source.path))
        source.source.encode()
        assert source.name.isprintable()
    by_name = {os.path.basename(source.name): source for source in found}
    assert {"two words.jpg", "new\\nline.jpg", "latin\\xe9.jpg", "грüße 写真 🐕.jpg"} <= set(by_name)
    assert by_name["new\\nline.jpg"].source.endswith("new\nline.jpg")
    assert printable("a\x1b[31m") == "a\\x1b[31m"


def test_a_tar_is_read_by_offset(tmp_path: Path) -> None:
    members = {
        "one.json": json.dumps({"captions": ["a dog", "a brown dog"], "album": "pets"}).encode(),
        "one.jpg": jpeg("red"),
        "deep/two.jpg": jpeg("blue"),
        "deep/two.json": b'{"caption": "sea"}',
        "three.png": b"3",
        "broken.jpg": jpeg(),
        "broken.json": b"[1]",
        "large.jpg": jpeg(),
        "large.json": json.dumps({"caption": "x" * 2**20}).encode(),
        "notes.txt": b"no",
        "._one.jpg": b"no",
        ".cache/x.jpg": b"no",
    }
    shard = make_tar(tmp_path / "shard.tar", members)
    found = {source.member: source for source in expand([shard])}
    assert list(found) == ["one.jpg", "deep/two.jpg", "three.png", "broken.jpg", "large.jpg"]
    for name in ("one.jpg", "deep/two.jpg", "three.png"):
        travelled = Source.from_dict(json.loads(json.dumps(found[name].to_dict())))
        assert read(travelled) == members[name]
    one = found["one.jpg"]
    assert (one.caption, one.metadata, one.name) == ("a dog\na brown dog", {"album": "pets"}, f"{shard}/one.jpg")
    assert (found["deep/two.jpg"].caption, found["three.png"].caption) == ("sea", "")
    assert unreadable(found["broken.jpg"]) == "its .json file: not a JSON object"
    assert "its .json file: not JSON" in unreadable(found["large.jpg"])


def test_bad_tars(tmp_path: Path) -> None:
    members = {f"{n}.jpg": jpeg() * 3 for n in range(5)}
    whole = make_tar(tmp_path / "whole.tar", members)
    packed = make_tar(tmp_path / "packed.tar.gz", members, "w:gz")
    assert "unpack it" in refused(packed)
    for name in ("x.tgz", "x.tar.zst", "x.tar.bz2"):
        assert "unpack it" in refused(touch(tmp_path / name))
    shutil.copy(packed, tmp_path / "liar.tar")
    assert "not an uncompressed tar" in refused(tmp_path / "liar.tar")
    assert "not an uncompressed tar" in refused(touch(tmp_path / "empty.tar", b""))
    assert "it contains no image" in refused(make_tar(tmp_path / "texts.tar", {"a.txt": b"a"}))
    data = Path(whole).read_bytes()
    last = list(expand([whole]))[-1]
    assert last.offset is not None
    assert last.problem is None
    # torn inside the third photo, and a header damaged in the middle, where tarfile stops without a word
    third = list(expand([whole]))[2]
    assert third.offset is not None
    *good, problem = expand([touch(tmp_path / "torn.tar", data[: third.offset + 10])])
    assert [source.member for source in good[:2]] == ["0.jpg", "1.jpg"]
    assert read(good[0]) == members["0.jpg"]
    assert "ends before" in unreadable(good[2])
    assert "damaged or truncated after 2.jpg" in unreadable(problem)
    damaged = bytearray(data)
    damaged[third.offset - 500 : third.offset - 490] = b"\xff" * 10
    *good, problem = expand([touch(tmp_path / "damaged.tar", bytes(damaged))])
    assert len(good) == 2
    assert "damaged or truncated after 1.jpg" in unreadable(problem)
    with tarfile.open(tmp_path / "links.tar", "w") as tar:
        info = tarfile.TarInfo("a.jpg")
        info.type, info.linkname = tarfile.SYMTYPE, "/etc/passwd"
        tar.addfile(info)
    (link,) = expand([str(tmp_path / "links.tar")])
    assert "not followed" in unreadable(link)


def test_lists(tmp_path: Path) -> None:
    touch(tmp_path / "in/a b.jpg"), touch(tmp_path / "in/sub/c.jpg"), touch(tmp_path / "out.jpg")
    lines = [
        "\ufeff# mine",
        "",
        "a b.jpg\r",
        "  sub  ",
        "../out.jpg",
        "gone.jpg",
        str(tmp_path / "out.jpg"),
        "list.txt",
    ]
    listing = touch(tmp_path / "in/list.txt", "\n".join(lines).encode())
    found = list(expand([listing]))
    folder = tmp_path / "in"
    expected = ["a b.jpg", "sub/c.jpg", "../out.jpg", "gone.jpg", str(tmp_path / "out.jpg"), "list.txt"]
    assert [source.path for source in found] == [os.path.join(folder, path) for path in expected]
    assert read(found[2]) == b"x"
    assert unreadable(found[3]) == "no such file"
    assert "a list inside a list" in unreadable(found[5])
    assert "list.txt:2: URLs" in refused(touch(folder / "list.txt", b"a b.jpg\nhttp://example.com/x.jpg\n"))
    assert "none of its 1 lines" in refused(touch(tmp_path / "README.txt", b"Hello, world\n"))
    assert "it contains no image" in refused(touch(tmp_path / "blank.txt", b"\n\n"))
    assert "UTF-8" in refused(touch(tmp_path / "wide.txt", "a b.jpg\n".encode("utf-16")))


def test_metadata(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/a.jpg", "sub/b.jpg", "c.jpg"):
        touch(tmp_path / "photos" / name)
    rows = [
        {"file": "sub/a.jpg", "caption": "by path", "album": "x"},
        {"file": "a.jpg", "captions": ["by", "name"], "namespace": "n", "id": "own"},
        {"file": "b.jpg", "caption": None, "year": 1999},
        {"file": "nobody.jpg", "caption": "fits nothing"},
    ]
    meta = load_metadata(touch(tmp_path / "m.jsonl", "\n\n".join(map(json.dumps, rows)).encode()))
    found = {
        source.path[len(str(tmp_path / "photos/")) + 1 :]: source
        for source in expand([str(tmp_path / "photos")], metadata=meta)
    }
    by_path, by_name = found["sub/a.jpg"], found["a.jpg"]
    assert (by_path.caption, by_path.metadata, by_path.id) == ("by path", {"album": "x"}, None)
    assert (by_name.caption, by_name.namespace, by_name.id, by_name.metadata) == ("by\nname", "n", "own", {})
    assert (found["sub/b.jpg"].caption, found["sub/b.jpg"].metadata) == ("", {"year": 1999})
    assert found["c.jpg"].metadata == {}
    as_given = load_metadata(
        touch(tmp_path / "g.jsonl", json.dumps({"file": f"{tmp_path}/photos/sub/b.jpg", "k": 1}).encode())
    )
    assert [s.metadata for s in expand([str(tmp_path / "photos")], metadata=as_given)][-1] == {"k": 1}


def test_metadata_adds_to_a_tars_own(tmp_path: Path) -> None:
    shard = make_tar(tmp_path / "s.tar", {"a.jpg": jpeg(), "a.json": b'{"caption": "old", "k": 1, "l": 2}'})
    meta = load_metadata(touch(tmp_path / "m.jsonl", b'{"file": "a.jpg", "l": 3}'))
    (source,) = expand([shard], metadata=meta)
    assert (source.caption, source.metadata) == ("old", {"k": 1, "l": 3})


def test_an_id_serves_one_photo(tmp_path: Path) -> None:
    for name in ("a.jpg", "sub/a.jpg"):
        touch(tmp_path / name)
    meta = load_metadata(touch(tmp_path / "m.jsonl", b'{"file": "a.jpg", "id": "one"}'))
    first, second, again, _ = expand([str(tmp_path), str(tmp_path)], metadata=meta)
    assert (first.id, first.problem, again.problem) == ("one", None, None)
    assert unreadable(second) == f"duplicate id: 'one' is already the id of {tmp_path}/a.jpg"


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        (b"{", "not JSON"),
        (b"[]", "not a JSON object"),
        (b"{}", '"file" is missing'),
        (b'{"file": 3}', '"file" is missing'),
        (b'{"file": "x.jpg", "id": "2"}', 'it occurs twice, with the id "1" and "2"'),
        (b'{"file": "a", "id": 7}', '"id" must be a string'),
        (b'{"file": "a", "id": ""}', '"id" must not be empty'),
        (b'{"file": "a", "id": "%s"}' % (b"x" * 65), "longer than 64"),
        (b'{"file": "a", "captions": [1]}', '"caption" must be a string'),
        (b'{"file": "a", "caption": "%s"}' % (b"x" * 8193), "longer than 8192"),
        (b'{"file": "a", "v": NaN}', "NaN is not JSON"),
        (b'{"file": "a", "v": "\\ud800"}', "surrogate"),
        (b'{"file": "a", "v": "\xff"}', "not UTF-8"),
        (b'{"file": "a", "v": ' + b"[" * 100_000, "nested too deeply"),
    ],
)
def test_malformed_metadata_names_file_and_line(tmp_path: Path, line: bytes, reason: str) -> None:
    path = touch(tmp_path / "m.jsonl", b'{"file": "x.jpg", "id": "1"}\n\n' + line)
    with pytest.raises(UsageError, match=reason) as caught:
        load_metadata(path)
    assert str(caught.value).startswith(f"{path}:3: ")
    with pytest.raises(UsageError, match="no such file"):
        load_metadata(str(tmp_path / "gone.jsonl"))


@pytest.mark.parametrize(
    ("given", "member", "stored"),
    [
        ("a.jpg", None, "{here}/a.jpg"),
        ("./b//../a.jpg", None, "{here}/a.jpg"),
        ("//data/./a.jpg", None, "/data/a.jpg"),
        ("link/../a.jpg", None, "{far}/a.jpg"),  # as the operating system reads it
        ("link/a.jpg", None, "{here}/link/a.jpg"),
        ("./s.tar", "./a/../b.jpg", "{here}/s.tar/./a/../b.jpg"),  # a member's name is no path
        ("..a/..b.jpg", None, "{here}/..a/..b.jpg"),
        ("s3://bucket/a/../b.jpg", None, "s3://bucket/a/../b.jpg"),
        ("caf\udce9.jpg", None, "{here}/caf\\xe9.jpg"),
    ],
)
def test_sources_are_absolute_and_normalised(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, given: str, member: str | None, stored: str
) -> None:
    here, far = tmp_path / "here", tmp_path / "far"
    (far / "inner").mkdir(parents=True)
    (here / "b").mkdir(parents=True)
    (here / "link").symlink_to(far / "inner")
    monkeypatch.chdir(here)
    source = source_at(given, member=member)
    monkeypatch.chdir("/")
    assert Source.from_dict(source.to_dict()).source == stored.format(here=here, far=far)
