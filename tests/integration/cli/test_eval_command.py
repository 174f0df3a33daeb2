"""``ldot eval`` as a user runs it: figures, table, picture, one line for every mistake."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.cli import main
from ldot_milvus.evaluation.datasets import read_pairs
from tests.conftest import Run, make_photo
from tests.tolerance import assert_recall, both_bounds
from tests.unit.evaluation.test_evaluate import cross_scores, dot_products

AUTHORS = Path(__file__).parents[2] / "golden" / "authors_data"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    place = tmp_path / "photos"
    place.mkdir()
    for n, letters in enumerate(("a b", "c d", "e f", "g h", "i j", "k l")):
        (place / f"{n}.jpg").write_bytes(make_photo(n))
        (place / f"{n}.json").write_text(json.dumps({"captions": [letters, letters[::-1]]}))
    return place


def ldot_eval(model: str, *arguments: str) -> Result:
    return CliRunner().invoke(main, ["eval", "--model", model, *arguments], env={"LDOT_DEVICE": "cpu"})


def test_the_figures_as_json_and_the_picture(
    run: Run, tiny: LightningDOTEmbedder, tiny_model: str, folder: Path, tmp_path: Path
) -> None:
    done = run("ldot", "eval", "--data", str(folder), "--rerank", "3", "--json",
               env={"LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu"})  # fmt: skip
    assert done.returncode == 0, done.stderr
    figures = json.loads(done.stdout)
    assert figures.keys() == {"images", "captions", "text_to_image", "image_to_text", "reranked", "seconds"}
    assert figures["reranked"].keys() == {"M", "text_to_image", "image_to_text"}
    assert (figures["images"], figures["captions"], figures["reranked"]["M"]) == (6, 12, 3)
    pairs = read_pairs([folder])
    scores, owner = dot_products(tiny, pairs)
    first_three = both_bounds(
        scores, owner, crossed=cross_scores(tiny, pairs) + tiny.reranker.dot_weight * scores, count=3
    )
    assert_recall(figures, both_bounds(scores, owner))
    assert_recall(figures["reranked"], first_three)

    drawn = ldot_eval(tiny_model, "--data", str(folder), "--rerank", "3", "--curve", str(tmp_path / "c.svg"), "--json")
    curve = json.loads(drawn.stdout)["curve"]
    assert [point["M"] for point in curve] == [0, 3, 5, 10, 20, 50, 100]
    assert json.loads(drawn.stdout)["reranked"] == curve[1]
    assert_recall(curve[1], first_three)
    assert "on photos, 6 photos" in (tmp_path / "c.svg").read_text()


def test_the_table(tiny_model: str, folder: Path) -> None:
    done = ldot_eval(tiny_model, "--data", str(folder), "--rerank", "3", "--folds", "2")
    assert done.exit_code == 0, done.output
    head, ways, cuts, dot, reranked = done.output.splitlines()
    assert head.startswith("6 photos, 12 captions, the mean of 2 folds, ")
    assert ways.split() == ["text", "to", "image", "image", "to", "text"]
    assert cuts.split() == ["R@1", "R@5", "R@10", "R@1", "R@5", "R@10", "mean"]
    assert dot.startswith("dot product ")
    assert reranked.startswith("re-ranked, first 3 ")
    assert len(cuts) == len(dot) == len(reranked)


def test_the_rest_of_a_data_set_as_the_pool(tiny_model: str, folder: Path, tmp_path: Path) -> None:
    images = [{"filename": f"{n}.jpg", "split": "test" if n < 2 else "train", "sentences": [{"raw": "a b c"}]}
              for n in range(6)]  # fmt: skip
    file = tmp_path / "dataset_flickr8k.json"
    file.write_text(json.dumps({"images": images, "dataset": "flickr8k"}))
    done = ldot_eval(tiny_model, "--data", str(file), "--photos", str(folder), "--pool", str(file))
    assert done.output.startswith("2 photos, 2 captions, among 6 photos and 6 captions, "), done.output


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data", "FOLDER", "--rerank", "-1"], "--rerank is -1"),
        (["--data", "FOLDER", "--curve", "c.pdf"], "written as .png or .svg"),
        (["--data", "FOLDER", "--folds", "4"], "6 photos cannot be divided into 4 equal folds"),
        (["--data", "FOLDER", "--pool", "FOLDER"], "0 is both a query and in the pool"),
        (["--data", "FOLDER", "--regions", "FOLDER"], "no region features"),
        (["--data", "TEXT"], "give its region features with --regions"),
        (
            ["--data", "TEXT", "--regions", "REGIONS"],
            "token ids of a vocabulary of 28,996 entries, and the model's has 156",
        ),
    ],
    ids=str,
)
def test_a_mistake_is_one_line_and_exit_2(arguments: list[str], message: str, tiny_model: str, folder: Path) -> None:
    places = {"FOLDER": folder, "TEXT": AUTHORS / "itm_coco_val_base-cased.db",
              "REGIONS": AUTHORS / "coco_val2014" / "feat_numbb20"}  # fmt: skip
    done = ldot_eval(tiny_model, *(str(places.get(argument, argument)) for argument in arguments))
    assert done.exit_code == 2, done.output
    assert len(done.stderr.splitlines()) == 1
    assert message in done.stderr
