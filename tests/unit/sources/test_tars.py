"""Tars as webdataset and img2dataset write them, and their captions."""

from __future__ import annotations

import itertools
import json
from pathlib import Path

import pytest

from ldot_milvus.sources import expand, locate, read
from tests.unit.sources.test_sources import jpeg, make_tar, unreadable


def captions(path: str) -> dict[str | None, str]:
    return {source.member: source.caption for source in expand([path])}


def test_captions_from_json_and_text_are_kept_in_order_once(tmp_path: Path) -> None:
    texts = {
        "a.txt": "\ufeffone\ntwo\n".encode(),
        "a.json": json.dumps({"caption": "two", "captions": ["two", "three"], "album": "x"}).encode(),
        "a.jpg": jpeg(),
    }
    for number, order in enumerate(itertools.permutations(texts)):
        path = make_tar(tmp_path / f"{number}.tar", {name: texts[name] for name in order})
        (source,) = expand([path])
        text_first = order.index("a.txt") < order.index("a.json")
        assert source.caption == ("one\ntwo\nthree" if text_first else "two\nthree\none")
        assert source.metadata == {"album": "x"}


def test_a_caption_beside_captions_is_kept(tmp_path: Path) -> None:
    for own, joined in (("zero", "zero\none"), ("one", "one"), ("", "one"), (None, "one")):
        sidecar = json.dumps({"caption": own, "captions": ["one"]}).encode()
        path = make_tar(tmp_path / "s.tar", {"a.jpg": jpeg(), "a.json": sidecar})
        assert captions(path) == {"a.jpg": joined}


@pytest.mark.parametrize(
    ("members", "expected"),
    [
        ({"s1.input.jpg": "", "s1.outputs.txt": "a bus", "s1.json": '{"caption": "b"}'}, {"s1.input.jpg": "a bus\nb"}),
        ({"v1.4/s2.jpg": "", "v1.4/s2.json": '{"caption": "c"}'}, {"v1.4/s2.jpg": "c"}),
        ({"v1.4/s2.jpg": "", "v1.5/s2.txt": "c"}, {"v1.4/s2.jpg": ""}),
        ({"a.1.jpg": "", "a.2.jpg": "", "a.txt": "both"}, {"a.1.jpg": "both", "a.2.jpg": "both"}),
        # NAME.txt describes NAME.jpg, even where both names have a dot
        ({"a.1.jpg": "", "a.2.jpg": "", "a.1.txt": "1", "a.2.txt": "2"}, {"a.1.jpg": "1", "a.2.jpg": "2"}),
        ({"a.jpg": "", "A.TXT": "another key", "a.TXT": "yes"}, {"a.jpg": "yes"}),
        ({"a.jpg": "", "a.txt": " \n"}, {"a.jpg": ""}),
    ],
)
def test_keys(tmp_path: Path, members: dict[str, str], expected: dict[str, str]) -> None:
    content = {name: text.encode() or jpeg() for name, text in members.items()}
    assert captions(make_tar(tmp_path / "s.tar", content)) == expected
    assert captions(make_tar(tmp_path / "r.tar", dict(reversed(content.items())))).keys() == expected.keys()


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("a.txt", b"\xff\xfe", "its .txt file: not UTF-8"),
        ("a.txt", b"x" * 8193, 'its .txt file: "caption" is longer than 8192 bytes'),
        ("a.json", b"[]", "its .json file: not a JSON object"),
    ],
)
def test_an_invalid_description_fails_its_photo_alone(tmp_path: Path, name: str, content: bytes, reason: str) -> None:
    bad, good = expand([make_tar(tmp_path / "s.tar", {"a.jpg": jpeg(), name: content, "b.jpg": jpeg()})])
    assert unreadable(bad) == reason
    assert good.problem is None
    sidecars = {"a.jpg": jpeg(), "a.txt": b"x" * 5000, "a.json": json.dumps({"caption": "y" * 5000}).encode()}
    (joined,) = expand([make_tar(tmp_path / "long.tar", sidecars)])
    assert "longer than 8192" in unreadable(joined)


def test_concatenated_tars_are_read_to_the_end(tmp_path: Path) -> None:
    parts = [
        make_tar(tmp_path / f"{n}.tar", {f"{n}.jpg": jpeg() + bytes([n]), f"{n}.txt": f"caption {n}".encode()})
        for n in range(3)
    ]
    empty = make_tar(tmp_path / "empty.tar", {})
    order = [empty, parts[0], parts[1], empty, empty, parts[2], empty]
    data = [Path(part).read_bytes() for part in order]
    whole = tmp_path / "cat.tar"
    for pieces in (data, [piece.rstrip(b"\0") + bytes(-len(piece.rstrip(b"\0")) % 512 + 512) for piece in data[1:3]]):
        whole.write_bytes(b"".join(pieces))
        found = list(expand([str(whole)]))
        assert [source.problem for source in found] == [None] * len(found)
        assert [read(source)[-1] for source in found] == list(range(len(found)))
        assert [source.caption for source in found] == [f"caption {n}" for n in range(len(found))]
        assert len(found) >= 2
    whole.write_bytes(b"".join(data))
    assert read(locate(f"{whole}/2.jpg"))[-1] == 2  # as search finds it again


def test_what_follows_a_tar_and_is_none_is_told(tmp_path: Path) -> None:
    whole = Path(make_tar(tmp_path / "s.tar", {"a.jpg": jpeg()}))
    whole.write_bytes(whole.read_bytes() + b"no tar" * 200)
    good, problem = expand([str(whole)])
    assert good.problem is None
    assert "damaged or truncated after a.jpg" in unreadable(problem)
