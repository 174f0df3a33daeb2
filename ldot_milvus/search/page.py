"""Self-contained HTML pages with photos: the results of searches, and groups of near-duplicates."""

from __future__ import annotations

import base64
import os
from collections.abc import Iterable, Iterator, Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ldot_milvus.errors import InputError, StoreError, printable
from ldot_milvus.redaction import masked
from ldot_milvus.search.probability import is_at_least
from ldot_milvus.search.thumbnails import thumbnail
from ldot_milvus.stores.registry import absolute_path

if TYPE_CHECKING:
    from ldot_milvus.search.duplicates import Duplicate
    from ldot_milvus.search.retriever import Hit
    from ldot_milvus.stores import Record

MAX_PHOTOS = 600
"""Number of near-duplicates on a page, which is then about 20 MB; further groups are counted."""

MAX_OF_GROUP = 12
"""Number of photos shown of one group of near-duplicates; further ones are counted."""

_THUMBNAIL = 480  # pixels of the longer side: a page of 25 pictures stays near 1 MB

CARDS_CSS = Path(__file__).parent / "cards.css"
"""The stylesheet that these pages share with those of ``ldot serve``, whose cards have the same markup."""

_LEAST_RATIO, _MOST_RATIO = 0.7, 2.4  # of a card's width and height; other photos are cropped


def write_page(
    path: str | os.PathLike[str],
    answers: Sequence[tuple[str, Sequence[Hit]]],
    *,
    min_probability: float | None = None,
) -> None:
    """Write an HTML page with the results of searches; a photo that cannot be read is replaced by a note.

    Args:
        path: file to write.
        answers: pairs of a query and its hits.
        min_probability: hits without at least this probability are greyed; None greys none.

    Raises:
        StoreError: the file cannot be written.
    """
    _write(path, "Search results", (_answer(query, hits, min_probability) for query, hits in answers))


def write_groups(path: str | os.PathLike[str], groups: Sequence[Sequence[Duplicate]]) -> None:
    """Write an HTML page with groups of near-duplicates; a photo that cannot be read is replaced by a note.

    The page contains the first 12 photos of each group, and as many groups as have 600 photos together. It counts the
    others.

    Args:
        path: file to write.
        groups: groups as :func:`~ldot_milvus.search.duplicates.find_duplicates` returns them.

    Raises:
        StoreError: the file cannot be written.
    """
    _write(path, "Near-duplicates", _group_sections(groups))


def _write(path: str | os.PathLike[str], title: str, sections: Iterable[str]) -> None:
    try:
        with open(absolute_path(path), "w", encoding="utf-8") as file:
            file.write(
                '<!doctype html><html lang="en"><head><meta charset="utf-8">'
                '<meta name="viewport" content="width=device-width,initial-scale=1">'
                f"<title>{title}</title><style>{CARDS_CSS.read_text()}</style></head>"
                f"<body><h1>{title}, ldot-milvus</h1>"
            )
            file.writelines(sections)  # one at a time: a page of pictures has megabytes
            file.write("</body></html>\n")
    except OSError as error:
        raise StoreError(f"{os.fspath(path)} cannot be written ({error.strerror}): choose another file") from error


def _answer(query: str, hits: Sequence[Hit], min_probability: float | None) -> str:
    likely = [is_at_least(hit, min_probability) for hit in hits]
    nothing = "" if any(likely) else "<p>Nothing found.</p>"
    if hits and nothing:
        nothing = f"<p>Nothing found with a probability of at least {min_probability:g}. The nearest photos:</p>"
    return _section(query, map(_card, range(1, len(hits) + 1), hits, likely), before=nothing)


def _text(value: str) -> str:
    """Return a file name or a caption as HTML, in which it can neither be markup nor reverse the order of a line."""
    return escape(printable(masked(value)))


def _section(heading: str, cards: Iterable[str], *, before: str = "", more: str = "", style: str = "cards") -> str:
    return f'<h2>{_text(heading)}</h2>{before}<ul class="{style}">{"".join(cards)}</ul>{more}'


def _group_sections(groups: Sequence[Sequence[Duplicate]]) -> Iterator[str]:
    if not groups:
        yield "<p>None found.</p>"
    photos = 0
    for number, group in enumerate(groups):
        shown = group[:MAX_OF_GROUP]
        photos += len(shown)
        if photos > MAX_PHOTOS:
            yield f"<p>{len(groups) - number} further groups are not on this page.</p>"
            return
        more = (
            f"<p>{len(group) - len(shown)} further photos are not on this page.</p>" if len(group) > len(shown) else ""
        )
        yield _section(f"{len(group)} photos", map(_duplicate_card, shown), more=more, style="cards whole")


def _duplicate_card(duplicate: Duplicate) -> str:
    record = duplicate.record
    size = f"{record.width} x {record.height}, " if record.width and record.height else ""
    numbers = f"{size}cosine {duplicate.cosine:.3f}"
    notes = [] if duplicate.readable else ["compared by its vector alone"]
    return _figure(record, record.source or record.id, numbers, notes)


def _card(rank: int, hit: Hit, likely: bool) -> str:
    score = f"{hit.score if hit.rerank_score is None else hit.rerank_score:.2f}"
    if hit.probability is not None:
        percent = f"{100 * hit.probability:.0f}"
        score = f'<span><span class="bar"><span style="width:{percent}%"></span></span>{percent} %</span>{score}'
    name = os.path.basename(hit.source) or hit.id
    title = hit.caption.split(chr(10))[0] or name
    numbers = f'<span class="rank">{rank}</span>{score}'
    return _figure(hit, title, numbers, [name] if title != name else [], "card" if likely else "card unlikely")


def _figure(photo: Hit | Record, title: str, numbers: str, notes: Iterable[str], style: str = "card") -> str:
    """Return a card. ``numbers`` is HTML, the other texts are escaped here."""
    ratio = photo.width / photo.height if photo.width and photo.height else 1.5
    ratio = min(max(ratio, _LEAST_RATIO), _MOST_RATIO)
    lines = [*map(_text, notes), _credit(photo)]
    picture = f'<div class="photo">{_picture(photo)}</div>' if photo.kind == "image" else ""
    return (
        f'<li class="{style}" style="--ratio:{ratio:.4f}">{picture}<div class="about">'
        f'<p class="caption">{_text(title)}</p><p class="numbers">{numbers}</p>'
        + "".join(f'<p class="more">{line}</p>' for line in lines if line)
        + "</div></li>"
    )


def _credit(hit: Hit | Record) -> str:
    """Return links to licence and original from the photo's metadata: a shared page needs the attribution."""
    links = [("license", hit.metadata.get("license_url")), ("original", hit.metadata.get("source"))]
    parts = []
    for name, address in links:
        if isinstance(address, str) and address.startswith(("http://", "https://")):
            text = str(hit.metadata.get(name) or name)
            parts.append(f'<a href="{_text(address)}">{_text(text)}</a>')
    return ", ".join(parts)


def _picture(photo: Hit | Record) -> str:
    try:
        encoded = base64.b64encode(thumbnail(photo.source, _THUMBNAIL)).decode()
    except InputError:
        return "photo cannot be read from here"
    return (
        f'<img alt="{_text(photo.caption.split(chr(10))[0] or photo.source)}" src="data:image/jpeg;base64,{encoded}">'
    )
