"""The command ``ldot models``."""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.cli.common import one_line_errors

if TYPE_CHECKING:
    from ldot_milvus.models.catalogue import Kept, PublishedModel
    from ldot_milvus.models.installed import InstalledModel

WIDTH = 100


@click.command()
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@one_line_errors
def models(as_json: bool) -> None:
    """List models: what is on this machine, and what can be downloaded.

    Prints for each model the licence, the sizes, the bytes that re-ranking stores of a photo, the published recall with
    its source, and what to set. The cache of the Hugging Face hub is read, and nothing is downloaded.
    """
    from ldot_milvus.models.installed import cache_folder, installed

    here = installed()
    if as_json:
        click.echo(json.dumps(_as_json(here), ensure_ascii=False))
        return
    click.echo("On this machine")
    for model in here:
        click.echo("\n".join(_of_installed(model)))
    if len({model.folder.parent for model in here}) == 1:
        click.echo(f"\n  Nothing of a known family in the cache {cache_folder()}")
    click.echo(
        "\nPublished models. Recall is R@1 in percent, text to image / image to text, and the authors' own\n"
        "figure unless it is marked as secondary. Of these we measured only ldot-mini's. Weights stay under\n"
        "their own licences: read them first."
    )
    for family, stages, listed in _families():
        click.echo(f"\n{family}: {stages}")
        if not listed:
            click.echo("  no model is listed: name any of the family")
        for entry in listed:
            cached = any(model.name == entry.name for model in here)
            click.echo("\n".join(_of_published(entry, cached)))


def _families() -> list[tuple[str, str, list[PublishedModel]]]:
    from ldot_milvus.models.catalogue import PUBLISHED, STAGES
    from ldot_milvus.models.registry import FAMILIES

    return [
        (family, STAGES.get(family, "a registered family"), [model for model in PUBLISHED if model.family == family])
        for family in [*STAGES, *sorted(FAMILIES.keys() - STAGES.keys())]
    ]


def _of_installed(model: InstalledModel) -> Iterator[str]:
    from ldot_milvus.models.catalogue import size_in_words

    at = "packaged" if model.commit is None else f"commit {model.commit[:12]}"
    if model.refs:
        at += f" ({', '.join(model.refs)})"
    yield f"\n  {model.name}"
    yield _line("family", f"{model.family}; {at}; {size_in_words(model.size)} on disk")
    yield _line("licence", model.licence or f"see https://huggingface.co/{model.name}")
    if model.kept is not None:
        yield _line("a photo", _kept(model.kept))
    if model.complete:
        yield _line("set", model.settings)
    else:
        yield _line("lacks", "safetensors: name it once to download them, or convert its weights with ldot convert")


def _of_published(model: PublishedModel, cached: bool) -> Iterator[str]:
    yield f"\n  {model.name}" + ("  (on this machine)" if cached else "")
    if model.first_stage is not None:
        yield _line("over", model.first_stage)
    yield _line("licence", model.licence)
    yield _line("size", model.size)
    yield _line("a photo", "no region data: first stage alone" if model.kept is None else _kept(model.kept))
    for figure in model.figures:
        source = f"secondary: {figure.source}" if figure.secondary else figure.source
        yield _line(
            figure.data, f"{figure.text_to_image:.1f} / {figure.image_to_text:.1f}  {figure.setting} ({source})"
        )
    yield _line("set", model.settings)
    if model.note:
        yield _line("note", model.note)


def _kept(kept: Kept) -> str:
    from ldot_milvus.models.catalogue import size_in_words

    return f"{kept.rows} x {kept.width:,}: {size_in_words(kept.float16)}, as int8 {size_in_words(kept.int8)}"


def _line(label: str, text: str) -> str:
    return textwrap.fill(
        text, WIDTH, initial_indent=f"    {label:<13}", subsequent_indent=" " * 17, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _as_json(here: list[InstalledModel]) -> dict[str, Any]:
    return {
        "installed": [{**asdict(model), "folder": str(model.folder), "kept": _json_kept(model.kept)} for model in here],
        "families": [
            {
                "model_type": family, "stages": stages,
                "models": [{**asdict(model), "kept": _json_kept(model.kept)} for model in listed],
            }
            for family, stages, listed in _families()
        ],
    }  # fmt: skip


def _json_kept(kept: Kept | None) -> dict[str, int] | None:
    return None if kept is None else {**asdict(kept), "float16": kept.float16, "int8": kept.int8}
