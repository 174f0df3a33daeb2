"""``ldot convert``: convert a checkpoint of the authors to a model folder."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import nn
from transformers import BertTokenizer

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.models.lightningdot.checkpoint_layouts import (
    Translation,
    convert_dual_encoder,
    convert_pretraining,
    convert_reranker,
    dual_encoder_config,
    is_dual_encoder,
    reranker_config,
)
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.pretraining import LightningDOTForPreTraining
from ldot_milvus.models.loading import QuietTransformers
from ldot_milvus.regions.bottom_up import DetectorConfig
from ldot_milvus.regions.bottom_up.extractor import PUBLISHED
from ldot_milvus.regions.bottom_up.weights import detector_files, load_detector
from ldot_milvus.weights import read_content, state_of

Converted = LightningDOT | LightningDOTForPreTraining | CrossAttentionReranker
VOCABULARY = Path(__file__).parents[2] / "pretrained" / "vocab" / "bert-base-cased.txt"
CASED = 28996
"""Size of bert-base-cased's vocabulary, with which the published models were trained."""


@dataclass
class Conversion:
    """The report of a conversion.

    Attributes:
        kind: "dual encoder", "dual encoder with its heads" or "re-ranker".
        parameters: number of parameters of the converted model.
        renamed, dropped: see :class:`~ldot_milvus.models.lightningdot.checkpoint_layouts.Translation`.
        reasons: why a tensor was dropped, where it is not a head of pre-training.
        missing: tensors that the model needs and the checkpoint lacks, by our names.
        unknown: tensors of the checkpoint that the model lacks.
        misshapen: name, actual shape and required shape of a tensor.
        notes: remarks for the user.
    """

    kind: str
    parameters: int = 0
    renamed: dict[str, str] = field(default_factory=dict)
    dropped: list[str] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)
    unknown: list[str] = field(default_factory=list)
    misshapen: list[tuple[str, tuple[int, ...], tuple[int, ...]]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    reasons: dict[str, str] = field(default_factory=dict)

    def check(self, source: Path) -> None:
        """Refuse a checkpoint that does not match its layout exactly.

        Raises:
            ModelError: a tensor is missing, unknown or of a wrong shape. The message names each of them.
        """
        problems = [f"{name} is missing" for name in self.missing]
        problems += [f"{name} is not of this model" for name in self.unknown]
        problems += [f"{name} has shape {actual}, not {needed}" for name, actual, needed in self.misshapen]
        if problems:
            raise ModelError(f"{source} is not a complete {self.kind}, nothing was written: {'; '.join(problems)}")


def convert(
    source: str | Path,
    target: str | Path,
    *,
    config: Mapping[str, Any] | None = None,
    pretraining: bool = False,
    detector: str | None = None,
) -> Conversion:
    """Convert the checkpoint ``source`` to the model folder ``target``.

    Args:
        source: the authors' file (read by ``torch.load`` with ``weights_only``), or its tensors as safetensors.
        target: a new or empty folder; for a re-ranker, the folder ``reranker`` of a converted dual encoder.
        config: a BERT configuration for values that cannot be read from a checkpoint: the number of attention heads
            (default: the width divided by 64) and dropout.
        pretraining: include the heads of pre-training, to continue pre-training.
        detector: folder of the bottom-up-attention detector that extracts the model's regions (copied to ``target``),
            or its hub id. None selects the public detector for a model that reads regions of 2,048 features.

    Returns:
        What was renamed and dropped, with notes for the user.

    Raises:
        UsageError: ``source`` does not exist, or ``target`` is not empty.
        ModelError: the checkpoint has an unknown layout, or missing, unknown or misshapen tensors; or the detector is
            incomplete or extracts regions of another width.
    """
    source, target = Path(source), Path(target)
    check_paths(source, target)
    content = read_content(source)
    return convert_content(source, target, content, config=config, pretraining=pretraining, detector=detector)


def convert_content(
    source: Path,
    target: Path,
    content: Any,
    *,
    config: Mapping[str, Any] | None = None,
    pretraining: bool = False,
    detector: str | None = None,
) -> Conversion:
    """Do what :func:`convert` does, with the content of ``source``."""
    published = state_of(content, source)
    known = config or {}
    model: Converted
    if pretraining:
        translation, kind = convert_pretraining(published), "dual encoder with its heads"
        encoder = {name.removeprefix("lightningdot."): tensor for name, tensor in translation.state.items()}
        model = LightningDOTForPreTraining(
            dual_encoder_config(encoder, known, classes=translation.state.get("region_classifier.3.bias"))
        )
    elif is_dual_encoder(published):
        translation, kind = convert_dual_encoder(published), "dual encoder"
        model = LightningDOT(dual_encoder_config(translation.state, known))
    else:
        translation, kind = convert_reranker(published), "re-ranker"
        model = CrossAttentionReranker(reranker_config(translation.state, known))
    report = compare(kind, translation, model)
    report.check(source)
    model.load_state_dict(translation.state)
    if isinstance(model, CrossAttentionReranker):
        if detector is not None:
            raise UsageError(f"{source} is a re-ranker: give the detector when converting its dual encoder instead")
    else:
        model.config.region_extractor = _extractor(model.config.region_dim, detector, report)
    _write(model, report, source, target, detector)
    return report


def check_paths(source: Path, target: Path) -> None:
    """Refuse a checkpoint that does not exist, and a target that is not a new or empty folder."""
    if not source.is_file():
        raise UsageError(f"{source}: no such file")
    if target.exists() and (not target.is_dir() or any(target.iterdir())):
        raise UsageError(f"{target} exists and is not empty: name a new folder")


def _extractor(width: int, detector: str | None, report: Conversion) -> dict[str, Any] | None:
    """Return the configuration of UNITER's region extractor, on whose regions the published models were trained."""
    config: dict[str, Any] = {"kind": "bottom_up", "boxes": "uniter", "short_side": 600, "long_side": 1000}
    if detector is not None and Path(detector).is_dir():
        dim = load_detector(Path(detector)).config.dim
        if dim != width:
            raise ModelError(
                f"{detector} extracts regions of {dim} features, and this model reads {width}: name its own detector"
            )
        report.notes.append(f"the detector in regions/, copied from {detector}, extracts its regions")
        return config
    if detector is None and width != DetectorConfig().dim:
        report.notes.append("it has no region extractor: it reads precomputed regions, not photos")
        return None
    name = detector or PUBLISHED
    report.notes.append(f"{name} extracts its regions; it is downloaded from the hub for the first photo")
    return {**config, "weights": name}


def compare(kind: str, translation: Translation, model: nn.Module) -> Conversion:
    """Compare a translated state dict with the tensors of the model that is to read it."""
    ours, given = model.state_dict(), translation.state
    return Conversion(
        kind,
        parameters=sum(parameter.numel() for parameter in model.parameters()),
        renamed=translation.renamed,
        dropped=sorted(translation.dropped),
        missing=sorted(ours.keys() - given.keys()),
        unknown=sorted(given.keys() - ours.keys()),
        misshapen=[
            (name, tuple(given[name].shape), tuple(ours[name].shape))
            for name in sorted(ours.keys() & given.keys())
            if given[name].shape != ours[name].shape
        ],
    )


def _write(model: Converted, report: Conversion, source: Path, target: Path, detector: str | None) -> None:
    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        if not isinstance(model, CrossAttentionReranker):
            if model.config.text_config.vocab_size == CASED:
                BertTokenizer(vocab=str(VOCABULARY), do_lower_case=False).save_pretrained(folder)
            else:
                report.notes.append(
                    f"the vocabulary of {model.config.text_config.vocab_size:,} entries is not bert-base-cased's: "
                    f"copy the tokenizer's files to {target}"
                )
            if detector is not None and Path(detector).is_dir():
                (folder / "regions").mkdir()
                for path in detector_files(Path(detector)):
                    shutil.copy(path, folder / "regions")
        (folder / "README.md").write_text(_card(report, source))

    write_folder(target, fill)


def write_folder(target: Path, fill: Callable[[Path], None]) -> None:
    """Let ``fill`` write a folder beside ``target``, and rename it when it is complete."""
    unfinished = target.with_name(target.name + ".unfinished")
    shutil.rmtree(unfinished, ignore_errors=True)
    try:
        with QuietTransformers():
            fill(unfinished)
        if target.exists():
            target.rmdir()
        unfinished.rename(target)
    except BaseException:
        shutil.rmtree(unfinished, ignore_errors=True)
        raise


def sha256(file: Path) -> str:
    """Return the SHA-256 of a file in hex."""
    digest = hashlib.sha256()
    with file.open("rb") as opened:
        while block := opened.read(1 << 20):
            digest.update(block)
    return digest.hexdigest()


def _card(report: Conversion, source: Path) -> str:
    notes = "".join(f"- {note[0].upper()}{note[1:]}.\n" for note in report.notes)
    base = "UNITER" if report.kind == "re-ranker" else "LightningDOT"
    return f"""---
library_name: ldot-milvus
---

# {base} {report.kind}, converted

Converted by ldot-milvus (`ldot convert`) from `{source.name}`, whose SHA-256 is
`{sha256(source)}`. The {report.parameters:,} parameters are unchanged; the tensors have other names.

- Renamed: {len(report.renamed)} tensors. Dropped: {json.dumps(report.dropped) if report.dropped else "none"}.
- Authors of the model: Sun et al., LightningDOT, NAACL 2021; Chen et al., UNITER, ECCV 2020. Their licence and the
  limits of their training data apply to these weights too.
{notes}"""
