"""What folders, tars and patterns hold besides photos is counted by reason: nothing is passed over in silence."""

from __future__ import annotations

import json
import os
import unicodedata
from pathlib import Path

import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.images import formats
from ldot_milvus.sources import expand
from ldot_milvus.sources.metadata import load_metadata
from ldot_milvus.sources.selection import NO_PHOTO, Selection, Skipped
from tests.unit.sources.test_sources import jpeg, make_tar, refused, touch

SEEN = {
    "a.jpg": None, "b/c.PNG": None, "d.avif": None, "e.mpo": None, "f.jif": None,
    "x.HEIC": "HEIC photos", "x.heif": "HEIC photos", "x.DNG": "RAW photos", "b/x.cr2": "RAW photos",
    "x.jxl": "pictures of other formats", "x.svg": "pictures of other formats", "x.mov": "videos",
    "x.zip": "archives", "x.tar.gz": "archives", "x.tgz": "archives", "shards/x.tar": "tar files",
    "x.npz": "files of region features", "x.jpg_original": "other files", "b/Thumbs.db": "other files",
    "noext": "other files", ".hidden.jpg": "hidden files and folders", ".git/x.jpg": "hidden files and folders",
    "@eaDir/a.jpg/THUMB_M.jpg": "system folders", "b/#recycle/old.jpg": "system folders",
    "$Recycle.Bin/S-1-5/$R1.jpg": "system folders", "__MACOSX/x.jpg": "system folders",
}  # fmt: skip
"""Each file of a folder, and the reason why it is not ingested."""


@pytest.fixture
def without_heic(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(formats, "installed", lambda format: format != "HEIF")


def listed(*paths: object, exclude: tuple[str, ...] = ()) -> tuple[list[str], dict[str, int]]:
    """The paths of the sources, and the counts by reason."""
    skipped = Skipped()
    found = [source.name for source in expand([str(path) for path in paths], exclude=exclude, skipped=skipped)]
    return found, {reason.what: count for reason, count in skipped.counts.items()}


@pytest.mark.usefixtures("without_heic")
def test_every_file_is_yielded_or_counted(tmp_path: Path) -> None:
    for name in SEEN:
        touch(tmp_path / name)
    expected: dict[str, int] = {}
    for reason in SEEN.values():
        if reason is not None:
            expected[reason] = expected.get(reason, 0) + 1
    found, counts = listed(tmp_path)
    assert sorted(os.path.relpath(name, tmp_path) for name in found) == [n for n in SEEN if SEEN[n] is None]
    assert counts == expected  # each system folder of the table holds one file, and is counted once
    assert listed(tmp_path, tmp_path)[1] == {reason: 2 * count for reason, count in counts.items()}


@pytest.mark.usefixtures("without_heic")
def test_a_tar_counts_the_same(tmp_path: Path) -> None:
    members = dict.fromkeys(SEEN, b"x") | {"lost.json": b"{}", "notes.txt": b"x"}
    found, counts = listed(make_tar(tmp_path / "s.tar", members))
    assert len(found) == sum(reason is None for reason in SEEN.values())
    assert counts.pop(".json and .txt files in tars that fit no photo") == 2
    assert sum(counts.values()) == len(SEEN) - len(found)


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("IMG_1.HEIC", "HEIC photos: 1 ({}): pip install 'ldot-milvus[heic]'"),
        ("shard.tar", "tar files: 1 ({}): give them as PATH"),
        ("backup.zip", "archives: 1 ({}): unpack them"),
    ],
)
@pytest.mark.usefixtures("without_heic")
def test_a_folder_without_photos_says_what_it_holds(tmp_path: Path, name: str, words: str) -> None:
    path = touch(tmp_path / name)
    assert f"it contains no image, but {words.format(path)}" in refused(tmp_path)


def test_an_archive_as_path_is_refused(tmp_path: Path) -> None:
    for name in ("x.zip", "x.rar", "x.7z"):
        assert "archives are not read: unpack it" in refused(touch(tmp_path / name))


def test_a_system_folder_is_read_if_it_is_named(tmp_path: Path) -> None:
    thumb = touch(tmp_path / "ph/@eaDir/a.jpg/T.jpg")
    kept = touch(tmp_path / "ph/a.jpg")
    assert listed(tmp_path / "ph/@eaDir") == ([thumb], {})
    assert listed(tmp_path / "ph/@eaDir/**/*.jpg") == ([thumb], {})
    assert listed(tmp_path / "ph/**/*.jpg") == ([kept], {"system folders": 1})
    assert listed(tmp_path / "*/*.jpg")[0] == [kept]
    os.remove(kept)
    assert "every match of this pattern is excluded" in refused(tmp_path / "ph/**/T.jpg")


@pytest.mark.parametrize(
    ("exclude", "kept", "left_out"),
    [
        (("*.gif",), ["a.jpg", "private/c.jpg", "private/deep/d.jpg"], 1),
        (("private",), ["a.jpg", "b.gif"], 1),
        (("private/",), ["a.jpg", "b.gif"], 1),
        (("private/deep",), ["a.jpg", "b.gif", "private/c.jpg"], 1),
        (("private/*",), ["a.jpg", "b.gif"], 2),
        (("deep", "a.*"), ["b.gif", "private/c.jpg"], 2),
        (("A.JPG", "rivate"), ["a.jpg", "b.gif", "private/c.jpg", "private/deep/d.jpg"], 0),
    ],
)
def test_exclude(tmp_path: Path, exclude: tuple[str, ...], kept: list[str], left_out: int) -> None:
    names = ["a.jpg", "b.gif", "private/c.jpg", "private/deep/d.jpg"]
    for name in names:
        touch(tmp_path / "ph" / name)
    touch(tmp_path / "ph/list.txt", "\n".join(names).encode())
    shard = make_tar(tmp_path / "s.tar", dict.fromkeys(names, b"x"))
    wanted = [str(tmp_path / "ph" / name) for name in kept]
    for path in (tmp_path / "ph", tmp_path / "ph/list.txt", tmp_path / "ph/**/*.*g*"):
        assert listed(path, exclude=exclude)[0] == wanted
    assert listed(shard, exclude=exclude)[0] == [f"{shard}/{name}" for name in kept]
    assert listed(tmp_path / "ph", exclude=exclude)[1].get("excluded files and folders", 0) == left_out


