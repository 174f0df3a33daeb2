"""Fit the probabilities of a LightningDOT model, as `[finish]` of `ldot train` does, and draw a reliability diagram.

    python benchmarks/probability.py MODEL_FOLDER DEV.tar --features CACHE_FOLDER

writes calibration.json (also in reranker/) and reliability.png into the model's folder, and prints the figures. The
folder of features may be empty; regions extracted by an earlier call are reused.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from matplotlib.figure import Figure

from ldot_milvus.evaluation.calibration import Answers, held_out, reliability
from ldot_milvus.evaluation.datasets import read_pairs
from ldot_milvus.models.lightningdot.bundle import load_extractor
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.training.data import photos_of
from ldot_milvus.training.probability import shown_answers, write_probability


def draw(answers: dict[str, Answers], path: Path) -> None:
    """Draw probability against the fraction of first answers that is right, by cross-validation."""
    figure = Figure(figsize=(4.6, 4.2), layout="constrained")
    axes = figure.add_subplot()
    axes.plot([0, 1], [0, 1], color="#999999", linewidth=1)
    for (label, found), colour in zip(answers.items(), ("#1f5fa8", "#b3541e"), strict=False):
        bins = reliability(held_out(found)[:, 0], found.right[:, 0])
        places = [[one.probability for one in bins], [one.right for one in bins]]
        axes.plot(*places, color=colour, linewidth=1.4, label=label)
        axes.scatter(*places, s=[4 + 2 * one.count**0.4 for one in bins], color=colour)
    axes.set(xlabel="probability", ylabel="fraction of first answers that is right", xlim=(0, 1), ylim=(0, 1))
    axes.legend(frameon=False, loc="upper left")
    axes.spines[["top", "right"]].set_visible(False)
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the command."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("dev", nargs="+")
    parser.add_argument("--features", type=Path, required=True)
    options = parser.parse_args()
    embedder = LightningDOTEmbedder(str(options.model), device="cpu", dtype="float32")
    extractor = load_extractor(embedder.bundle.files, torch.device("cpu"), torch.float32)
    config = embedder.bundle.encoder.config
    photos = photos_of(
        read_pairs(options.dev), extractor, options.features, width=config.region_dim, labels=config.label_count
    )
    by_dot, reranked = shown_answers(embedder, photos)
    print(json.dumps(write_probability(embedder.bundle.files, by_dot, reranked), indent=2))
    shown = {"dot product": by_dot} | ({} if reranked is None else {"re-ranked": reranked})
    draw(shown, options.model / "reliability.png")


if __name__ == "__main__":
    main()
