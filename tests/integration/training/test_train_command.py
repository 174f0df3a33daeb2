"""``ldot train`` from the command line: killed and resumed, in two processes, and with invalid runs."""

from __future__ import annotations

import json
import os
import signal
import socket
import string
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import faiss
import numpy as np
import pytest
import torch
from click.testing import CliRunner, Result
from safetensors import safe_open
from safetensors.torch import load_file

from ldot_milvus import LightningDOTEmbedder
from ldot_milvus.cli import main
from ldot_milvus.errors import UsageError
from ldot_milvus.training.recipe import read_recipe
from ldot_milvus.training.run import train
from tests import two_processes
from tests.conftest import make_photo
from tests.tolerance import assert_recall, both_bounds
from tests.training_data import PHOTOS, write_photos, write_start

ROOT = Path(__file__).parents[3]
RECIPE = """
[start]
model = "START"
[[stages]]
task = "retrieval"
epochs = 30
evaluate_every = 20
batch_size = 16
hard_negatives = 1
learning_rate = 1e-3
ema = 0.9
[trainer]
mixed_precision = "no"
checkpoint_every = 6
log_every = 1
"""


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Use one thread, as the processes that are compared with this one do."""
    threads = torch.get_num_threads(), faiss.omp_get_max_threads()
    torch.set_num_threads(1)
    faiss.omp_set_num_threads(1)
    yield
    torch.set_num_threads(threads[0])
    faiss.omp_set_num_threads(threads[1])


@pytest.fixture
def place(tmp_path: Path, tiny_model: str) -> Path:
    """A folder with a recipe, region features and their captions."""
    write_photos(tmp_path)
    write_start(tmp_path / "start", tiny_model)
    (tmp_path / "recipe.toml").write_text(RECIPE.replace("START", str(tmp_path / "start")))
    return tmp_path


def ldot(*arguments: str) -> Result:
    """Run the command in this process: a new one needs six seconds to import its libraries."""
    return CliRunner().invoke(main, list(arguments))


def arguments(place: Path, out: str, *more: str) -> list[str]:
    data = {"--train": "pairs.json", "--dev": "pairs.json", "--regions": "regions", "--out": out}
    return ["train", str(place / "recipe.toml"), *(part for name, file in data.items()
                                                   for part in (name, str(place / file))), *more]  # fmt: skip


def losses(out: Path, stage: str = "train") -> list[tuple[int, object]]:
    entries = [json.loads(line) for line in (out / stage / "log.jsonl").read_text().splitlines()]
    return [(entry["step"], entry.get("loss", entry.get("dev"))) for entry in entries]


def test_a_killed_run_resumes(place: Path, caplog: pytest.LogCaptureFixture) -> None:
    """After kill -9 in the middle, losses, recalls and final weights equal those of an uninterrupted run."""
    steps = ["--max-steps", "50"]
    with (place / "stderr").open("w") as stderr:
        program = str(Path(sys.executable).parent / "ldot")
        killed = subprocess.Popen([program, *arguments(place, "out", *steps)],
                                  env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=stderr)  # fmt: skip
    deadline = time.monotonic() + 120
    while max((path.name for path in (place / "out" / "train").glob("step-*[0-9]")), default="") < "step-000000024":
        assert killed.poll() is None, (place / "stderr").read_text()
        assert time.monotonic() < deadline
        time.sleep(0.005)
    os.kill(killed.pid, signal.SIGKILL)
    killed.wait()
    assert not (place / "out" / "model").exists()
    with caplog.at_level("INFO", "ldot_milvus"):
        again = ldot(*arguments(place, "out", *steps))
    assert again.exit_code == 0, again.output
    assert "resuming from step" in caplog.text
    assert ldot(*arguments(place, "whole", *steps)).exit_code == 0
    assert losses(place / "out") == losses(place / "whole")
    for part in ("model", "train/best"):
        ours, theirs = (load_file(place / out / part / "model.safetensors") for out in ("out", "whole"))
        assert ours.keys() == theirs.keys()
        assert all(torch.equal(ours[name], theirs[name]) for name in ours)
    other = ldot(*arguments(place, "out", *steps, "--set", "stages.0.batch_size=8"))
    assert other.exit_code == 2
    assert other.output.splitlines()[-1].startswith(
        f"Error: {place / 'out'} contains another run (stages.0.batch_size is"
    )


@pytest.mark.slow
def test_two_processes_equal_one_with_the_joint_batch(place: Path) -> None:
    """Compare losses and gradients of every objective, and the losses and recalls of a complete run.

    Hard negatives are mined once, with weights that are still equal: later, a tie could be resolved differently.
    """
    recipe = place / "same.toml"
    text = RECIPE.replace("START", str(place / "start")).replace("epochs = 30", "steps = 4")
    text = text.replace("evaluate_every = 20", "evaluate_every = 4")
    text += '[[stages]]\nname = "second"\ntask = "retrieval"\nsteps = 4\nevaluate_every = 2\nlearning_rate = 1e-3\n'
    data = f'[data]\ntrain = ["{place}/pairs.json"]\ndev = ["{place}/pairs.json"]\nregions = "{place}/regions"\n'
    recipe.write_text(data + text)
    config = place / "start" / "config.json"
    config.write_text(config.read_text().replace('dropout_prob": 0.1', 'dropout_prob": 0.0'))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    done = subprocess.run(
        [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "--master-addr", "127.0.0.1",
         "--master-port", str(port), "-m", "tests.two_processes", str(place), str(recipe)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=240, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    two_processes.run(place, recipe)
    for name in two_processes.OBJECTIVES:
        joined, split = (torch.load(place / f"{n}-processes" / f"{name}.pt") for n in (1, 2))
        torch.testing.assert_close(split["loss"], joined["loss"], atol=1e-5, rtol=1e-5)
        assert split["gradients"].keys() == joined["gradients"].keys()
        assert max(float(gradient.abs().max()) for gradient in joined["gradients"].values()) > 1e-3
        for parameter, gradient in joined["gradients"].items():
            torch.testing.assert_close(split["gradients"][parameter], gradient, atol=1e-5, rtol=1e-5, msg=parameter)
    joined, split = ([entry for stage in ("train", "second") for entry in losses(place / f"{n}-processes/run", stage)]
                     for n in (1, 2))  # fmt: skip
    assert [step for step, _ in split] == [step for step, _ in joined] == [1, 2, 3, 4, 4, 1, 2, 2, 3, 4, 4]
    with np.load(place / "1-processes/scores.npz") as ours, np.load(place / "2-processes/scores.npz") as theirs:
        evaluated = iter([(ours[name], theirs[name]) for name in ours.files])
    owner = np.repeat(np.arange(PHOTOS), 2)
    for (_, ours), (_, theirs) in zip(split, joined, strict=True):
        if "cmr" in ours:
            assert ours == pytest.approx(theirs, rel=1e-5)
        else:
            one, two = next(evaluated)
            np.testing.assert_allclose(one, two, atol=1e-5)
            for figures in (ours, theirs):
                assert_recall(figures, both_bounds(one, owner, near=1e-4))


def test_photos_are_extracted_once_and_the_model_works(
    tiny_model: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Train on folders of photos, and evaluate the result with ``ldot eval``.

    A second run reuses the features, and learns the same from batches that other processes prefetch.
    """

    def captions(number: int) -> list[str]:
        letter = string.ascii_lowercase[number]  # a word that the tokenizer knows: no two captions are the same
        return [f"photo {letter} b", f"a {letter} c"]

    monkeypatch.chdir(tmp_path)
    for split, count, first in (("photos", 16, 0), ("dev", 6, 50)):
        (tmp_path / split).mkdir()
        for number in range(count):
            (tmp_path / split / f"{number}.jpg").write_bytes(make_photo(first + number))
            (tmp_path / split / f"{number}.json").write_text(json.dumps({"captions": captions(number)}))
    call = ["train", "finetune", "--model", tiny_model, "--train", "photos", "--dev", "dev", "--max-steps", "3",
            "--set", "stages.0.batch_size=8", "--set", "data.views=2", "--set", "data.features=features",
            "--set", "trainer.mixed_precision=no"]  # fmt: skip
    with caplog.at_level("INFO", "ldot_milvus"):
        for out, more in (("first", []), ("second", ["--set", "trainer.workers=2"])):
            done = ldot(*call, "--out", out, *more)
            assert done.exit_code == 0, done.output
            assert done.stdout == f"Model: {tmp_path / out / 'model'}\n"
    assert [message for message in caplog.messages if "regions" in message] == [
        "regions, view 0: 0 of 16 photos", "regions, view 1: 0 of 16 photos", "regions, view 0: 0 of 6 photos"
    ]  # fmt: skip
    assert losses(tmp_path / "second", "finetune") == losses(tmp_path / "first", "finetune")
    assert list((tmp_path / "first" / "tensorboard" / "finetune").glob("events*"))
    evaluated = ldot("eval", "--model", "first/model", "--data", "dev", "--rerank", "5", "--json")
    told = json.loads(evaluated.stdout)
    assert told["images"] == 6
    eight_bits = ldot(*call, "--out", "third", "--set", "finish.storage=int8")
    assert eight_bits.exit_code == 0, eight_bits.output
    for part in (".", "regions", "reranker"):
        with safe_open(tmp_path / "third" / "model" / part / "model.safetensors", framework="pt") as file:
            assert file.metadata()["ldot_storage"] == "int8"
    assert ldot("eval", "--model", "third/model", "--data", "dev", "--json").exit_code == 0
    entries = [json.loads(line) for line in (tmp_path / "first/finetune/log.jsonl").read_text().splitlines()]
    embedder = LightningDOTEmbedder("first/model", device="cpu")
    texts = embedder.encode_texts([caption for number in range(6) for caption in captions(number)])
    images = embedder.encode_images([tmp_path / "dev" / f"{number}.jpg" for number in range(6)])
    bounds = both_bounds(texts @ images.T, np.repeat(np.arange(6), 2), near=1e-3)  # training read rounded features
    assert_recall(told, bounds)
    assert_recall(entries[-1]["dev"], bounds)


