"""The command ``ldot eval``."""

from __future__ import annotations

import sys
from pathlib import Path

import click

from ldot_milvus.cli.common import MODEL_HELP, RERANKER_HELP, embedder_of, one_line_errors, settings_with
from ldot_milvus.cli.output import say, say_json


@click.command("eval")
@click.option("--data", multiple=True, required=True, metavar="PATH", help="Photos with captions (repeatable).")
@click.option("--photos", metavar="DIR", help="Folder of the photos that a caption file names.")
@click.option(
    "--regions",
    multiple=True,
    metavar="PATH",
    help="Region features to use instead of pixels: LMDB, folder of npz files or TSV (repeatable).",
)
@click.option("--split", default="test", show_default=True, help="Split to evaluate, if the data set has several.")
@click.option("--language", default="en", show_default=True, help="Caption language, for Multi30K.")
@click.option(
    "--pool",
    multiple=True,
    metavar="PATH",
    help="Also search these photos and captions; of a data set with splits, all its other splits (repeatable).",
)
@click.option(
    "--folds",
    type=click.IntRange(1),
    default=1,
    metavar="N",
    help="Average over N equal parts of the data, such as 5 for COCO 1K.",
)
@click.option(
    "--rerank",
    type=int,
    default=0,
    show_default=True,
    metavar="M",
    help="Also re-rank the first M candidates of each query.",
)
@click.option(
    "--curve", metavar="OUT.png", help="Plot R@1 against the number of re-ranked candidates, 0 to 100, as .png or .svg."
)
@click.option(
    "--cache",
    metavar="DIR",
    help="Keep the encoded pairs in DIR, where the next evaluation of the same model finds them (50 kB a photo).",
)
@click.option("--model", metavar="NAME", help=MODEL_HELP)
@click.option("--reranker", metavar="NAME", help=RERANKER_HELP)
@click.option("--json", "as_json", is_flag=True, help="Print the results as JSON.")
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
    cache: str | None,
    model: str | None,
    reranker: str | None,
    as_json: bool,
    more: tuple[str, ...],
) -> None:
    """Measure Recall@1/5/10 in both directions on captioned photos.

    PATH is a tar or a folder of NAME.jpg and NAME.json ({"captions": [...]}). PATHs without an option are added to
    --data.

    With --photos or --regions, PATH is one of: a Karpathy JSON file (Flickr8k, Flickr30k, COCO), a LightningDOT text
    LMDB, a task folder of Multi30K, or the caption folder of Flickr8k, Flickr30k or COCO-CN.

    For Flickr30k 1K and COCO 5K the published results are printed below the measured ones. See docs/evaluation.md.
    """
    import logging

    from ldot_milvus.errors import UsageError
    from ldot_milvus.evaluation.curve import NUMBERS, check_picture, draw
    from ldot_milvus.evaluation.datasets import DataSet, read_data_set
    from ldot_milvus.evaluation.evaluate import evaluate as measure
    from ldot_milvus.evaluation.report import headline, published_figures, table

    if rerank < 0:
        raise UsageError(f"--rerank is {rerank}: give 0 or more")
    if curve is not None:
        check_picture(curve)
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stderr.isatty():
        logging.getLogger("ldot_milvus.evaluation").setLevel(logging.INFO)
    settings = settings_with(model=model, reranker=reranker)
    evaluated = read_data_set([*data, *more], regions=regions, photos=photos, split=split, language=language)
    distractors = DataSet("", [])
    if pool:
        distractors = read_data_set(pool, regions=regions, photos=photos, split=split, others=True, language=language)
    result = measure(
        embedder_of(settings), evaluated.pairs, reranker=settings.reranker, rerank=rerank,
        curve=NUMBERS if curve else (), folds=folds,
        pool=distractors.pairs, vocabulary=evaluated.vocabulary or distractors.vocabulary,
        cache=cache, precision=f"{settings.device} {settings.dtype}",
    )  # fmt: skip
    if curve is not None:
        name = evaluated.name or ", ".join(Path(path).name for path in (*data, *more))
        draw(result["curve"], curve, title=f"{Path(settings.model).name} on {name}, {result['images']:,} photos")
    published = published_figures(evaluated.name, result)
    if as_json:
        say_json({**result, "published": published} if published else result)
    else:
        say(headline(result), *table(result, published).split("\n"))
