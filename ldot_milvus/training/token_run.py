"""A run that trains an EDJE re-ranker over the tokens of a first stage, which stays as it is.

::

    OUT/first-stage-SPLIT.npz    the first stage's vectors of captions and photos
    OUT/STAGE/best/              the best re-ranker so far: a folder that --reranker and LDOT_RERANKER accept
    OUT/model/                   the result, likewise
"""

from __future__ import annotations

import copy
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase
from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.ranking import RerankedResult
from ldot_milvus.models.base import Embedder
from ldot_milvus.models.edje.files import EdjeFiles
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.edje.reranker import EdjeTokenReranker
from ldot_milvus.models.lightningdot.bundle import load_tokenizer
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.registry import find_model
from ldot_milvus.models.texts import TextTokens
from ldot_milvus.regions import Regions
from ldot_milvus.training.accelerators import accelerator_for
from ldot_milvus.training.batches import Batch, Batches, FirstStageVectors, tokenize
from ldot_milvus.training.contrastive import ContrastiveObjective, fold_scale, standardised, unfold_scale
from ldot_milvus.training.data import CaptionedPhotos, cache_name, photos_of
from ldot_milvus.training.dot_weight import best_weight
from ldot_milvus.training.dual import Figures
from ldot_milvus.training.edje_start import load_teacher, new_edje
from ldot_milvus.training.first_stage import TokenExtractor, first_stage_vectors, token_width
from ldot_milvus.training.hard_negatives import mine_hard_negatives
from ldot_milvus.training.masking import Vocabulary
from ldot_milvus.training.matching import EdjeScorer, MatchingObjective
from ldot_milvus.training.recipe import Stage
from ldot_milvus.training.rerank import rerank_vectors
from ldot_milvus.training.run import FIRST_STAGE, Run
from ldot_milvus.training.stages import Task, prepare
from ldot_milvus.weights import save_quantized

log = logging.getLogger(__name__)

RERANKED = 10
"""Number of candidates that are re-ranked for dev recall, as in the paper."""


