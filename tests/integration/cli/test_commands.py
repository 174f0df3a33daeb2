"""The commands as a user runs them: output, exit status, one line for every mistake."""

from __future__ import annotations

import json
import math
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from ldot_milvus.models.calibration import Calibration, write_calibration
from ldot_milvus.models.registry import find_model
from tests.conftest import Run, make_photo

Folder = Callable[[int], Path]


@pytest.fixture
def env(tiny_model: str) -> dict[str, str]:
    return {"LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"}


def enqueue(run: Run, *arguments: str, **options):
    return run("celery", "-A", "workers", "enqueue", *arguments, **options)


def test_enqueue_then_search(run: Run, env: dict[str, str], photo_folder: Folder, tmp_path: Path) -> None:
    photo_folder(5)
    first = enqueue(run, "photos", env=env)
    assert first.returncode == 0, first.stderr
    assert "in this process" in first.stdout
    assert "5 added, 0 updated, 0 unchanged, 0 failed" in first.stdout
    second = enqueue(run, "photos", env=env)
    assert second.returncode == 0
    assert "0 added, 0 updated, 5 unchanged, 0 failed" in second.stdout
    assert "Nothing new" in second.stdout

    found = run("ldot", "search", "a blue square", "-k", "3", "--json", "--html", "out.html", env=env)
    assert found.returncode == 0, found.stderr
    answer = json.loads(found.stdout)
    assert answer["query"] == "a blue square"
    assert len(answer["hits"]) == 3
    assert answer["hits"][0].keys() >= {"id", "score", "rerank_score", "source", "metadata"}
    page = (tmp_path / "out.html").read_text()
    assert page.count("data:image/jpeg;base64,") == 3
    assert "http" not in page.replace("http-equiv", "")  # self-contained

    by_photo = run("ldot", "search", "--image", "photos/0002.jpg", env=env)
    assert by_photo.returncode == 0, by_photo.stderr
    assert "photos/0002.jpg" in by_photo.stdout


def test_nothing_found_is_one_line(run: Run, env: dict[str, str], photo_folder: Folder, tmp_path: Path) -> None:
    photo_folder(3)
    folder = Path(shutil.copytree(env["LDOT_MODEL"], tmp_path / "model"))
    own = find_model(str(folder)).own_reranker()
    write_calibration(own.folder, Calibration(0.0, math.log(0.25)), own.fitted_for, {})  # 20 % for each photo
    env = {**env, "LDOT_MODEL": str(folder)}
    assert enqueue(run, "photos", env=env).returncode == 0
    found = run("ldot", "search", "a blue square", "--min-probability", "0.2", env=env)
    assert found.returncode == 0, found.stderr
    assert found.stdout.count("probability 0.20") == 3
    nothing = run("ldot", "search", "a blue square", "--min-probability", "0.5", "--html", "out.html", env=env)
    assert nothing.returncode == 0
    assert nothing.stdout.splitlines() == ["", "a blue square", "  nothing found", "Page: out.html"]
    page = (tmp_path / "out.html").read_text()
    assert page.count('<li class="card unlikely"') == page.count("data:image/jpeg;base64,") == 3
    answer = run("ldot", "search", "a blue square", "--min-probability", "0.5", "--json", env=env)
    assert json.loads(answer.stdout) == {"query": "a blue square", "hits": []}
    refused = run("ldot", "search", "a blue square", "--rerank", "0", "--min-probability", "0.5", env=env)
    assert refused.returncode == 2
    assert len(refused.stderr.strip().splitlines()) == 1
    assert "no calibration" in refused.stderr


