"""Compare pre-training by CMR + VMLM + SMRM with CMR alone: same steps and seed; prints the dev recalls as JSON.

With three alternating objectives, CMR gets 16 of 34 steps. A third run therefore trains CMR alone for as many steps.

::

    python benchmarks/pretraining_tasks.py --data FLICKR8K --weights WEIGHTS --work FOLDER

FLICKR8K contains train-*.tar and dev.tar; WEIGHTS contains minilm-l6-uncased and resnet-50-imagenet. The regions are
grid cells, which have no soft labels of a detector, so SMRM consists of the regression of masked features only, without
its two classification tasks.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path
from typing import Any

from ldot_milvus.training.accelerators import precision
from ldot_milvus.training.recipe import Recipe
from ldot_milvus.training.run import train

ALONE = {"cmr": 1.0}
TURNS = {"cmr": 16.0, "vmlm": 12.0, "smrm_features": 6.0}  # as published


def recipe(data: Path, weights: Path, features: Path, steps: int, mix: dict[str, float]) -> Recipe:
    return Recipe.model_validate({
        "data": {"train": sorted(map(str, data.glob("train-*.tar"))), "dev": [str(data / "dev.tar")],
                 "features": str(features)},
        "start": {
            "text": str(weights / "minilm-l6-uncased"), "extractor": str(weights / "resnet-50-imagenet"),
            "image_layers": 2, "text_config": {"attention_probs_dropout_prob": 0.0},
            "config": {"pooling": "mean", "project_text": False, "normalize": True, "pooler": False,
                       "region_extractor": {"kind": "grid", "size": 224}},
        },
        "stages": [{
            "name": "pretrain", "task": "pretrain", "steps": steps, "evaluate_every": steps, "mix": mix,
            "batch_size": 64, "learning_rate": 3e-4, "text_learning_rate": 5e-5, "max_gradient_norm": 5.0,
            "frozen_text_layers": 2, "regions_kept": 28, "text_tokens": 24, "seed": 7,
        }],
        "trainer": {"log_every": 20, "checkpoint_every": 100},
    })  # fmt: skip


def measure(name: str, run_recipe: Recipe, work: Path) -> dict[str, Any]:
    folder = work / name.replace(" + ", "-").replace(", ", "-").replace(" ", "-")
    train(run_recipe, folder)
    entries = [json.loads(line) for line in (folder / "pretrain" / "log.jsonl").read_text().splitlines()]
    (dev,) = (entry for entry in entries if "dev" in entry)
    last = [entry for entry in entries if "loss" in entry][-1]
    return {
        "mix": run_recipe.stages[0].mix,
        "steps": dev["step"],
        **dev["dev"],
        "mean": dev["mean"],
        "last_loss": last["loss"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--work", type=Path, required=True, help="folder for extracted features and trained models")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    features = options.work / "features"
    turns_of_cmr = round(options.steps * TURNS["cmr"] / sum(TURNS.values()))
    runs = {}
    for name, steps, mix in [
        ("cmr", options.steps, ALONE),
        ("cmr + vmlm + smrm", options.steps, TURNS),
        ("cmr, as many steps of it", turns_of_cmr, ALONE),
    ]:
        run_recipe = recipe(options.data, options.weights, features, steps, mix)
        runs[name] = measure(name, run_recipe, options.work)
    stage = run_recipe.stages[0].model_dump(mode="json", exclude={"mix", "name", "steps", "evaluate_every"})
    json.dump({"stage": stage, "mixed_precision": precision("auto"), "runs": runs}, sys.stdout, indent=1)


if __name__ == "__main__":
    main()
