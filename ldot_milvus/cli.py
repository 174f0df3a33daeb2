"""``ldot``: search and evaluate from the shell. Commands import what they need when they run."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from functools import wraps
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

if TYPE_CHECKING:
    from .embedder import LightningDOTEmbedder
    from .retrieval import Hit
    from .settings import Settings

F = TypeVar("F", bound=Callable[..., None])


def _one_line_errors(command: F) -> F:
    """Our own errors become one line and exit status 2."""

    @wraps(command)
    def wrapped(*args: Any, **kwargs: Any) -> None:
        from .errors import LdotError

        try:
            command(*args, **kwargs)
        except LdotError as error:
            click.echo(f"Error: {error}", err=True)
            sys.exit(2)

    return cast(F, wrapped)


@click.group(context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="ldot-milvus")
def main() -> None:
    """Image-text retrieval with LightningDOT.

    Photos are ingested with "celery -A workers enqueue PATH...". Settings come from the environment (LDOT_STORE,
    LDOT_COLLECTION, LDOT_MODEL, ...).
    """


@main.command()
@click.argument("texts", nargs=-1, metavar='"TEXT"...')
@click.option("--image", metavar="FILE", help="Search with a photo instead of a text.")
@click.option("-k", "k", type=int, default=5, show_default=True, help="How many answers.")
@click.option("--rerank", type=int, metavar="M", help="Re-rank the first M (default: 20; 0: dot product alone).")
@click.option("--filter", "filter_", metavar="JSON", help='For example \'{"width": {"$gte": 640}}\'.')
@click.option("--kind", type=click.Choice(["image", "text"]), default="image", show_default=True, help="What to find.")
@click.option("--collection", help="Collection to search (default: LDOT_COLLECTION, 'images').")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.option("--html", metavar="OUT.html", help="Also write one self-contained page with the pictures.")
@_one_line_errors
def search(
    texts: tuple[str, ...],
    image: str | None,
    k: int,
    rerank: int | None,
    filter_: str | None,
    kind: str,
    collection: str | None,
    store: str | None,
    model: str | None,
    as_json: bool,
    html: str | None,
) -> None:
    """Find photos by describing them; several texts are several searches."""
    from .errors import CollectionNotFound, UsageError

    if bool(texts) == bool(image):
        raise UsageError("give a text to search for, or --image FILE (one of them)")
    if k < 1:
        raise UsageError(f"-k is {k}: ask for at least 1 answer")
    if rerank is not None and rerank < 0:
        raise UsageError(f"--rerank is {rerank}: it must be 0 or more")
    if any(not text.strip() for text in texts):
        raise UsageError("the text is empty: describe what to look for")
    settings = _settings(collection=collection, store=store, model=model)
    parsed = _parse_filter(filter_)

    from .stores import open_store

    with open_store(settings.store, settings.collection) as opened:
        if opened.dim is None:
            raise CollectionNotFound(
                f"there is no collection {settings.collection!r} in {settings.store}: "
                'ingest photos first with "celery -A workers enqueue PATH..."'
            )
        _check_model(opened.model, settings)
        from .retrieval import Retriever

        retriever = Retriever(_embedder(settings), opened)
        options: dict[str, Any] = {"k": k, "rerank": rerank, "filter": parsed, "kind": kind}
        answers = [(text, retriever.search(text, **options)) for text in texts]
        if image is not None:
            answers.append((image, retriever.search(image=image, **options)))
    if html:
        from .html import write_page

        write_page(html, answers)
    if as_json:
        found = [{"query": query, "hits": [vars(hit) for hit in hits]} for query, hits in answers]
        click.echo(json.dumps(found if len(found) > 1 else found[0], ensure_ascii=False, indent=2))
    else:
        for query, hits in answers:
            _print_hits(query, hits)
    if html:
        click.echo(f"Page: {html}", err=as_json)


@main.command("eval")
@click.option("--data", multiple=True, required=True, metavar="PATH", help="Photos with captions: see below.")
@click.option("--regions", metavar="PATH", help="Their region features: an LMDB, a folder of npz files, or a TSV.")
@click.option("--photos", metavar="DIR", help="The photos that a Karpathy JSON names.")
@click.option("--split", default="test", show_default=True, help="Of a Karpathy JSON.")
@click.option("--rerank", type=int, default=0, show_default=True, metavar="M", help="Re-rank the first M too.")
@click.option("--model", help="Model: packaged name, folder or hub id (default: LDOT_MODEL, 'ldot-mini').")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
@click.argument("more", nargs=-1, metavar="[PATH]...")
@_one_line_errors
def evaluate_(
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

    from .errors import UsageError
    from .evaluation.datasets import read_pairs
    from .evaluation.evaluate import evaluate

    if rerank < 0:
        raise UsageError(f"--rerank is {rerank}: it must be 0 or more")
    logging.basicConfig(level=logging.WARNING, format="%(message)s")
    if sys.stderr.isatty():
        logging.getLogger("ldot_milvus.evaluation").setLevel(logging.INFO)
    settings = _settings(model=model)
    pairs = read_pairs([*data, *more], regions=regions, photos=photos, split=split)
    result = evaluate(_embedder(settings), pairs, rerank=rerank)
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


@main.command()
@click.argument("source", metavar="SRC.pt")
@click.argument("target", metavar="DST")
@click.option("--config", metavar="FILE", help="BERT configuration (JSON) for what a checkpoint does not tell.")
@click.option("--pretraining", is_flag=True, help="Keep the heads of pre-training, to go on with it.")
@_one_line_errors
def convert(source: str, target: str, config: str | None, pretraining: bool) -> None:
    """Turn a published checkpoint into the folder DST, which works wherever a model's name does.

    SRC.pt is a LightningDOT dual encoder (pre-trained or fine-tuned) or a UNITER re-ranker; put the latter into the
    folder "reranker" of the former. Anything else, or a checkpoint with tensors missing or left over, is refused.
    """
    from .conversion import convert as convert_checkpoint

    report = convert_checkpoint(source, target, config=_read_json(config), pretraining=pretraining)
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


@main.command()
@click.argument("source", metavar="FROM")
@click.argument("target", metavar="TO")
@click.option("--collection", help="Collection to copy (default: LDOT_COLLECTION, 'images').")
@click.option("--regions-from", metavar="ADDRESS", help="Region store of FROM (default: beside a local store).")
@click.option("--regions-to", metavar="ADDRESS", help="Region store of TO (default: beside a local store).")
@_one_line_errors
def migrate(source: str, target: str, collection: str | None, regions_from: str | None, regions_to: str | None) -> None:
    """Copy a collection from one store to another, region data included.

    Addresses are those of LDOT_STORE: faiss:PATH, PATH.db, http://HOST:19530. Run it again after an interruption: what
    is there already is not sent again. The copy is checked by count and by the checksums of a sample.
    """
    from tqdm import tqdm

    from .errors import UsageError
    from .migration import migrate as copy
    from .region_store import open_region_store
    from .stores import open_store

    if source == target:
        raise UsageError(f"FROM and TO are both {source}: name two stores")
    name = _settings(collection=collection).collection
    with open_store(source, name) as old, open_store(target, name) as new:
        regions = None
        if old.model is not None:
            regions = [open_region_store(*store) for store in
                       ((source, old.model, regions_from), (target, old.model, regions_to))]  # fmt: skip
            if regions[0].address == regions[1].address:
                regions = None  # both stores read the same ones
        with tqdm(total=old.count(), unit=" rows", disable=None) as bar:
            done = copy(old, new, *(regions or (None, None)), progress=bar.update)
    click.echo(f"{done.rows} rows of {source}: {done.copied} copied, {done.rows - done.copied} were there already")
    click.echo(f"region data of {done.regions} photos copied; {done.checked} rows compared by checksum: all the same")


@main.command()
@click.option("--collection", help="Collection to build anew (default: LDOT_COLLECTION, 'images').")
@click.option("--store", help="Address of the store (default: LDOT_STORE, 'faiss:./ldot-data').")
@click.option("--model", help="Read every photo again and encode it with this model.")
@click.option("--index", help="Index to build, such as HNSW:M=32 (default: LDOT_INDEX, 'auto').")
@_one_line_errors
def reindex(collection: str | None, store: str | None, model: str | None, index: str | None) -> None:
    """Build a collection anew with another index or another model, and put it in the old one's place.

    Searches find the old rows until the new ones are complete.
    """
    from tqdm import tqdm

    from .reindexing import rebuild_index, reembed
    from .stores import open_store

    settings = _settings(collection=collection, store=store, index=index)
    with (
        open_store(settings.store, settings.collection, settings.index) as opened,
        tqdm(total=opened.count(), unit=" rows", disable=None) as bar,
    ):
        if model is None:
            rows = rebuild_index(opened, progress=bar.update)
            click.echo(f"{rows} rows of {settings.collection!r} have a new index")
        else:
            report = reembed(
                opened, model, region_store=settings.region_store, device=settings.device, dtype=settings.dtype,
                progress=bar.update,
            )  # fmt: skip
            click.echo(f"{report.added} rows of {settings.collection!r} have vectors of {model}")


def _read_json(file: str | None) -> dict[str, Any]:
    from .errors import UsageError

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


def _settings(**chosen: str | None) -> Settings:
    from .settings import Settings

    return Settings().model_copy(update={name: value for name, value in chosen.items() if value is not None})


def _embedder(settings: Settings) -> LightningDOTEmbedder:
    from .embedder import LightningDOTEmbedder

    return LightningDOTEmbedder(settings.model, device=settings.device, dtype=settings.dtype)


def _check_model(stored: str | None, settings: Settings) -> None:
    """Refuse another model's collection before seconds go into loading the model."""
    from .bundle import find_model
    from .errors import ModelMismatch

    if stored not in (None, find_model(settings.model).fingerprint):
        raise ModelMismatch(
            f"collection {settings.collection!r} in {settings.store} was filled with another model than "
            f"{settings.model!r}: name that model with --model, or ingest into another --collection"
        )


def _parse_filter(text: str | None) -> dict[str, Any] | None:
    from .errors import FilterError

    if text is None:
        return None
    try:
        value = json.loads(text)
    except ValueError as error:
        raise FilterError(f"--filter is not JSON ({error})") from error
    if not isinstance(value, dict):
        raise FilterError('--filter must be a JSON object such as {"width": {"$gte": 640}}')
    return value


def _print_hits(query: str, hits: list[Hit]) -> None:
    click.echo(f"\n{query}")
    if not hits:
        click.echo("  nothing found")
    for place, hit in enumerate(hits, start=1):
        reranked = "" if hit.rerank_score is None else f"  rerank {hit.rerank_score:7.3f}"
        caption = hit.caption.split("\n")[0]
        click.echo(f"  {place:>3}. score {hit.score:7.3f}{reranked}  {hit.source or hit.id}  {caption}".rstrip())
