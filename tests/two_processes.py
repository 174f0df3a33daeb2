"""Compute losses and gradients of every objective, and train by a recipe, in any number of processes.

``torchrun --nproc-per-node 2 -m tests.two_processes FOLDER RECIPE`` writes the results to ``FOLDER/2-processes``. A
test compares them with those of one process with batches of twice the size.
"""

from __future__ import annotations

import sys
from pathlib import Path
from unittest.mock import patch

import numpy as np
import torch
from accelerate import Accelerator
from accelerate.utils import DistributedDataParallelKwargs

from ldot_milvus.evaluation.recall import both_ways
from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ldot_milvus.regions import Regions
from ldot_milvus.training.batches import Batches
from ldot_milvus.training.contrastive import ContrastiveObjective
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import DualScorer
from ldot_milvus.training.masking import Vocabulary
from ldot_milvus.training.pretraining import PretrainingObjective, with_heads
from ldot_milvus.training.recipe import Stage, read_recipe
from ldot_milvus.training.rerank import RerankScorer, TripletObjective
from ldot_milvus.training.run import train

WIDTH, CLASSES, WORDS, PAIRS = 12, 5, 40, 16
BODY = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 32, "num_hidden_layers": 1,
        "max_position_embeddings": 32, "vocab_size": 110, "hidden_dropout_prob": 0.0,
        "attention_probs_dropout_prob": 0.0}  # fmt: skip
OBJECTIVES = ("cmr", "distilled", "vmlm", "smrm_features", "smrm_kl", "smrm_class", "alignment", "joint")


def photos(count: int = 40) -> CaptionedPhotos:
    """Create photos of two to six regions, so that the processes pad their batches to different lengths."""
    rng = np.random.default_rng(0)
    regions = []
    for _ in range(count):
        n = int(rng.integers(2, 7))
        labels = rng.dirichlet(np.ones(CLASSES), n).astype(np.float32)
        features, boxes = rng.normal(size=(n, WIDTH)), rng.random((n, 7))
        regions.append(Regions(features.astype(np.float32), boxes.astype(np.float32), np.ones(n, np.float32), labels))
    return CaptionedPhotos([f"photo {n}" for n in range(count)], [[]] * count, [regions.__getitem__], WIDTH)


def objective_and_batches(name: str, process: int, processes: int) -> tuple[torch.nn.Module, Batches]:
    """Create an objective, and batches of :data:`PAIRS` pairs over all processes."""
    torch.manual_seed(1)
    config = LightningDOTConfig(
        text_config=BODY, image_config=BODY, region_dim=WIDTH, region_classes=CLASSES, projection_dim=8,
        normalize=name == "distilled",
    )  # fmt: skip
    dual = LightningDOT(config)
    common = {"epochs": 1, "batch_size": PAIRS // processes, "masked": 0.3}
    if name in ("alignment", "joint"):
        config = RerankerConfig(bert_config=BODY, region_dim=WIDTH, scoring=name)
        stage = Stage(task="rerank", hard_negatives=1, words_dropped=0.2, **common)
        scorer = RerankScorer(CrossAttentionReranker(config))
        objective = ContrastiveObjective(scorer, stage) if name == "alignment" else TripletObjective(scorer, stage)
    elif name in ("cmr", "distilled"):
        stage = Stage(task="retrieval", **common)
        if name == "distilled":
            stage = Stage(task="retrieval", distilled=0.5, soft_targets=0.2, feature_dropout=0.2, **common)
        teacher = RerankScorer(
            CrossAttentionReranker(RerankerConfig(bert_config=BODY, region_dim=WIDTH, scoring="alignment"))
        )
        objective = ContrastiveObjective(DualScorer(dual), stage, teacher.eval() if name == "distilled" else None)
    else:
        stage = Stage(task="pretrain", mix={name: 1}, **common)
        objective = PretrainingObjective(DualScorer(with_heads(dual)))
    for parameter in objective.parameters():
        if parameter.dim() > 1:  # with initial weights, outputs hardly differ and gradients almost vanish
            parameter.data.normal_(0, 0.3)
    rng = np.random.default_rng(3)
    captioned = photos()
    tokens = [[[101, *rng.integers(104, 110, rng.integers(2, 12)).tolist(), 102]] for _ in range(len(captioned))]
    caption_embeddings = torch.nn.functional.normalize(torch.randn(len(captioned), 8), dim=1)
    batches = Batches(captioned, tokens, stage, Vocabulary(103, 104, 110), process=process, processes=processes,
                      caption_embeddings=caption_embeddings)  # fmt: skip
    hard = [np.stack([rng.permutation(len(captioned))[:6], np.full(6, -1)], 1) for _ in range(len(captioned))]
    batches.hard = np.stack(hard)
    return objective, batches


def losses_and_gradients(folder: Path) -> None:
    """Write the loss and the gradients of one batch, a file for each objective."""
    accelerator = Accelerator(cpu=True, kwargs_handlers=[DistributedDataParallelKwargs(find_unused_parameters=True)])
    folder.mkdir(parents=True, exist_ok=True)
    for name in OBJECTIVES:
        objective, batches = objective_and_batches(name, accelerator.process_index, accelerator.num_processes)
        model = accelerator.prepare(objective)
        loss = model(batches[0])
        accelerator.backward(loss)
        gradients = {
            name: parameter.grad for name, parameter in objective.named_parameters() if parameter.grad is not None
        }
        mean_loss = accelerator.reduce(loss.detach(), "mean")
        if accelerator.is_main_process:
            torch.save({"loss": mean_loss, "gradients": gradients}, folder / f"{name}.pt")


def run(folder: Path, recipe: Path) -> None:
    """Write losses and gradients, train by a recipe of two stages, and write all evaluated scores to ``scores.npz``."""
    accelerator = Accelerator(cpu=True)
    processes = accelerator.num_processes
    output = folder / f"{processes}-processes"
    losses_and_gradients(output)
    evaluated: list[np.ndarray] = []

    def recorded(scores: np.ndarray, owner: np.ndarray) -> dict[str, dict[str, float]]:
        evaluated.append(scores)
        return both_ways(scores, owner)

    with patch("ldot_milvus.training.dual.both_ways", recorded):
        train(read_recipe(str(recipe), {f"stages.{n}.batch_size": 8 // processes for n in (0, 1)}), output / "run")
    if accelerator.is_main_process:
        np.savez(output / "scores.npz", *evaluated)


if __name__ == "__main__":
    run(Path(sys.argv[1]), Path(sys.argv[2]))
