"""Unusual and invalid queries to ``ldot search``: results, or one line that says what to do."""

from __future__ import annotations

from pathlib import Path

import pytest
from click.testing import CliRunner

from ldot_milvus import open_store
from ldot_milvus.cli import main
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from tests.conftest import make_photo


@pytest.fixture(scope="module")
def address(tmp_path_factory: pytest.TempPathFactory, tiny_model: str) -> str:
    folder = tmp_path_factory.mktemp("queries")
    for n in range(4):
        (folder / f"{n}.jpg").write_bytes(make_photo(n))
    (folder / "not_an_image.jpg").write_text("Dear reader, I am no image.")
    (folder / "truncated.jpg").write_bytes(make_photo(5)[:200])
    (folder / "a_folder.jpg").mkdir()
    with open_store(f"faiss:{folder}", "images") as store:
        Ingestor(store, tiny_model).ingest(list(expand([str(folder / "?.jpg")])))
    return f"faiss:{folder}"


def search(address: str, tiny_model: str, *arguments: str) -> tuple[int, str]:
    folder = Path(address.removeprefix("faiss:"))
    given = [str(folder / argument) if argument.endswith(".jpg") else argument for argument in arguments]
    done = CliRunner().invoke(main, ["search", "--store", address, "--model", tiny_model, *given])
    assert done.exception is None or isinstance(done.exception, SystemExit), done.exception
    return done.exit_code, done.output


@pytest.mark.parametrize(
    "text",
    ["word " * 10_000, "x" * 100_000, "🐕🐕🐕", "\x00\x01\x1b[31m\x7f", "犬 と 雪", "كلب في الثلج", "\u202egod",
     "e" + "\u0301" * 500, "'; DROP TABLE records; --", '{"$gt": 1}', "--", "?"],
    ids=["10,000 words", "one long word", "only emoji", "control characters", "Japanese", "Arabic", "right to left",
         "accents", "SQL", "JSON", "dashes", "a question mark"],
)  # fmt: skip
def test_odd_texts_are_answered(text: str, address: str, tiny_model: str) -> None:
    code, output = search(address, tiny_model, "-k", "3", "--", text)
    assert (code, output.count("score ")) == (0, 3)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([""], "the text is empty"),
        ([" \t\n"], "the text is empty"),
        (["dogs", "-k", "0"], "-k is 0"),
        (["dogs", "-k", "-5"], "-k is -5"),
        (["dogs", "-k", "1000000000"], "from 1 to 16,384"),
        (["dogs", "-k", "9" * 30], "from 1 to 16,384"),
        (["dogs", "--rerank", "-1"], "--rerank is -1"),
        (["dogs", "--filter", '{"colour": "red"}'], "colour"),
        (["dogs", "--filter", '{"width": {"$near": 3}}'], "$near"),
        (["--image", "not_an_image.jpg"], "not an image"),
        (["--image", "truncated.jpg"], "the image is truncated"),
        (["--image", "a_folder.jpg"], "a_folder.jpg"),
        (["--image", "gone.jpg"], "gone.jpg: no such file"),
    ],
    ids=lambda value: " ".join(value)[:40] if isinstance(value, list) else None,
)
def test_bad_queries_are_one_line(arguments: list[str], words: str, address: str, tiny_model: str) -> None:
    code, output = search(address, tiny_model, *arguments)
    assert code == 2
    assert words in output
    assert len(output.strip().splitlines()) == 1
