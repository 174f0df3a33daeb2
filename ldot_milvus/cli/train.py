"""The command ``ldot train``."""

from __future__ import annotations

import os
from typing import Any

import click

from ldot_milvus.cli.common import one_line_errors
from ldot_milvus.cli.output import say


@click.command()
@click.argument("recipe")
@click.option("--out", required=True, metavar="DIR", help="Folder of the run. An interrupted run resumes from it.")
@click.option("--train", "train_data", multiple=True, metavar="PATH", help="Captioned photos to train on (repeatable).")
@click.option(
    "--dev",
    "dev_data",
    multiple=True,
    metavar="PATH",
    help="Captioned photos whose recall selects the best weights (repeatable).",
)
@click.option("--photos", metavar="DIR", help="Folder of the photos that a Karpathy JSON file names.")
@click.option(
    "--regions",
    multiple=True,
    metavar="PATH",
    help="Region features of the --train photos: LMDB, folder of npz files or TSV (repeatable).",
)
@click.option(
    "--dev-regions",
    multiple=True,
    metavar="PATH",
    help="Region features of the --dev photos (default: those of --regions; repeatable).",
)
@click.option("--model", metavar="NAME", help="Model to start from: packaged name, folder or hub id.")
@click.option("--max-steps", type=click.IntRange(min=1), metavar="N", help="Stop every stage after N steps.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="PLACE=VALUE",
    help="Change a value of the recipe, such as stages.0.batch_size=128 (repeatable).",
)
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
    """Train, fine-tune or pre-train a model.

    RECIPE is finetune, rerank, compressed, labels, pretrain, ldot-mini, or a TOML file (see docs/training.md).

    PATH is a tar or a folder of NAME.jpg and NAME.json ({"captions": [...]}), a Karpathy JSON file (with --photos or
    --regions), or a LightningDOT text LMDB (with --regions).

    On several GPUs or machines: accelerate launch -m ldot_milvus train ...
    """
    import logging

    from ldot_milvus.errors import UsageError

    try:
        import accelerate  # noqa: F401
        import onnx  # noqa: F401
    except ImportError as error:
        raise UsageError(f"training needs {error.name}: pip install 'ldot-milvus[train]'") from error
    from ldot_milvus.training.recipe import parse_change, read_recipe

    options = {
        "data.train": list(train_data),
        "data.dev": list(dev_data),
        "data.photos": photos,
        "data.regions": list(regions),
        "data.dev_regions": list(dev_regions),
        "start.model": model,
    }
    overrides: dict[str, Any] = {key: value for key, value in options.items() if value}
    if model is not None:
        overrides["start.text"] = None
    parsed = read_recipe(recipe, {**overrides, **dict(map(parse_change, changes))})
    main_process = int(os.environ.get("RANK", "0")) == 0
    logging.basicConfig(level=logging.WARNING, format="%(asctime)s %(message)s")
    logging.getLogger("ldot_milvus").setLevel(logging.INFO if main_process else logging.WARNING)
    import torch
    from transformers.utils import logging as transformers_logging

    from ldot_milvus.training.run import train as run

    transformers_logging.set_verbosity_error()  # type: ignore[no-untyped-call]
    transformers_logging.disable_progress_bar()  # type: ignore[no-untyped-call]
    model_folder = run(parsed, out, most_steps=max_steps)
    if torch.distributed.is_initialized():
        torch.distributed.destroy_process_group()
    if main_process:
        say(f"Model: {model_folder}")
