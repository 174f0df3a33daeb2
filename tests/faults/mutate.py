"""Damaged photos: seeded mutations of small photos in every format. As a program, it ingests many of them.

``python -m tests.faults.mutate FOLDER MODEL COUNT`` ingests COUNT mutated photos and prints the outcome as JSON.
"""

from __future__ import annotations

import io
import json
import random
import resource
import struct
import sys
import time
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np

from ldot_milvus.sources import Source


@cache
def originals() -> list[bytes]:
    """Small photos in all formats and their main variants."""
    import pillow_heif
    from PIL import Image

    pillow_heif.register_heif_opener()
    rgb = Image.fromarray(np.random.default_rng(0).integers(0, 256, (12, 16, 3), dtype=np.uint8)).resize((96, 72))
    grey16 = Image.fromarray((np.arange(48 * 48).reshape(48, 48) * 28).astype(np.uint16))
    exif = Image.Exif()
    exif[0x0112] = 6
    frames = [rgb.rotate(angle) for angle in (90, 180)]
    options: list[tuple[Image.Image, str, dict[str, Any]]] = [
        (rgb, "JPEG", {"exif": exif}),
        (rgb, "JPEG", {"progressive": True}),
        (rgb.convert("CMYK"), "JPEG", {}),
        (rgb.convert("L"), "JPEG", {"restart_marker_blocks": 2}),
        (rgb, "PNG", {"exif": exif}),
        (rgb.convert("P"), "PNG", {"transparency": 3}),
        (rgb.convert("1"), "PNG", {}),
        (grey16, "PNG", {}),
        (rgb.convert("RGBA"), "PNG", {"save_all": True, "append_images": frames}),
        (rgb, "WEBP", {"exif": exif}),
        (rgb.convert("RGBA"), "WEBP", {"lossless": True}),
        (rgb, "WEBP", {"save_all": True, "append_images": frames}),
        (rgb, "GIF", {"save_all": True, "append_images": frames}),
        (rgb.convert("L"), "GIF", {"interlace": True}),
        (rgb, "BMP", {}),
        (rgb.convert("P"), "BMP", {}),
        (rgb, "TIFF", {"compression": "tiff_lzw"}),
        (rgb, "TIFF", {"compression": "tiff_adobe_deflate"}),
        (rgb, "TIFF", {"compression": "jpeg"}),
        (grey16, "TIFF", {}),
        (rgb, "AVIF", {"save_all": True, "append_images": frames}),
        (rgb.convert("RGBA"), "AVIF", {}),
        (rgb, "HEIF", {"exif": exif.tobytes()}),
        (rgb.convert("RGBA"), "HEIF", {}),
    ]
    encoded = []
    for image, format, keywords in options:
        buffer = io.BytesIO()
        image.save(buffer, format, **keywords)
        encoded.append(buffer.getvalue())
    return encoded


def mutated(seed: int) -> bytes:
    """One of the originals, damaged."""
    rnd = random.Random(seed)
    return damaged(rnd.choice(originals()), rnd)


def damaged(original: bytes, rnd: random.Random) -> bytes:
    """A copy with flipped bits, a missing end, a lying header, or bytes cut out, doubled or replaced."""
    data = bytearray(original)
    for _ in range(rnd.choice((1, 1, 1, 2, 4))):
        if not data:
            break
        # Prefer headers, whose values have the largest effect.
        where = rnd.randrange(min(len(data), rnd.choice((32, 256, len(data)))))
        match rnd.randrange(6):
            case 0:
                for _ in range(rnd.randint(1, 16)):
                    data[rnd.randrange(len(data))] ^= 1 << rnd.randrange(8)
            case 1:
                del data[where:]
            case 2:
                value = rnd.choice((0, 1, 255, 0x7FFF, 0xFFFF, 0x10000, 0x7FFFFFFF, 0xFFFFFFFF, rnd.getrandbits(32)))
                lie = struct.pack(rnd.choice("<>") + "I", value)[rnd.choice((0, 2)) :]
                data[where : where + len(lie)] = lie
            case 3:
                del data[where : where + rnd.randint(1, 64)]
            case 4:
                data[where:where] = data[where : where + rnd.randint(1, 64)] * rnd.randint(1, 8)
            case 5:
                data[where : where + 4] = rnd.randbytes(4)
    return bytes(data)


def main(folder: Path, model: str, count: int) -> dict[str, Any]:
    """Ingest ``count`` mutated photos; return the outcome, the slowest photo and the memory growth."""
    from ldot_milvus import open_store
    from ldot_milvus.images import content_id, decode
    from ldot_milvus.ingest import ingestor as module

    slowest: tuple[float, str] = (0.0, "")

    def timed(data: bytes, **options: Any) -> Any:
        nonlocal slowest
        start = time.thread_time()  # of this thread alone, so that a busy machine does not count
        try:
            return decode(data, **options)
        finally:
            slowest = max(slowest, (time.thread_time() - start, options["name"]))

    module.decode = timed  # type: ignore[assignment]
    photos = folder / "photos"
    photos.mkdir()
    lost = []
    failures: dict[str, str] = {}
    with open_store(f"faiss:{folder / 'store'}", "photos") as store:
        ingestor = module.Ingestor(store, model)
        report = ingestor.ingest([_written(photos, "good", originals()[0])])
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        for start in range(0, count, 64):
            seeds = range(start, min(start + 64, count))
            sources = [_written(photos, str(seed), mutated(seed)) for seed in seeds]
            part = ingestor.ingest(sources)
            failed = {failure.source: failure.reason for failure in part.failed}
            ids = {source.name: content_id(Path(source.path).read_bytes()) for source in sources}
            stored = {row.id for row in store.get(list(ids.values()))}
            lost += [name for name, id in ids.items() if (id in stored) == (name in failed)]
            failures |= failed
            report.add(part)
        rows = store.count()
    return {
        "total": report.total - 1, "added": report.added - 1, "failed": len(failures), "rows": rows, "lost": lost,
        "reasons": sorted({reason for reason in failures.values() if len(reason) < 300 and reason.isprintable()}),
        "unprintable": [reason for reason in failures.values() if not reason.isprintable()],
        "slowest": slowest, "grown_mib": (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024,
    }  # fmt: skip


def _written(folder: Path, name: str, data: bytes) -> Source:
    path = folder / name  # without a suffix, which would have to fit
    path.write_bytes(data)
    return Source(str(path))


if __name__ == "__main__":
    print(json.dumps(main(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))))
