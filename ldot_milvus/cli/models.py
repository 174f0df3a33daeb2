"""The command ``ldot models``."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterator
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from ldot_milvus.cli.common import one_line_errors
from ldot_milvus.cli.output import say, say_json

if TYPE_CHECKING:
    from ldot_milvus.models.catalogue import Kept, PublishedModel
    from ldot_milvus.models.installed import InstalledModel

WIDTH = 100
MIN_WIDTH = 40


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
        say_json(_as_json(here))
        return
    say("On this machine")
    for model in here:
        say(*_of_installed(model))
    if len({model.folder.parent for model in here}) == 1:
        say("", f"  Nothing of a known family in the cache {cache_folder()}")
    say(
        "",
        *textwrap.wrap(
            "Published models. Recall is R@1 in percent, text to image / image to text, and the authors' own figure "
            "unless it is marked as secondary. Of these we measured only ldot-mini's. Weights stay under their own "
            "licences: read them first.",
            _width(),
        ),
    )
    for family, stages, listed in _families():
        say("", f"{family}: {stages}")
        if not listed:
            say("  no model is listed: name any of the family")
        for entry in listed:
            cached = any(model.name == entry.name for model in here)
            say(*_of_published(entry, cached))


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
    yield from ("", f"  {model.name}")
    yield from _lines("family", f"{model.family}; {at}; {size_in_words(model.size)} on disk")
    yield from _lines("licence", model.licence or f"see https://huggingface.co/{model.name}")
    if model.kept is not None:
        yield from _lines("a photo", _kept(model.kept))
    if model.complete:
        yield from _lines("set", model.settings)
    else:
        yield from _lines(
            "lacks", "safetensors: name it once to download them, or convert its weights with ldot convert"
        )


def _of_published(model: PublishedModel, cached: bool) -> Iterator[str]:
    yield from ("", f"  {model.name}" + ("  (on this machine)" if cached else ""))
    if model.first_stage is not None:
        yield from _lines("over", model.first_stage)
    yield from _lines("licence", model.licence)
    yield from _lines("size", model.size)
    yield from _lines("a photo", "no region data: first stage alone" if model.kept is None else _kept(model.kept))
    for figure in model.figures:
        source = f"secondary: {figure.source}" if figure.secondary else figure.source
        yield from _lines(
            figure.data, f"{figure.text_to_image:.1f} / {figure.image_to_text:.1f}  {figure.setting} ({source})"
        )
    yield from _lines("set", model.settings)
    if model.note:
        yield from _lines("note", model.note)


def _kept(kept: Kept) -> str:
    from ldot_milvus.models.catalogue import size_in_words

    return f"{kept.rows} x {kept.width:,}: {size_in_words(kept.float16)}, as int8 {size_in_words(kept.int8)}"


def _lines(label: str, text: str) -> list[str]:
    return textwrap.wrap(
        text, _width(), initial_indent=f"    {label:<13}", subsequent_indent=" " * 17, break_long_words=False,
        break_on_hyphens=False,
    )  # fmt: skip


def _width() -> int:
    """Return the width of the terminal, at most :data:`WIDTH`; COLUMNS sets it."""
    return max(MIN_WIDTH, min(WIDTH, shutil.get_terminal_size((WIDTH, 24)).columns))


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
