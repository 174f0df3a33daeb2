"""``ldot eval``."""

from __future__ import annotations

import json
import sys

import click

from .common import embedder_of, one_line_errors, settings_with


@click.command("eval")
@click.option("--data", multiple=True, required=True, metavar="PATH", help="Photos with captions: see below.")
@click.option("--regions", metavar="PATH", help="Their region features: an LMDB, a folder of npz files, or a TSV.")
@click.option("--photos", metavar="DIR", help="The photos that a Karpathy JSON names.")
@click.option("--split", default="test", show_default=True, help="Of a Karpathy JSON.")
@click.option("--rerank", type=int, default=0, show_default=True, metavar="M", help="Re-rank the first M too.")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("more", nargs=-1, metavar="[PATH]...")
@one_line_errors
def evaluate(
    data: tuple[str, ...],
    regions: str | None,
    photos: str | None,
    split: str,
    rerank: int,
    model: str | None,
    as_json: bool,
    more: tuple[str, ...],
) -> None:
    """Measure Recall@1/5/10 in both directions on photos with captions.

    PATH is a tar or folder of NAME.jpg and NAME.json ({"captions": [...]}), a Karpathy JSON (with --photos or
    --regions), or a text LMDB of LightningDOT (with --regions).
    """
    import logging

    from ..errors import UsageError
    from ..evaluation.datasets import read_pairs
    from ..evaluation.evaluate import evaluate as measure

    if rerank < 0:
        raise UsageError(f"--rerank is {rerank}: it must be 0 or more")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stderr.isatty():
        logging.getLogger("ldot_milvus.evaluation").setLevel(logging.INFO)
    settings = settings_with(model=model)
    pairs = read_pairs([*data, *more], regions=regions, photos=photos, split=split)
    result = measure(embedder_of(settings), pairs, rerank=rerank)
    if as_json:
        click.echo(json.dumps(result))
        return
    click.echo(f"{result['images']} photos, {result['captions']} captions, {result['seconds']} s")
    click.echo(f"{'':24}{'text to image':>22}{'image to text':>24}")
    click.echo(f"{'':24}{'R@1    R@5   R@10':>22}{'R@1    R@5   R@10':>24}")
    rows = [("dot product", result)]
    if rerank:
        rows.append((f"re-ranked, first {rerank}", result["reranked"]))
    for name, figures in rows:
        ways = [figures["text_to_image"], figures["image_to_text"]]
        cells = ["".join(f"{value:7.1f}" for value in way.values()) for way in ways]
        click.echo(f"{name:24}{cells[0]:>22}{cells[1]:>24}")
