"""Paths are made absolute when something is opened: a program that then changes its folder keeps what it opened."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from ldot_milvus.errors import UsageError
from ldot_milvus.evaluation.curve import check_picture
from ldot_milvus.ingest.journal import Run, open_journal
from ldot_milvus.ingest.target import Target, target_of_worker
from ldot_milvus.models.loading import load_embedder, load_reranker
from ldot_milvus.search.page import write_page
from ldot_milvus.settings import Settings
from ldot_milvus.sources import expand, read
from ldot_milvus.sources.metadata import load_metadata
from ldot_milvus.stores import Record, open_store
from ldot_milvus.stores.regions import RegionStore, absolute_region_address
from ldot_milvus.stores.registry import absolute_path, parse_address, token_for
from ldot_milvus.training.recipe import read_recipe
from tests.conftest import make_photo

REGIONS = {"a": {"features": np.ones((1, 4), np.float16)}}
RUN = Run.new("ingest", Target("faiss:x", "images", "ldot-mini"), 1)


def store(address: str) -> Callable[[], object]:
    opened = open_store(address, "photos")

    def use() -> None:
        assert opened.upsert([Record("a", np.ones(4, np.float32))]) == opened.count() == 1
        opened.close()

    return use


def region_store(address: str) -> Callable[[], object]:
    opened = RegionStore(address, "m")
    return lambda: opened.put(REGIONS)


def journal(address: str) -> Callable[[], object]:
    opened = open_journal(address)
    return lambda: opened.start(RUN)


def model(name: str) -> Callable[[], object]:
    embedder = load_embedder(name, device="cpu")
    assert os.path.isabs(embedder.name)
    return lambda: load_reranker(embedder.name, embedder)


def photos(path: str) -> Callable[[], object]:
    [source] = expand([path])
    assert os.path.isabs(source.source)
    return lambda: read(source)


PLACES: list[tuple[Callable[[str], Callable[[], object]], str, str]] = [
    (store, "faiss:{}", "store.sqlite"),
    (store, "{}.db", ".db"),
    (region_store, "{}", ".safetensors"),
    (region_store, "file://{}", ".safetensors"),
    (journal, "{}.sqlite", ".sqlite"),
    (model, "{}", ""),
    (photos, "{}/0.jpg", ""),
]


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, tiny_model: str) -> Path:
    home = tmp_path / "home"
    (home / "elsewhere").mkdir(parents=True)
    monkeypatch.chdir(home)
    monkeypatch.setenv("HOME", str(home))
    return home


@pytest.mark.parametrize(("opener", "form", "written"), PLACES)
@pytest.mark.parametrize("path", ["x", "./x", "~/x", "elsewhere/../x"])
def test_what_is_opened_stays_where_it_is(
    opener: Callable[[str], Callable[[], object]], form: str, written: str, path: str, home: Path, tiny_model: str,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    if opener is model:
        shutil.copytree(tiny_model, home / "x")
    if opener is photos:
        (home / "x").mkdir()
        (home / "x" / "0.jpg").write_bytes(make_photo(0))
    use = opener(form.format(path))
    monkeypatch.chdir(home / "elsewhere")
    use()
    assert not list((home / "elsewhere").iterdir())
    assert not list(home.glob("~*"))
    assert [file for file in home.rglob("*") if str(file).endswith(written)]


def test_what_is_read_or_written_at_once_expands_the_home_folder(home: Path) -> None:
    (home / "m.jsonl").write_text('{"file": "a.jpg", "caption": "x"}\n')
    assert list(load_metadata("~/m.jsonl")) == ["a.jpg"]
    write_page("~/page.html", [])
    assert (home / "page.html").exists()
    assert check_picture("~/curve.png") == home / "curve.png"
    recipe = read_recipe("finetune", {"data.train": ["~/train"], "data.dev": "~/dev", "data.photos": "~/p"})
    assert (recipe.data.train, recipe.data.dev, recipe.data.photos) == ([f"{home}/train"], [f"{home}/dev"], f"{home}/p")
    (home / "own.toml").write_text("[nonsense]\n")
    with pytest.raises(UsageError, match="nonsense"):
        read_recipe("~/own.toml")


def test_paths_that_have_no_meaning(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert absolute_path("~root/x").endswith("/x")
    assert "~" not in absolute_path("~root/x")
    with pytest.raises(UsageError, match="no user 'nobody-of-this-name'"):
        open_store("faiss:~nobody-of-this-name/x")
    with pytest.raises(UsageError, match="the path is empty"):
        RegionStore("", "m")
    monkeypatch.chdir(home / "elsewhere")
    (home / "elsewhere").rmdir()
    with pytest.raises(UsageError, match="the working folder no longer exists"):
        open_store("faiss:./x")
    assert open_store(f"faiss:{home}/x").address == f"faiss:{home}/x"


def test_a_chunk_names_a_model_folder_for_every_working_folder(home: Path, tiny_model: str) -> None:
    shutil.copytree(tiny_model, home / "x")
    target = Target.of(Settings(model="./x", reranker="~/x"))
    assert (target.model, target.reranker) == (f"{home}/x", f"{home}/x")
    assert Target.of(Settings(model="google/siglip@main", reranker="none")).model == "google/siglip@main"
    assert Target.of(Settings()).model == "ldot-mini"


CREDENTIALS: list[tuple[dict[str, Any], str | None]] = [
    ({"store": "http://root:S3%2Fcret@milvus:19530/"}, "root:S3/cret"),
    ({"store": "http://milvus:19530", "store_token": "root:S3/cret"}, "root:S3/cret"),
    ({"store": "http://other:x@elsewhere:19530"}, None),
    ({"store": "faiss:./x"}, None),
]


@pytest.mark.parametrize(("settings", "token"), CREDENTIALS)
def test_a_store_is_opened_with_the_password_that_no_chunk_has(settings: dict[str, Any], token: str | None) -> None:
    assert token_for(parse_address("http://milvus:19530"), Settings(**settings)) == token
    assert "S3" not in str(Target.of(Settings(**settings)).to_dict())


def test_a_worker_recognises_its_stores_whatever_the_password(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDOT_STORE", "http://root:S3cret@milvus:19530")
    monkeypatch.setenv("LDOT_REGION_STORE", "ftp://me:S3cret@nas/regions")
    earlier = Target("http://root:S3cret@milvus:19530", "images", "ldot-mini", "ftp://me:S3cret@nas/regions")
    for target in (earlier, Target.of(Settings())):
        used = target_of_worker(target, Settings())
        assert (used.store, used.region_store) == ("http://milvus:19530", "ftp://me@nas/regions")


def test_a_region_store_is_opened_with_the_password_that_its_address_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    import fsspec

    opened: list[str] = []

    def url_to_fs(address: str) -> tuple[Any, str]:
        opened.append(address)
        return fsspec.filesystem("memory"), "/x"

    monkeypatch.setattr(fsspec.core, "url_to_fs", url_to_fs)
    public = absolute_region_address("ftp://me:S3cret@nas/regions")
    assert public == "ftp://me@nas/regions"
    for address in ("ftp://me:S3cret@nas/regions", public):  # the second is what a chunk or a collection has
        assert RegionStore(address, "m").address == public
    assert opened == ["ftp://me:S3cret@nas/regions"] * 2


@pytest.mark.parametrize(
    "address",
    ["http://h:port", "http://", "https://:1", "http://h:19530?token=S3cret", "http://root:1/S3cret@h", "http://h#S3"],
)
def test_an_address_of_a_server_that_is_wrong_shows_no_password(address: str) -> None:
    with pytest.raises(UsageError, match=r"LDOT_STORE, --store\) is not valid: give http") as caught:
        parse_address(address)
    assert "S3" not in str(caught.value)


@pytest.mark.parametrize("password", ["S3cret", "S3/cret", "S3#cret", "S3?cret", "S3[cret", "S3@cret"])
def test_the_password_of_an_address_of_a_server_is_kept_apart(password: str) -> None:
    address = parse_address(f"http://root:{password}@h:19530")
    assert (address.address, address.user) == ("http://h:19530", f"root:{password}")
