"""A self-contained HTML page of search results: queries and the photos found for them."""

from __future__ import annotations

import base64
import io
import os
from collections.abc import Sequence
from html import escape
from pathlib import Path
from typing import TYPE_CHECKING

from ldot_milvus.errors import InputError, StoreError

if TYPE_CHECKING:
    from ldot_milvus.search.retriever import Hit

_THUMBNAIL = 480  # pixels of the longer side: a page of 25 pictures stays near 1 MB

_STYLE = """
:root{color-scheme:light dark}
body{font:16px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:76rem;padding:0 1rem}
h1{font-size:1.3rem;font-weight:600}
h2{font-size:1.15rem;font-weight:600;margin:2.2rem 0 .7rem}
.hits{display:grid;gap:1rem;grid-template-columns:repeat(auto-fill,minmax(13rem,1fr))}
figure{margin:0;border:1px solid #8884;border-radius:.5rem;overflow:hidden;font-size:.82rem}
figure img,.none{display:block;width:100%;height:10.5rem;object-fit:cover;background:#8882}
.none{display:grid;place-items:center;opacity:.7}
figcaption{padding:.5rem .7rem;overflow-wrap:anywhere}
.score{float:right;opacity:.7;font-variant-numeric:tabular-nums}
.more{opacity:.75;margin-top:.3rem}
"""


def write_page(path: str | os.PathLike[str], answers: Sequence[tuple[str, Sequence[Hit]]]) -> None:
    """Write an HTML page with the results of searches; a photo that cannot be read is replaced by a note.

    Args:
        path: file to write.
        answers: pairs of a query and its hits.

    Raises:
        StoreError: the file cannot be written.
    """
    sections = "".join(_section(query, hits) for query, hits in answers)
    page = (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Search results</title><style>{_STYLE}</style></head>"
        f"<body><h1>Search results, ldot-milvus</h1>{sections}</body></html>\n"
    )
    try:
        Path(path).write_text(page, encoding="utf-8")
    except OSError as error:
        raise StoreError(f"{os.fspath(path)} cannot be written ({error.strerror}): choose another file") from error


def _section(query: str, hits: Sequence[Hit]) -> str:
    cards = "".join(_card(rank, hit) for rank, hit in enumerate(hits, start=1)) or "<p>Nothing found.</p>"
    return f'<h2>{escape(query)}</h2><div class="hits">{cards}</div>'


def _card(rank: int, hit: Hit) -> str:
    score = hit.score if hit.rerank_score is None else hit.rerank_score
    lines = [f'<span class="score">{score:.2f}</span><b>{rank}</b> {escape(os.path.basename(hit.source) or hit.id)}']
    if hit.caption:
        lines.append(f'<div class="more">{escape(hit.caption.split(chr(10))[0])}</div>')
    if credit := _credit(hit):
        lines.append(f'<div class="more">{credit}</div>')
    return f"<figure>{_picture(hit)}<figcaption>{''.join(lines)}</figcaption></figure>"


def _credit(hit: Hit) -> str:
    """Return links to licence and original from the photo's metadata: a shared page needs the attribution."""
    links = [("license", hit.metadata.get("license_url")), ("original", hit.metadata.get("source"))]
    parts = []
    for name, address in links:
        if isinstance(address, str) and address.startswith(("http://", "https://")):
            text = str(hit.metadata.get(name) or name)
            parts.append(f'<a href="{escape(address)}">{escape(text)}</a>')
    return ", ".join(parts)


def _picture(hit: Hit) -> str:
    from ldot_milvus.images import decode
    from ldot_milvus.sources import locate, read

    if hit.kind != "image":
        return ""
    try:
        image = decode(read(locate(hit.source)), name=hit.source).image
    except InputError:
        return '<div class="none">photo cannot be read from here</div>'
    image.thumbnail((_THUMBNAIL, _THUMBNAIL))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=82)
    encoded = base64.b64encode(buffer.getvalue()).decode()
    return f'<img alt="{escape(hit.caption.split(chr(10))[0] or hit.source)}" src="data:image/jpeg;base64,{encoded}">'
