"""The shipped recipes are valid; an invalid recipe is refused in one line."""

from __future__ import annotations

from pathlib import Path

import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.training.recipe import SHIPPED, parse_change, read_recipe

DATA = {"data.train": ["a.tar"], "data.dev": ["b.tar"]}
GOOD = """
[start]
model = "ldot-mini"
[[stages]]
task = "retrieval"
epochs = 2
"""


@pytest.mark.parametrize("name", sorted(path.stem for path in SHIPPED.glob("*.toml")))
def test_shipped_recipes_are_valid(name: str) -> None:
    recipe = read_recipe(name, DATA)
    assert recipe.data.train == ["a.tar"]


def test_every_stage_sets_defaults() -> None:
    recipe = read_recipe("ldot-mini", DATA | {"stages.1.batch_size": 64})
    assert [stage.batch_size for stage in recipe.stages] == [256, 64, 128]
    assert [stage.learning_rate for stage in recipe.stages] == [7e-4, 5e-4, 4e-4]
    assert [stage.distilled for stage in recipe.stages] == [0, 0, 0.7]
    assert [stage.weight_decay for stage in recipe.stages] == [0.05, 0.05, 0.05]


def test_values_of_the_command_line(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(GOOD)
    changes = dict(map(parse_change, ["stages.0.batch_size=128", "start.model=my model", "stages.0.name='x'"]))
    recipe = read_recipe(str(tmp_path / "r.toml"), {**DATA, **changes})
    assert recipe.stages[0].batch_size == 128
    assert recipe.stages[0].name == "x"
    assert recipe.start.model == "my model"


@pytest.mark.parametrize(
    ("old", "new", "message"),
    [
        ("epochs = 2", "epoch = 2", r"stages\.0\.epoch: no such setting"),
        ("epochs = 2", "", "stages.0: give either epochs or steps"),
        ("epochs = 2", "epochs = 2\nsteps = 3", "stages.0: give either epochs or steps"),
        ("epochs = 2", "epochs = 0", r"stages\.0\.epochs: .*greater than or equal to 1"),
        ("epochs = 2", "epochs = 2\nbatch_size = 9\nhard_negatives = 1", "batch_size 9 is not a multiple of 2"),
        ("epochs = 2", "epochs = 2\ncaptions_per_photo = 3", "batch_size 64 counts pairs: give a multiple"),
        (
            "epochs = 2",
            "epochs = 2\ncaptions_per_photo = 2\nhard_negatives = 1",
            "captions_per_photo: pre-training and",
        ),
        ("epochs = 2", "epochs = 2\nmix = { cmr = 1 }", "mix .* belongs to the task 'pretrain'"),
        ('"retrieval"', '"pretrain"', "mix .* belongs to the task 'pretrain', which requires it"),
        ('"retrieval"', '"pretrain"\nmix = { cmr = 0 }', "mix requires weights of at least 0, one of them above 0"),
        ('"retrieval"', '"pretrain"\nmix = { cmr = 1, mlm = 2 }', r"stages\.0\.mix\.mlm"),
        (
            '"retrieval"',
            '"pretrain"\nsoft_targets = 0.1\nmix = { cmr = 1 }',
            "soft_targets: not supported in pre",
        ),
        ('"retrieval"', '"rerank"\ndistilled = 0.5', "distilled: only the dual encoder"),
        ('"retrieval"', '"rerank"\nteacher = "x"', "teacher: has no effect without distilled"),
        ('"retrieval"', '"rerank"\nloss = "alignment"', "loss: only a re-ranker with start.reranker.scoring 'aligned'"),
        ('"retrieval"', '"rerank"\ndistilled = 0.5\nteacher = "x"', "distilled: only the dual encoder .* and a compr"),
        ('"retrieval"', '"retrieval"\nteacher = "x"', "teacher: only a compressed re-ranker has another teacher"),
        ('"ldot-mini"', '"ldot-mini"\nreranker = { scoring = "compressed" }', "compressed re-ranker has a run of its"),
        ('model = "ldot-mini"', 'text = "x"\nreranker = { scoring = "compressed" }', "existing model: give model"),
        (
            '"ldot-mini"\n[[stages]]\ntask = "retrieval"',
            '"ldot-mini"\nreranker = { scoring = "compressed" }\n[[stages]]\ntask = "rerank"\nsoft_targets = 0.1',
            "a compressed re-ranker supports none of soft_targets",
        ),
        (
            '"ldot-mini"\n[[stages]]\ntask = "retrieval"',
            '"ldot-mini"\nreranker = { scoring = "compressed" }\n[[stages]]\ntask = "rerank"\nregion_features = 9',
            "a compressed re-ranker supports none of soft_targets, captions_per_photo and region_features",
        ),
        (
            'task = "retrieval"',
            'task = "pretrain"\nregion_features = 9\nmix = { cmr = 1 }',
            "region_features: not supp",
        ),
        (
            '"ldot-mini"\n[[stages]]\ntask = "retrieval"',
            '"ldot-mini"\nreranker = { scoring = "compressed" }\n[[stages]]\ntask = "rerank"\ndistilled = 0.5',
            "distilled: name the teacher of a compressed re-ranker",
        ),
        ('"retrieval"', '"ranking"', r"stages\.0\.task: .*'rerank'"),
        ('model = "ldot-mini"', "", "start: give either model"),
        ('[[stages]]\ntask = "retrieval"\nepochs = 2', "", "stages: give at least one, start.labels or finish"),
        ('"ldot-mini"', '"ldot-mini"\nlabels = { classifier = "x", size = 3 }', "start.labels.size: no such setting"),
        ("[start]", "[start", "not TOML"),
    ],
)
def test_an_invalid_recipe_is_refused_in_one_line(tmp_path: Path, old: str, new: str, message: str) -> None:
    (tmp_path / "r.toml").write_text(GOOD.replace(old, new))
    with pytest.raises(UsageError, match=message) as caught:
        read_recipe(str(tmp_path / "r.toml"), DATA)
    assert "\n" not in str(caught.value)


def test_missing_data_and_unknown_names_are_refused(tmp_path: Path) -> None:
    (tmp_path / "r.toml").write_text(GOOD)
    with pytest.raises(UsageError, match="no dev data: give photos with captions by --dev PATH"):
        read_recipe(str(tmp_path / "r.toml"), {"data.train": ["a.tar"]})
    shipped = "aligned, compressed, finetune, labels, ldot-mini, pretrain, rerank"
    with pytest.raises(UsageError, match=rf"'no-such' is neither shipped .{shipped}. nor"):
        read_recipe("no-such", DATA)
    with pytest.raises(UsageError, match="give PLACE=VALUE"):
        parse_change("epochs 3")
    with pytest.raises(UsageError, match=r"stages\.7\.epochs: the recipe has no such setting"):
        read_recipe(str(tmp_path / "r.toml"), {**DATA, "stages.7.epochs": 3})