def test_a_run_without_a_checkpoint_can_be_changed(place: Path) -> None:
    failed = ldot(*arguments(place, "out", "--max-steps", "1", "--set", "stages.0.batch_size=64"))
    assert failed.exit_code == 2
    assert "48 photos are too few for batches of 64 different photos" in failed.output
    done = ldot(*arguments(place, "out", "--max-steps", "1"))
    assert done.exit_code == 0, done.output


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"stages.0.batch_size": 64}, "48 photos are too few for batches of 64 different photos"),
        ({"stages.0.distilled": 0.5}, "train: distilled requires a model with a re-ranker of scoring alignment"),
        ({"stages.0.task": "rerank", "start.reranker": {"scoring": "joint"}, "stages.0.hard_negatives": 0},
         "joint scoring requires hard_negatives: give 1 or more"),
        ({"stages.0.task": "rerank", "start.reranker": {"scorin": "joint"}}, "start.reranker.scorin: no such"),
        ({"stages.0.task": "rerank", "start.reranker": {"scoring": "both"}},
         "start.reranker: these settings do not fit (scoring is 'both'"),
        ({"stages.0.task": "pretrain", "stages.0.hard_negatives": 0, "stages.0.mix": {"smrm_kl": 1}},
         "smrm_kl learn a detector's soft labels, and the training data's regions have none"),
        ({"start.model": None, "start.text": "/nowhere"}, "start.text '/nowhere' is not a BERT"),
        ({"start.model": None, "start.text": "x", "start.config": {"fuse": 1}}, "start.config.fuse: no such setting"),
        ({"start.model": "no-such-model"}, "unknown model 'no-such-model'"),
        ({"data.views": 2}, "views is 2, but precomputed regions have one view"),
        ({"data.regions": [], "data.photos": "."}, "000.jpg is not in ."),
    ],
)  # fmt: skip
def test_invalid_runs_are_refused(place: Path, changes: dict[str, object], message: str) -> None:
    pairs = str(place / "pairs.json")
    given = {"data.train": [pairs], "data.dev": [pairs], "data.regions": str(place / "regions"), **changes}
    recipe = read_recipe(str(place / "recipe.toml"), given)
    with pytest.raises(UsageError) as caught:
        train(recipe, place / "out", most_steps=1)
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
