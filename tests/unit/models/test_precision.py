"""Which networks run in which precision."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.models import loading
from ldot_milvus.models.lightningdot.bundle import load_extractor
from ldot_milvus.models.lightningdot.files import find_lightningdot
from ldot_milvus.models.loading import choose_convolution_dtype, has_fast_bfloat16
from tests.conftest import PHOTOS


@pytest.mark.parametrize("native", [True, False])
@pytest.mark.parametrize(
    ("name", "device", "expected"),
    [
        (None, "cpu", {True: torch.bfloat16, False: torch.float32}),
        ("float32", "cpu", {True: torch.float32, False: torch.float32}),
        ("bfloat16", "cpu", {True: torch.bfloat16, False: torch.bfloat16}),
        (None, "cuda", {True: torch.float16, False: torch.float16}),
        (None, "mps", {True: torch.float32, False: torch.float32}),
    ],
)
def test_only_a_processor_that_has_bfloat16_uses_it_unasked(
    native: bool, name: str | None, device: str, expected: dict[bool, torch.dtype], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: native)
    assert choose_convolution_dtype(name, torch.device(device)) == expected[native]


@pytest.mark.parametrize(
    ("amx", "avx512", "amd", "fast"),
    [
        (True, True, False, True),  # Xeon with AMX
        (False, True, False, False),  # Xeon whose machine has no AMX
        (False, True, True, True),  # EPYC
        (False, False, True, False),  # an older EPYC
        (False, False, False, False),
    ],
)
def test_bfloat16_is_fast_by_amx_and_by_the_avx512_of_amd(
    amx: bool, avx512: bool, amd: bool, fast: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)
    monkeypatch.setattr(loading, "_is_amd", lambda: amd)
    assert has_fast_bfloat16() == fast


@pytest.mark.skipif(
    not torch.cpu._is_avx512_bf16_supported(), reason="this processor would emulate bfloat16, for minutes"
)
def test_bfloat16_moves_a_vector_by_less_than_a_thousandth(monkeypatch: pytest.MonkeyPatch) -> None:
    photos = sorted(PHOTOS.glob("*.jpg"))[:6]
    exact = LightningDOTEmbedder("ldot-mini", device="cpu", dtype="float32").encode_images(photos)
    monkeypatch.setattr(loading, "has_fast_bfloat16", lambda: True)
    chosen = LightningDOTEmbedder("ldot-mini", device="cpu").encode_images(photos)
    norms = np.linalg.norm(exact, axis=1) * np.linalg.norm(chosen, axis=1)
    assert ((exact * chosen).sum(1) / norms > 0.999).all()


@pytest.mark.parametrize(("kind", "expected"), [("grid", torch.bfloat16), ("bottom_up", torch.float32)])
def test_a_detector_keeps_the_precision_of_the_model(
    kind: str, expected: torch.dtype, tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.dtype] = []

    class Extractor:
        dim, least_side = 32, None

        @classmethod
        def from_pretrained(cls, folder: str, *, dtype: torch.dtype, **_: object) -> Extractor:
            made.append(dtype)
            return cls()

    folder = Path(shutil.copytree(tiny_model, tmp_path / "model"))
    config = json.loads((folder / "config.json").read_text())
    config["region_extractor"] = {"kind": kind}
    (folder / "config.json").write_text(json.dumps(config))
    monkeypatch.setattr("ldot_milvus.models.lightningdot.bundle.extractor_class", lambda _: Extractor)
    load_extractor(find_lightningdot(str(folder)), torch.device("cpu"), torch.float32, convolution_dtype=torch.bfloat16)
    assert made == [expected]