class TokenRun(Run):
    """Trains a re-ranker over the tokens of any model."""

    @override
    def _start(self) -> Path:
        assert self._recipe.start.model is not None
        self._model = find_model(self._recipe.start.model)
        return self._model.folder

    @override
    def _read_photos(self) -> None:
        embedder = self._embedder = self._model.load(device=str(self._accelerator.device), dtype="float32")
        if isinstance(embedder, LightningDOTEmbedder):
            self._read_regions(embedder.bundle)
        else:
            self._train, self._dev = (self._tokens(split, embedder) for split in ("train", "dev"))
        with self._accelerator.main_process_first():  # the other processes then read the stored vectors
            self._vectors = {
                split: first_stage_vectors(embedder, self._pairs[split], photos, self._out / file)
                for split, photos, file in zip(("train", "dev"), (self._train, self._dev), FIRST_STAGE, strict=True)
            }

    def _tokens(self, split: str, embedder: Embedder) -> CaptionedPhotos:
        """Prepare the photos of a split, with the tokens of a model that is not a LightningDOT."""
        data, pairs = self._recipe.data, self._pairs[split]
        if data.extraction or isinstance(pairs[0].load(), Regions):
            raise UsageError(f"model {embedder.name!r} reads photos: remove data.extraction and --regions")
        width = token_width(embedder, pairs[0])
        name = cache_name(pairs, self._model.features_fingerprint)
        with self._accelerator.main_process_first():
            return photos_of(
                pairs, TokenExtractor(embedder, width), Path(data.features or self._out / "features") / name,
                width=width, views=data.views if split == "train" else 1,
            )  # fmt: skip

    @override
    def _stage(self, stage: Stage, folder: Path, best: Path) -> None:
        """Train a stage: it starts from the best re-ranker of the one before, in ``folder``, or from a new one."""
        log.info("%s: compressed re-ranker, %d photos", stage.name, len(self._train))
        torch.manual_seed(stage.seed)
        accelerator = accelerator_for(self._recipe.trainer, self._out, stage)
        if folder == self._origin:
            model, tokenizer = new_edje(self._recipe.start, self._embedder, self._train)
        else:
            model, tokenizer = _load(folder)
        task = self._task(stage, model, tokenizer, accelerator.device)
        config = model.config
        tokens = tokenize(tokenizer, task.train, stage.text_tokens or config.max_text_length, config.image_token_id)

        def batches_of(stage: Stage) -> Batches:
            return Batches(
                task.train, tokens, stage, Vocabulary.of(tokenizer),
                process=accelerator.process_index, processes=accelerator.num_processes,
                first_stage=self._vectors["train"],
            )  # fmt: skip

        batches = batches_of(stage)
        if stage.loss == "matching":  # on random pairs: hard negatives are mined later
            random_pairs = batches_of(stage.model_copy(update={"hard_negatives": 0}))[0]
            if isinstance(random_pairs, Batch):  # an unreadable photo is reported by the first step
                EdjeScorer(model).set_zero(random_pairs.to(accelerator.device))
        self._train_stage(stage, accelerator, task, batches, best)

    def _task(
        self, stage: Stage, model: EdjeReranker, tokenizer: PreTrainedTokenizerBase, device: torch.device
    ) -> Task:
        scorer, teacher = EdjeScorer(model), None
        if stage.distilled:
            name = stage.teacher or self._model.name  # a re-ranker with an alignment started from the model's own
            teacher = load_teacher(name, self._model, self._train.width, tokenizer).to(device).requires_grad_(False)
            if stage.loss == "alignment" and getattr(teacher.model, "alignment", None) is None:
                raise UsageError(f"{stage.name}: teacher {name!r} has no alignment to distil: name another")
        train, dev = self._train, self._dev
        if stage.standardise:
            train, dev = standardised(train, dev)
            for linear in [*scorer.inputs(), *([] if teacher is None else teacher.inputs())]:
                unfold_scale(linear, train)
        prepare(scorer, stage, device)
        if stage.loss == "alignment":
            scorer.align_alone()
        selection, vectors = _first_captions(dev, self._vectors["dev"])
        negatives: list[NDArray[np.int32]] = []

        def evaluate(scorer: EdjeScorer) -> Figures:
            reranked = self._reranked(scorer.model, tokenizer, selection, vectors, device)
            return reranked.recall(RERANKED, scorer.model.config.dot_weight)

        def mine(_: EdjeScorer) -> NDArray[np.int32]:
            if not negatives:  # the first stage is not trained, so they never change
                negatives.append(mine_hard_negatives(*self._vectors["train"], self._train.owner, stage.negative_pool))
            return negatives[0]

        def write(scorer: EdjeScorer, target: Path) -> None:
            scorer = copy.deepcopy(scorer).cpu()
            if stage.standardise:
                for linear in scorer.inputs():
                    fold_scale(linear, train)
            scorer.model.set_attn_implementation("sdpa")
            scorer.model.save_pretrained(target)
            tokenizer.save_pretrained(target)

        objective = ContrastiveObjective if stage.loss == "alignment" else MatchingObjective
        return Task(objective(scorer, stage, teacher), train, evaluate, mine, write)

    def _reranked(
        self, model: EdjeReranker, tokenizer: PreTrainedTokenizerBase, photos: CaptionedPhotos,
        vectors: FirstStageVectors, device: torch.device,
    ) -> RerankedResult:  # fmt: skip
        files = EdjeFiles("the re-ranker in training", self._out, self._model)
        reranker = EdjeTokenReranker(
            files, model, TextTokens(tokenizer, device), self._embedder.name, device, torch.float32
        )
        return rerank_vectors(*vectors, reranker, photos, RERANKED)

    @override
    def _finish(self, best: Path, target: Path) -> None:
        settings = self._recipe.finish
        model, tokenizer = _load(best)
        if settings.dot_weight:
            device = self._accelerator.device
            photos, vectors = _first_captions(self._dev, self._vectors["dev"])
            reranked = self._reranked(model.to(device), tokenizer, photos, vectors, device)
            model.config.dot_weight = best_weight(reranked, RERANKED)
        if settings.storage == "int8":
            save_quantized(model, target, keep=tuple(settings.fuller_storage))
        else:
            model.save_pretrained(target)
        tokenizer.save_pretrained(target)


def _load(folder: Path) -> tuple[EdjeReranker, PreTrainedTokenizerBase]:
    model: Any = EdjeReranker.from_pretrained(folder)
    tokenizer = load_tokenizer(folder)
    assert tokenizer is not None
    return model.eval(), tokenizer


def _first_captions(photos: CaptionedPhotos, vectors: FirstStageVectors) -> tuple[CaptionedPhotos, FirstStageVectors]:
    """Return the photos with the first caption of each: a pass of the joint encoder for every pair takes long."""
    texts, images = vectors
    first = np.searchsorted(photos.owner, np.arange(len(photos)))
    return replace(photos, captions=[captions[:1] for captions in photos.captions]), (texts[first], images)