def test_a_path_that_is_named_is_never_excluded(tmp_path: Path) -> None:
    path = touch(tmp_path / "a.gif")
    assert listed(path, exclude=("*.gif",)) == ([path], {})


def test_region_features_are_counted_beside_photos_only(tmp_path: Path) -> None:
    touch(tmp_path / "r/a.npz"), touch(tmp_path / "r/deep/b.npz"), touch(tmp_path / "r/x.md")
    assert listed(tmp_path / "r")[1] == {"files of region features": 1, "other files": 1}
    touch(tmp_path / "r/a.jpg")
    assert listed(tmp_path / "r")[1] == {"files of region features": 2, "other files": 1}


def test_lines_name_the_first_and_stay_printable() -> None:
    skipped, selection = Skipped(), Selection()
    for name in ("a\nb.mov", "b.mov", "c.mov", "d.mov"):
        selection.takes(name, name)
    (line,) = selection.skipped.lines()
    assert line == "videos: 4 (a\\nb.mov, b.mov, c.mov, ...)"
    assert skipped.lines() == []


# ---- metadata


def test_metadata_lines_that_fit_no_photo_have_the_nearest_name(tmp_path: Path) -> None:
    for name in ("horse.jpg", "IMG_3.JPG", "sub/dog.jpg"):
        touch(tmp_path / "ph" / name)
    files = ["sub/dog.jpg", "hrose.jpg", "img_3.jpg", "sub/dogs.jpg", "entirely-different.webp"]
    meta = load_metadata(touch(tmp_path / "m.jsonl", "\n".join(json.dumps({"file": f}) for f in files).encode()))
    skipped = Skipped()
    list(expand([str(tmp_path / "ph")], metadata=meta, skipped=skipped))
    assert skipped.counts == {NO_PHOTO: 4}
    assert skipped.names[NO_PHOTO] == [
        "hrose.jpg [nearest: horse.jpg]", "img_3.jpg [nearest: IMG_3.JPG]", "sub/dogs.jpg [nearest: dog.jpg]",
    ]  # fmt: skip
    list(expand([str(tmp_path / "ph")], metadata={"zzzzzz": {}}, skipped=(alone := Skipped())))
    assert alone.names == {NO_PHOTO: ["zzzzzz"]}


@pytest.mark.parametrize(("on_disk", "written"), [("NFD", "NFC"), ("NFC", "NFD"), ("NFC", "NFC")])
def test_composed_and_decomposed_letters_are_the_same(tmp_path: Path, on_disk: str, written: str) -> None:
    """In metadata, lists, manifests, tars, and PATH itself, in the name of the folder and of the file."""

    def name(form: str) -> str:
        return unicodedata.normalize(form, "été/café.jpg")

    path = touch(tmp_path / name(on_disk), jpeg())
    if os.path.exists(tmp_path / name(written)) and on_disk != written:
        pytest.skip("this file system compares names by itself")
    meta = {name(written): {"caption": "by path"}, "other": {}}
    shard = make_tar(tmp_path / "s.tar", {name(on_disk): jpeg()})
    for given in (str(tmp_path), shard):
        assert [s.caption for s in expand([given], metadata=meta)] == ["by path"]
        base = os.path.basename(name(written))
        assert [s.caption for s in expand([given], metadata={base: {"caption": "by name"}})] == ["by name"]
    touch(tmp_path / "list.txt", name(written).encode())
    touch(tmp_path / "m.jsonl", json.dumps({"path": name(written), "caption": "c"}, ensure_ascii=False).encode())
    for given in (str(tmp_path / name(written)), str(tmp_path / "list.txt"), str(tmp_path / "m.jsonl")):
        assert [os.path.join(s.base, s.path) for s in expand([given])] == [path]
    folder, base = os.path.split(name(written))
    assert [s.path for s in expand([str(tmp_path / folder)])] == [path]
    for exclude in (folder, base, name(written), f"{folder}/*"):
        assert "excluded files and folders: 1 " in refused(tmp_path, exclude=exclude)


def test_two_names_that_differ_only_in_composition_stay_two(tmp_path: Path) -> None:
    forms = [unicodedata.normalize(form, "é.jpg") for form in ("NFC", "NFD")]
    for form in forms:
        touch(tmp_path / form, form.encode())
    if len(os.listdir(tmp_path)) < 2:
        pytest.skip("this file system compares names by itself")
    meta = {form: {"caption": str(len(form))} for form in forms}
    assert {s.path: s.caption for s in expand([str(tmp_path)], metadata=meta)} == {
        str(tmp_path / form): str(len(form)) for form in forms
    }


def test_what_is_not_there_is_still_told(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="no such file or folder"):
        expand([str(tmp_path / "grüße.jpg")])
