"""``ldot convert``."""

from __future__ import annotations

import json
from typing import Any

import click

from ldot_milvus.cli.common import one_line_errors


@click.command()
@click.argument("source", metavar="SRC.pt")
@click.argument("target", metavar="DST")
@click.option("--config", metavar="FILE", help="BERT configuration (JSON) for what a checkpoint does not tell.")
@click.option(
    "--detector", metavar="DIR", help="Bottom-up-attention detector, or its hub id (default: the public one)."
)
@click.option("--pretraining", is_flag=True, help="Keep the heads of pre-training, to go on with it.")
@one_line_errors
def convert(source: str, target: str, config: str | None, detector: str | None, pretraining: bool) -> None:
    """Turn a published checkpoint into the folder DST, which works wherever a model's name does.

    SRC.pt is a LightningDOT dual encoder (pre-trained or fine-tuned) or a UNITER re-ranker; put the latter into the
    folder "reranker" of the former. Anything else, or a checkpoint with tensors missing or left over, is refused.
    A detector's folder is copied into DST, so that DST is all that ingestion needs.
    """
    from ldot_milvus.models.lightningdot.convert import convert as convert_checkpoint

    report = convert_checkpoint(source, target, config=_read_json(config), pretraining=pretraining, detector=detector)
    for old, new in report.renamed.items():
        click.echo(f"renamed  {old} -> {new}")
    for name in report.dropped:
        click.echo(f"dropped  {name}")
    for note in report.notes:
        click.echo(f"note     {note}")
    click.echo(
        f"{target}: {report.kind} of {report.parameters:,} parameters; {len(report.renamed)} tensors renamed, "
        f"{len(report.dropped)} dropped, none missing"
    )


def _read_json(file: str | None) -> dict[str, Any]:
    from ldot_milvus.errors import UsageError

    if file is None:
        return {}
    try:
        with open(file, encoding="utf-8") as opened:
            value = json.load(opened)
    except (OSError, ValueError) as error:
        raise UsageError(f"{file} cannot be read as JSON ({error})") from error
    if not isinstance(value, dict):
        raise UsageError(f"{file} holds no JSON object")
    return value
