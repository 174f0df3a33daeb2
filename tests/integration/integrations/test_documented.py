"""The examples of docs/integrations.md run as they are printed."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from ldot_milvus import open_store
from ldot_milvus.cli import main
from ldot_milvus.ingest.ingestor import Ingestor
from ldot_milvus.sources import expand
from tests.conftest import ROOT, make_photo

PAGE = (ROOT / "docs" / "integrations.md").read_text()


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.DOTALL)


def test_every_home_has_its_example() -> None:
    imported = re.findall(r"from integrations\.(\w+) import", "".join(blocks("python")))
    assert set(imported) == {"pymilvus_model", "llama_index", "haystack", "mcp"}


def test_the_examples_run(tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDOT_MODEL", tiny_model)
    Path("photos").mkdir()
    for seed in range(3):
        Path("photos", f"{seed}.jpg").write_bytes(make_photo(seed))
    with open_store("faiss:./ldot-data", "images") as store:
        Ingestor(store, tiny_model).ingest(list(expand(["photos"])))
    names: dict[str, object] = {}
    for block in blocks("python"):
        exec(block, names)
    names["client"].close()
    assert [len(hits) for hits in names["found"]] == [2]
    assert sorted(result.index for result in names["results"]) == [0, 1]
    assert len(names["nodes"]) == len(names["similar"]) == 3
    assert len(names["answer"]["images"]["image_contents"]) == 3
    assert names["server"].name == "ldot-milvus"


def test_the_configuration_of_a_client_starts_the_command() -> None:
    (block,) = blocks("json")
    (server,) = json.loads(block)["mcpServers"].values()
    program, command, *options = server["command"], *server["args"]
    assert program == "ldot"
    with main.commands[command].make_context(command, options) as context:
        assert context.params["collection"] == "images"
    assert server["env"].keys() == {"LDOT_STORE"}
