"""The command ``ldot convert``."""

from __future__ import annotations

import json
import os
from typing import Any

import click

from ldot_milvus.cli.common import one_line_errors
from ldot_milvus.cli.output import say


@click.command()
@click.argument("source", metavar="SRC.pt")
@click.argument("target", metavar="DST")
@click.option("--config", metavar="FILE", help="BERT configuration (JSON) for values that the checkpoint lacks.")
@click.option(
    "--detector", metavar="DIR", help="Bottom-up-attention detector: folder or hub id (default: the public one)."
)
@click.option(
    "--vocab",
    metavar="FILE",
    help="Vocabulary of an EDJE re-ranker (default: vocab.txt beside SRC.pt, else bert-base-uncased's).",
)
@click.option("--pretraining", is_flag=True, help="Keep the pre-training heads, to continue pre-training.")
@one_line_errors
def convert(
    source: str, target: str, config: str | None, detector: str | None, vocab: str | None, pretraining: bool
) -> None:
    """Convert a published checkpoint into a model folder.

    SRC.pt is a LightningDOT dual encoder (pre-trained or fine-tuned), a UNITER or EDJE re-ranker, or the
    pytorch_model.bin in the folder of a BLIP, SigLIP or CLIP model, which is written as safetensors. DST is the new
    folder, which --model and LDOT_MODEL accept, for a re-ranker --reranker and LDOT_RERANKER. Convert a UNITER
    re-ranker into the subfolder "reranker" of its dual encoder.

    Prints every tensor that was renamed or dropped. A checkpoint with missing or unknown tensors is refused. If
    --detector is a folder, it is copied into DST, so that DST contains everything that ingestion needs.
    """
    from ldot_milvus.models.conversion import convert as convert_checkpoint

    report = convert_checkpoint(
        source, target, config=_read_json(config), pretraining=pretraining, detector=detector, vocabulary=vocab
    )
    for old, new in report.renamed.items():
        say(f"renamed  {old} -> {new}")
    for name in report.dropped:
        reason = report.reasons.get(name)
        say(f"dropped  {name}" + (f" ({reason})" if reason else ""))
    for note in report.notes:
        say(f"note     {note}")
    say(
        f"{target}: {report.kind} of {report.parameters:,} parameters; {len(report.renamed)} tensors renamed, "
        f"{len(report.dropped)} dropped, none missing"
    )


def _read_json(file: str | None) -> dict[str, Any]:
    from ldot_milvus.errors import UsageError

    if file is None:
        return {}
    try:
        with open(os.path.expanduser(file), encoding="utf-8") as opened:
            value = json.load(opened)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error}): --config takes a BERT config.json") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file} does not contain a JSON object: --config takes a BERT config.json")
    return value
