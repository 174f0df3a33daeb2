"""Manifests: one photo or text per line."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from ldot_milvus.errors import InputError, UsageError
from ldot_milvus.sources import Source, expand, read
from tests.unit.sources.test_sources import jpeg, make_tar, refused, touch, unreadable


def manifest(path: Path, *lines: dict[str, Any] | bytes) -> str:
    return touch(path, b"\n".join(line if isinstance(line, bytes) else json.dumps(line).encode() for line in lines))


def test_photos_and_what_is_said_of_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    touch(tmp_path / "in/a.jpg", b"a"), touch(tmp_path / "b.jpg", b"b"), touch(tmp_path / "c.jpg", b"c")
    path = manifest(
        tmp_path / "in/m.jsonl",
        {"path": "a.jpg", "id": "one", "caption": "a dog", "namespace": "me", "metadata": {"album": "x"}, "year": 1999},
        {"file": "../b.jpg", "captions": ["a", "b"]},
        b"",
        {"path": str(tmp_path / "c.jpg"), "metadata": "not an object, so a field"},
    )
    monkeypatch.chdir(tmp_path)
    found = list(expand(["in/m.jsonl"]))
    assert list(expand([path])) != found  # paths stay as given
    monkeypatch.chdir("/")
    assert [read(Source.from_dict(json.loads(json.dumps(source.to_dict())))) for source in found] == [b"a", b"b", b"c"]
    one, two, three = found
    assert (one.id, one.caption, one.namespace, one.kind) == ("one", "a dog", "me", "image")
    assert one.metadata == {"album": "x", "year": 1999}
    assert (two.path, two.id, two.caption) == ("in/../b.jpg", None, "a\nb")
    assert three.metadata == {"metadata": "not an object, so a field"}


def test_texts(tmp_path: Path) -> None:
    path = manifest(
        tmp_path / "t.jsonl",
        {"text": "two dogs in the snow", "topic": 3},
        {"text": "ein Hund", "id": "t2", "namespace": "de"},
        {"text": " \n"},
        {"text": "x" * 8193},
        {"text": 5},
        {"text": "a", "caption": "b"},
        {"text": "a", "path": "b.jpg"},
    )
    first, second, *bad = expand([path])
    assert (first.kind, first.caption, first.source, first.metadata) == (
        "text", "two dogs in the snow", f"{path}:1", {"topic": 3},
    )  # fmt: skip
    assert read(first) == b"two dogs in the snow"
    assert (second.id, second.namespace) == ("t2", "de")
    reasons = [unreadable(source) for source in bad]
    assert [source.name for source in bad] == [f"{path}:{number}" for number in range(3, 8)]
    expected = [
        "must be a string that is not empty",
        "longer than 8192",
        "must be a string",
        'must not have a "caption"',
        "path and text",
    ]
    for reason, words in zip(reasons, expected, strict=True):
        assert words in reason


def test_a_bad_line_is_its_own_trouble(tmp_path: Path) -> None:
    """An invalid line does not affect the others."""
    touch(tmp_path / "a.jpg", b"a")
    shard = make_tar(tmp_path / "s.tar", {"x.jpg": jpeg(), "x.json": b'{"caption": "old", "k": 1}'})
    path = manifest(
        tmp_path / "m.jsonl",
        {"path": "a.jpg"}, b"{", b"[]", {"caption": "of nothing"}, b'{"path": "\xff"}', {"path": "gone.jpg"},
        {"path": "m.jsonl"}, {"path": "ftp://host/x.jpg"}, {"path": "a.jpg", "id": ""}, {"path": "a\0b"},
        {"path": shard, "caption": "new", "l": 2},
    )  # fmt: skip
    good, *bad, member = expand([path])
    assert read(good) == b"a"
    assert (member.member, member.caption, member.metadata) == ("x.jpg", "new", {"k": 1, "l": 2})
    expected = [
        "not JSON", "not a JSON object", 'one of "path", "url" and "text"', "not UTF-8", "no such file",
        "a list inside a list", "the scheme ftp is not supported", '"id" must not be empty', "embedded null",
    ]  # fmt: skip
    for source, words in zip(bad, expected, strict=True):
        with pytest.raises(InputError) as caught:
            read(source)
        assert words in str(caught.value)


def test_the_first_line_tells_whether_it_is_a_manifest(tmp_path: Path) -> None:
    path = manifest(tmp_path / "m.jsonl", b"", b"not JSON", {"path": "a.jpg"})
    assert refused(path) == f"{path}:2: not JSON: Expecting value at character 1"
    assert 'one of "path", "url" and "text"' in refused(manifest(tmp_path / "n.jsonl", {"image": "a.jpg"}))
    assert "it contains no image" in refused(manifest(tmp_path / "e.jsonl"))
    with pytest.raises(UsageError, match="no such file"):
        expand([str(tmp_path / "gone.jsonl")])


def test_a_million_lines_are_not_held(tmp_path: Path) -> None:
    """Lines are read lazily."""
    path = tmp_path / "m.jsonl"
    path.write_text('{"text": "one"}\n')
    found = expand([str(path)])
    assert next(found).caption == "one"
    with path.open("a") as file:
        file.write('{"text": "two"}\n')
    assert [source.caption for source in found] == ["two"]
