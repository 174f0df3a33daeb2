"""``ldot eval``."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import click

from ldot_milvus.cli.common import RERANKER_HELP, embedder_of, one_line_errors, settings_with


@click.command("eval")
@click.option("--data", multiple=True, required=True, metavar="PATH", help="Photos with captions: see above.")
@click.option("--photos", metavar="DIR", help="The photos that a file of captions names.")
@click.option("--regions", multiple=True, metavar="PATH", help="Region features instead: LMDB, folder of npz, TSV.")
@click.option("--split", default="test", show_default=True, help="Of a data set that has several.")
@click.option("--language", default="en", show_default=True, help="Of Multi30K.")
@click.option("--pool", multiple=True, metavar="PATH", help="Search among these too: of a data set, its other splits.")
@click.option("--folds", type=click.IntRange(1), default=1, metavar="N", help="Average over N parts: 5 for COCO 1K.")
@click.option("--rerank", type=int, default=0, show_default=True, metavar="M", help="Re-rank the first M too.")
@click.option("--curve", metavar="OUT.png", help="Draw R@1 against the number re-ranked, up to 100 (.png or .svg).")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--reranker", help=RERANKER_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("more", nargs=-1, metavar="[PATH]...")
@one_line_errors
def evaluate(
    data: tuple[str, ...],
    photos: str | None,
    regions: tuple[str, ...],
    split: str,
    language: str,
    pool: tuple[str, ...],
    folds: int,
    rerank: int,
    curve: str | None,
    model: str | None,
    reranker: str | None,
    as_json: bool,
    more: tuple[str, ...],
) -> None:
    """Measure Recall@1/5/10 in both directions on photos with captions.

    PATH is a tar or folder of NAME.jpg and NAME.json ({"captions": [...]}), or, with --photos or --regions, a
    Karpathy JSON (Flickr8k, Flickr30k, COCO), a text LMDB of LightningDOT, a task's folder of Multi30K, or the folder
    of Flickr8k's, Flickr30k's or COCO-CN's captions.

    Published figures are printed beside the measured ones where there are some: Flickr30k 1K and COCO 5K.
    """
    import logging

    from ldot_milvus.errors import UsageError
    from ldot_milvus.evaluation.curve import NUMBERS, check_picture, draw
    from ldot_milvus.evaluation.datasets import DataSet, read_data_set
    from ldot_milvus.evaluation.evaluate import evaluate as measure
    from ldot_milvus.evaluation.report import headline, published_figures, table

    if rerank < 0:
        raise UsageError(f"--rerank is {rerank}: it must be 0 or more")
    if curve is not None:
        check_picture(curve)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stderr.isatty():
        logging.getLogger("ldot_milvus.evaluation").setLevel(logging.INFO)
    settings = settings_with(model=model, reranker=reranker)
    asked = read_data_set([*data, *more], regions=regions, photos=photos, split=split, language=language)
    others = DataSet("", [])
    if pool:
        others = read_data_set(pool, regions=regions, photos=photos, split=split, others=True, language=language)
    result = measure(
        embedder_of(settings), asked.pairs, reranker=settings.reranker, rerank=rerank,
        curve=NUMBERS if curve else (), folds=folds,
        pool=others.pairs, vocabulary=asked.vocabulary or others.vocabulary,
    )  # fmt: skip
    if curve is not None:
        name = asked.name or ", ".join(Path(path).name for path in (*data, *more))
        draw(result["curve"], curve, title=f"{Path(settings.model).name} on {name}, {result['images']:,} photos")
    published = published_figures(asked.name, result)
    if as_json:
        click.echo(json.dumps({**result, "published": published} if published else result))
    else:
        click.echo(headline(result))
        click.echo(table(result, published))
