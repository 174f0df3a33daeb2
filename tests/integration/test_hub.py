"""Models from the hub: pinned revisions, only the files that are read, the cache, and one line for what goes wrong."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import transformers

from ldot_milvus.errors import UsageError
from ldot_milvus.hub import hub_folder
from ldot_milvus.models.registry import find_model
from tests import families
from tests.hub_server import FakeHub

Ask = Callable[..., str]

FIND = """
import json, sys
from ldot_milvus.errors import LdotError
from ldot_milvus.models.registry import find_model
try:
    files = find_model(sys.argv[1])
    print(json.dumps({"fingerprint": files.fingerprint, "folder": str(files.folder), "torch": "torch" in sys.modules}))
except LdotError as error:
    print(type(error).__name__, error)
"""


@pytest.fixture(scope="module")
def siglip(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = families.siglip(tmp_path_factory.mktemp("families") / "siglip")
    for name in ("README.md", "tf_model.h5", "flax_model.msgpack", "pytorch_model.bin", "onnx/config.json"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"not read")
    return folder


@pytest.fixture
def hub(siglip: Path, tmp_path: Path) -> Iterator[FakeHub]:
    hub = FakeHub()
    without = shutil.copytree(siglip, tmp_path / "without", ignore=shutil.ignore_patterns("*.safetensors"))
    other = shutil.copytree(siglip, tmp_path / "other", ignore=shutil.ignore_patterns("*.safetensors"))
    families.random_weights(transformers.SiglipModel.from_pretrained(siglip), 7).save_pretrained(
        other, max_shard_size="40KB"
    )
    hub.revisions = {
        ("some/siglip", "main"): siglip, ("some/siglip", "v1"): other, ("some/pickled", "main"): without,
        ("some/pickled", "refs/pr/5"): siglip, ("some/gated", "main"): siglip,
    }  # fmt: skip
    hub.gated = {"some/gated"}
    yield hub
    hub.close()


@pytest.fixture
def ask(hub: FakeHub, tmp_path: Path) -> Ask:
    """Find a model in a process of its own, since the hub's client reads its environment when it is imported."""

    def find(name: str, program: str = FIND, *arguments: str, **env: str) -> str:
        found = subprocess.run(
            [sys.executable, "-c", program, name, *arguments],
            env={
                **os.environ, "HF_ENDPOINT": hub.url, "HF_HOME": str(tmp_path / "cache"), "HF_HUB_OFFLINE": "0",
                "HF_HUB_DISABLE_PROGRESS_BARS": "1", "NO_PROXY": "127.0.0.1", "no_proxy": "127.0.0.1",
                "HF_HUB_DISABLE_XET": "1", **env,
            },
            cwd=tmp_path, capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert found.returncode == 0, found.stderr
        (line,) = found.stdout.splitlines()
        return line

    return find


def test_only_what_is_read_is_downloaded_once(hub: FakeHub, ask: Ask, siglip: Path) -> None:
    found = json.loads(ask("some/siglip"))
    assert sorted(hub.fetched) == [
        "config.json", "model.safetensors", "preprocessor_config.json", "tokenizer.json", "tokenizer_config.json"
    ]  # fmt: skip
    assert found["fingerprint"] == find_model(str(siglip)).fingerprint  # the same as of the folder
    assert not found["torch"]
    assert json.loads(ask("some/siglip")) == found
    assert len(hub.fetched) == 5


def test_a_revision(hub: FakeHub, ask: Ask, siglip: Path) -> None:
    main, tag = json.loads(ask("some/siglip")), json.loads(ask("some/siglip@v1"))
    assert main["fingerprint"] != tag["fingerprint"]
    assert len([name for name in hub.fetched if name.startswith("model-")]) > 1
    pull_request = json.loads(ask("some/pickled@refs/pr/5"))
    assert pull_request["fingerprint"] == main["fingerprint"]
    commit = Path(tag["folder"]).name
    assert len(commit) == 40
    assert json.loads(ask(f"some/siglip@{commit}")) == tag


def test_offline_and_unreachable_use_the_cache(hub: FakeHub, ask: Ask) -> None:
    found = json.loads(ask("some/siglip@v1"))
    nowhere = "http://127.0.0.1:9"
    assert json.loads(ask("some/siglip@v1", HF_HUB_OFFLINE="1")) == found
    assert json.loads(ask("some/siglip@v1", HF_ENDPOINT=nowhere)) == found
    offline = ask("some/siglip", HF_HUB_OFFLINE="1")
    assert offline.startswith("UsageError model 'some/siglip' is not complete in the cache")
    assert "HF_HUB_OFFLINE" in offline
    unreachable = ask("some/siglip", HF_ENDPOINT=nowhere)
    assert unreachable.startswith("UsageError model 'some/siglip' is not complete in the cache")
    assert f"{nowhere} does not answer" in unreachable
    assert "HTTPS_PROXY" in unreachable


def _commit(repository: str, revision: str) -> str:
    """The commit that the hub answers for a revision."""
    return hashlib.sha1(f"{repository}@{revision}".encode()).hexdigest()


def test_a_model_from_the_hub_encodes(ask: Ask) -> None:
    program = """
import sys
from ldot_milvus.models.loading import load_embedder, load_reranker
embedder = load_embedder(sys.argv[1], device="cpu")
load_reranker("none", embedder)
print(embedder.name, embedder.encode_texts(["a dog"]).shape)
"""
    assert ask("some/pickled@refs/pr/5", program) == "some/pickled@refs/pr/5 (1, 32)"


MODELS = """
import json, sys
from click.testing import CliRunner
from ldot_milvus.cli import main
done = CliRunner().invoke(main, ["models", *sys.argv[2:]])
print(json.dumps([done.exit_code, done.output]))
"""


def test_models_lists_what_is_in_the_cache(hub: FakeHub, ask: Ask, tmp_path: Path) -> None:
    nothing = json.loads(ask("", MODELS))[1]
    assert f"Nothing of a known family in the cache {tmp_path / 'cache' / 'hub'}" in nothing
    at = {name: Path(json.loads(ask(name))["folder"]) for name in ("some/siglip", "some/pickled@refs/pr/5")}
    ask("some/pickled")  # only its configuration is downloaded
    commit = Path(json.loads(ask(f"some/siglip@{_commit('some/siglip', 'v1')}"))["folder"]).name
    unknown = tmp_path / "cache" / "hub" / "models--some--bert" / "snapshots" / ("0" * 40)
    unknown.mkdir(parents=True)
    (unknown / "config.json").write_text('{"model_type": "bert"}')
    fetched = len(hub.fetched)
    status, output = json.loads(ask("", MODELS, "--json", HF_ENDPOINT="http://127.0.0.1:9"))
    assert status == 0
    first, *cached = json.loads(output)["installed"]
    assert (first["name"], first["commit"], first["kept"]["float16"]) == ("ldot-mini", None, 39200)
    assert [(one["settings"], one["refs"], one["complete"]) for one in cached] == [
        ("LDOT_MODEL=some/pickled", ["main"], False),
        ("LDOT_MODEL=some/pickled@refs/pr/5", ["refs/pr/5"], True),
        ("LDOT_MODEL=some/siglip", ["main"], True),
        (f"LDOT_MODEL=some/siglip@{commit}", [], True),
    ]
    assert {one["family"] for one in cached} == {"siglip"}
    assert [one["folder"] for one in cached if one["settings"] == "LDOT_MODEL=some/siglip"] == [str(at["some/siglip"])]
    text = json.loads(ask("", MODELS))[1]
    assert "    set          LDOT_MODEL=some/pickled@refs/pr/5\n" in text
    assert "    licence      see https://huggingface.co/some/siglip\n" in text
    assert "    lacks        safetensors" in text
    assert max(map(len, text.splitlines())) <= 100
    assert len(hub.fetched) == fetched
    status, message = json.loads(ask("", MODELS, HF_HUB_CACHE=str(unknown / "config.json")))
    assert status == 2
    assert message.endswith("config.json cannot be read (it is a file): set HF_HUB_CACHE or HF_HOME\n")


INGEST = """
import sys
from ldot_milvus import Ingestor, LdotError, open_store
from ldot_milvus.doctor import _store
from ldot_milvus.models.registry import find_model
from ldot_milvus.search.retriever import check_model
from ldot_milvus.settings import Settings
from ldot_milvus.stores.migration import migrate
name, address, task = sys.argv[1:]
store = open_store(address)
try:
    if task == "search":
        check_model(store, find_model(name))
    Ingestor(store, name)
    if task == "copy":
        migrate(store, open_store("faiss:copy"))
        address = "faiss:copy"
    print(open_store(address).properties.get("model_source"), _store(Settings(model=name, store=address)))
except LdotError as error:
    print(type(error).__name__, error)
"""


@pytest.mark.parametrize("address", ["faiss:store", "store.db"])
def test_a_collection_records_the_commit_that_filled_it(hub: FakeHub, ask: Ask, siglip: Path, address: str) -> None:
    commit = Path(json.loads(ask("some/siglip"))["folder"]).name
    source = f"some/siglip@{commit}"
    answer = ask("some/siglip", INGEST, address, "ingest")
    assert answer.startswith(f"{source} collection ")
    assert answer.endswith(f"0 rows, filled with {source}")
    hub.revisions["some/siglip", "main"] = hub.revisions["some/siglip", "v1"]  # the branch moves
    hub.commits["some/siglip", "main"] = "f" * 40
    for task in ("ingest", "search"):
        message = ask("some/siglip", INGEST, address, task)
        assert message.startswith("ModelMismatch collection 'images' ")
        assert f"was filled with {source}: set LDOT_MODEL={source} (or --model), or ingest into another" in message
    # The same vectors from a folder: the record stays, since the model can still be taken from there.
    assert ask(str(siglip), INGEST, address, "search").startswith(source)


def test_a_copied_collection_keeps_the_record(ask: Ask) -> None:
    assert ask("some/siglip@v1", INGEST, "faiss:store", "copy").startswith("some/siglip@")


def test_a_folder_is_not_recorded(ask: Ask, siglip: Path) -> None:
    assert ask(str(siglip), INGEST, "faiss:store", "ingest").startswith("None collection 'images' in")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        (
            "some/siglipp",
            "unknown model 'some/siglipp': .* has no such repository, .*: check the spelling",
        ),
        ("some/siglip@v2", "no revision 'v2': give a branch, a tag, a commit or refs/pr/NUMBER"),
        ("some/gated", "'some/gated' is gated: accept its terms on .*some/gated, .* HF_TOKEN"),
        ("some/pickled", r"no model\.safetensors, .*some/pickled@refs/pr/NUMBER, or convert .*ldot convert"),
        ("siglip", "unknown model 'siglip'.*owner/name@REVISION"),
        ("some/siglip@", "unknown model 'some/siglip@'"),
        ("some/sig lip", "unknown model 'some/sig lip'"),
    ],
)
def test_what_goes_wrong_is_one_line(ask: Ask, name: str, message: str) -> None:
    assert re.search(message, ask(name))


@pytest.mark.parametrize(
    ("number", "word"), [(errno.ENOSPC, "free space"), (errno.EROFS, "cannot be written"), (errno.EIO, "try again")]
)
def test_a_full_disk(monkeypatch: pytest.MonkeyPatch, number: int, word: str) -> None:
    def download(*_: object, **__: object) -> str:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("huggingface_hub.snapshot_download", download)
    with pytest.raises(UsageError, match=f"'some/model@v1'.*{word}") as error:
        hub_folder("some/model@v1", "model")
    assert "\n" not in str(error.value)