def test_bad_photos_are_listed_and_exit_is_1(run: Run, env: dict[str, str], photo_folder: Folder) -> None:
    folder = photo_folder(2)
    whole = make_photo(77)
    (folder / "truncated.jpg").write_bytes(whole[: len(whole) // 2])
    (folder / "zero.jpg").write_bytes(b"")
    (folder / "corrupt.png").write_bytes(os.urandom(500))
    (folder / "mislabelled.jpg").write_bytes(make_photo(78, format="PNG"))
    done = enqueue(run, "photos", env=env)
    assert done.returncode == 1
    assert "2 added, 0 updated, 0 unchanged, 4 failed" in done.stdout
    for name, word in {"truncated.jpg": "truncated", "zero.jpg": "empty", "corrupt.png": "image",
                       "mislabelled.jpg": "PNG"}.items():  # fmt: skip
        (line,) = [line for line in done.stderr.splitlines() if name in line]
        assert word in line
    assert "Traceback" not in done.stderr


MISTAKES = {
    "unknown model": (["ldot", "search", "dogs", "--model", "no-such"], "no-such"),
    "k is zero": (["ldot", "search", "dogs", "-k", "0"], "-k is 0"),
    "k is negative": (["ldot", "search", "dogs", "-k", "-3"], "-k is -3"),
    "probability above 1": (["ldot", "search", "dogs", "--min-probability", "50"], "from 0 to 1"),
    "empty query": (["ldot", "search", ""], "empty"),
    "blank query": (["ldot", "search", "  "], "empty"),
    "no query": (["ldot", "search"], "give a text"),
    "filter is not JSON": (["ldot", "search", "dogs", "--filter", "{"], "not JSON"),
    "filter on an unknown field": (["ldot", "search", "dogs", "--filter", '{"colour": 1}'], "colour"),
    "image does not exist": (["ldot", "search", "--image", "nowhere.jpg"], "nowhere.jpg"),
    "collection does not exist": (["ldot", "search", "dogs", "--collection", "nothing"], "enqueue"),
    "store of an unknown type": (["ldot", "search", "dogs", "--store", "ftp://x"], "ftp://x"),
    "page cannot be written": (["ldot", "search", "dogs", "--html", "no/such/folder.html"], "folder.html"),
    "eval without the file": (["ldot", "eval", "--data", "missing.tar"], "missing.tar"),
    "folder does not exist": (["celery", "-A", "workers", "enqueue", "no-such-folder"], "no-such-folder"),
    "enqueue with an unknown model": (
        ["celery", "-A", "workers", "enqueue", "photos", "--model", "no-such"],
        "no-such",
    ),
    "metadata does not exist": (["celery", "-A", "workers", "enqueue", "photos", "--metadata", "x.jsonl"], "x.jsonl"),
}


@pytest.fixture(scope="module")
def filled(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> Path:
    from ldot_milvus import open_store
    from ldot_milvus.ingest.ingestor import Ingestor
    from ldot_milvus.sources import expand

    folder = tmp_path_factory.mktemp("filled")
    (folder / "photos").mkdir()
    (folder / "photos" / "a.jpg").write_bytes(make_photo(1))
    with open_store(f"faiss:{folder / 'ldot-data'}", "images") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(folder / "photos")])))
    return folder


@pytest.mark.parametrize("mistake", MISTAKES, ids=str)
def test_a_mistake_is_one_line_and_exit_2(run: Run, env: dict[str, str], filled: Path, mistake: str) -> None:
    arguments, word = MISTAKES[mistake]
    if "photos" in arguments:
        arguments = [str(filled / "photos") if argument == "photos" else argument for argument in arguments]
    done = run(*arguments, env={**env, "LDOT_STORE": f"faiss:{filled / 'ldot-data'}"})
    assert done.returncode == 2, done.stdout + done.stderr
    lines = [line for line in done.stderr.splitlines() if line.strip()]
    assert len(lines) == 1, done.stderr
    assert word in lines[0]


def test_a_field_that_no_row_has_is_told_in_one_line(run: Run, env: dict[str, str], filled: Path) -> None:
    found = run("ldot", "search", "dogs", "--filter", '{"metadata.albm": "a"}', "--json", env=env, cwd=filled)
    assert (found.returncode, json.loads(found.stdout)["hits"]) == (0, [])
    (line,) = [line for line in found.stderr.splitlines() if "albm" in line]
    assert line.startswith("Warning: no row of collection 'images' has a value in metadata.albm")


def test_a_store_of_another_model_is_refused(run: Run, other_model: str, filled: Path) -> None:
    env = {"LDOT_MODEL": other_model, "LDOT_STORE": f"faiss:{filled / 'ldot-data'}"}
    for arguments in (["ldot", "search", "dogs"], ["celery", "-A", "workers", "enqueue", str(filled / "photos")]):
        done = run(*arguments, env=env)
        assert done.returncode == 2
        assert "model" in done.stderr
        assert len(done.stderr.strip().splitlines()) == 1


def test_help_names_every_command(run: Run) -> None:
    text = run("ldot", "--help").stdout
    assert "search" in text
    assert "eval" in text
    assert "enqueue" in run("celery", "-A", "workers", "--help").stdout


def test_eval_prints_the_contract(run: Run, env: dict[str, str], tmp_path: Path) -> None:
    import io
    import tarfile

    with tarfile.open(tmp_path / "d.tar", "w") as tar:
        for n in range(6):
            for name, data in (
                (f"{n}.jpg", make_photo(n)),
                (f"{n}.json", json.dumps({"captions": ["one", f"no {n}"]}).encode()),
            ):
                info = tarfile.TarInfo(name)
                info.size = len(data)
                tar.addfile(info, io.BytesIO(data))
    done = run("ldot", "eval", "--data", "d.tar", "--rerank", "3", "--json", env=env)
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert result.keys() == {"images", "captions", "text_to_image", "image_to_text", "reranked", "seconds"}
    assert (result["images"], result["captions"], result["reranked"]["M"]) == (6, 12, 3)
    for part in (result, result["reranked"]):
        for way in ("text_to_image", "image_to_text"):
            assert part[way].keys() == {"R@1", "R@5", "R@10"}
            assert all(0 <= value <= 100 for value in part[way].values())
    table = run("ldot", "eval", "--data", "d.tar", env=env)
    assert "dot product" in table.stdout
