"""``ldot train``."""

from __future__ import annotations

import os
from typing import Any

import click

from ldot_milvus.cli.common import one_line_errors


@click.command()
@click.argument("recipe")
@click.option("--out", required=True, metavar="DIR", help="The run's folder; a run that was stopped goes on from it.")
@click.option("--train", "train_data", multiple=True, metavar="PATH", help="Photos with captions to train on.")
@click.option("--dev", "dev_data", multiple=True, metavar="PATH", help="Others, by whose recall the best is chosen.")
@click.option("--photos", metavar="DIR", help="The photos that a Karpathy JSON names.")
@click.option("--regions", multiple=True, metavar="PATH", help="Region features of --train, in one place or several.")
@click.option("--dev-regions", multiple=True, metavar="PATH", help="Those of --dev, where they lie elsewhere.")
@click.option("--model", help="Model to go on with: packaged name, folder or hub id.")
@click.option("--max-steps", type=click.IntRange(min=1), metavar="N", help="End every stage after N steps.")
@click.option("--set", "changes", multiple=True, metavar="PLACE=VALUE", help="Another value of the recipe, as in TOML.")
@one_line_errors
def train(
    recipe: str,
    out: str,
    train_data: tuple[str, ...],
    dev_data: tuple[str, ...],
    photos: str | None,
    regions: tuple[str, ...],
    dev_regions: tuple[str, ...],
    model: str | None,
    max_steps: int | None,
    changes: tuple[str, ...],
) -> None:
    """Train a model by a RECIPE: ldot-mini, pretrain, finetune, rerank, or a TOML file (see docs/training.md).

    PATH is a tar or folder of NAME.jpg and NAME.json ({"captions": [...]}), a Karpathy JSON (with --photos or
    --regions), or a text LMDB of LightningDOT (with --regions). Several processes, GPUs or machines: "accelerate launch
    -m ldot_milvus train ...".
    """
    import logging

    from ldot_milvus.errors import UsageError

    try:
        import accelerate  # noqa: F401
    except ImportError as error:
        raise UsageError("training needs accelerate: pip install 'ldot-milvus[train]'") from error
    from ldot_milvus.training.recipe import parse_change, read_recipe

    places = {
        "data.train": list(train_data),
        "data.dev": list(dev_data),
        "data.photos": photos,
        "data.regions": list(regions),
        "data.dev_regions": list(dev_regions),
        "start.model": model,
    }
    given: dict[str, Any] = {place: value for place, value in places.items() if value}
    if model is not None:
        given["start.text"] = None
    chosen = read_recipe(recipe, {**given, **dict(map(parse_change, changes))})
    main = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("ldot_milvus").setLevel(logging.INFO if main else logging.WARNING)
    import torch
    from transformers.utils import logging as of_transformers

    from ldot_milvus.training.run import train as run

    of_transformers.set_verbosity_error()  # type: ignore[no-untyped-call]
    of_transformers.disable_progress_bar()  # type: ignore[no-untyped-call]
    result = run(chosen, out, most_steps=max_steps)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if main:
        click.echo(f"Model: {result}")
