"""Settings, secrets and odd names in the commands as a user runs them (cases c06, c07, a11, c11, c17)."""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner

from ldot_milvus.cli import main
from ldot_milvus.settings import Settings, variable_of
from tests.conftest import Run, make_photo

WORKER = ["celery", "-A", "workers", "worker", "--pool", "solo"]
ENQUEUE = ["celery", "-A", "workers", "enqueue", "photos"]

STEERING = "b\x1b]0;pwned\x07\x1b[31m\u202egpj\n\x9b日.jpg"


@pytest.mark.parametrize(
    ("command", "variable", "value"),
    [
        (ENQUEUE, "LDOT_VISIBILITY_TIMEOUT", "10m"),
        (WORKER, "LDOT_LOG_FORMAT", "JSON"),
        (WORKER, "LDOT_STORE", "redis://:S3cret@h"),
        (WORKER, "LDOT_BROKER", "nonsense://:S3cret@h"),
        (["celery", "-A", "workers", "progress"], "LDOT_RESULT_BACKEND", "redis://:S3#cret@h/0"),
    ],
)
def test_a_wrong_variable_is_one_line_in_celery(command: list[str], variable: str, value: str, run: Run) -> None:
    done = run(*command, env={variable: value})
    lines = done.stderr.strip().splitlines()
    assert done.returncode == 2
    assert lines[-1].startswith("Error: ")
    assert variable in lines[-1]
    assert "Traceback" not in done.stderr
    assert "S3" not in done.stdout + done.stderr.replace("%2F", "")


@pytest.mark.parametrize(
    "command",
    [["search", "a bus"], ["duplicates"], ["reindex"], ["migrate"], ["regions", ".", "--out", "x"]],
    ids=lambda command: command[0],
)
def test_a_wrong_variable_is_one_line_in_ldot(
    command: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDOT_ALLOW_URLS", "maybe")
    done = CliRunner().invoke(main, command)
    assert (done.exit_code, done.output) == (2, "Error: LDOT_ALLOW_URLS is 'maybe': give true or false\n")


@pytest.mark.parametrize("option", ["--model", "--store", "--collection", "--reranker"])
def test_an_empty_option_is_one_line(option: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    done = CliRunner().invoke(main, ["search", "a bus", option, ""])
    assert done.exit_code == 2
    assert done.output.startswith(f"Error: {option} is empty: give ")
    assert done.output.count("\n") == 1


def test_empty_variables_change_nothing(run: Run, tmp_path: Path, tiny_model: str) -> None:
    """Case c06: compose files hand over every variable, empty or not."""
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos" / "a.jpg").write_bytes(make_photo(0))
    env = {**dict.fromkeys(map(variable_of, Settings.model_fields), ""), "LDOT_MODEL": tiny_model}
    done = run(*ENQUEUE, env=env)
    assert done.returncode == 0, done.stderr
    assert sorted(path.name for path in tmp_path.iterdir()) == ["ldot-data", "photos"]


def test_doctor_tells_origins_as_json(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDOT_BROKER", "redis://:S3cret@127.0.0.1:1/0")
    monkeypatch.setenv("LDOT_STOER", "x")
    monkeypatch.setenv("LDOT_VISIBILITY_TIMEOUT", "10m")
    monkeypatch.setenv("LDOT_ENV_FILE", "")  # restores it afterwards
    (tmp_path / ".env").write_text("LDOT_COLLECTION=photos\nLDOT_STORE_TOKEN=root:S3cret\n")
    done = CliRunner().invoke(main, ["--env-file", ".env", "doctor", "--model", tiny_model, "--json"])
    answer = json.loads(done.stdout)
    assert (done.exit_code, answer["ok"]) == (1, False)
    assert "S3cret" not in done.output
    shown = {one["variable"]: (one["value"], one["origin"]) for one in answer["settings"]}
    assert set(shown) == set(map(variable_of, Settings.model_fields))
    assert shown["LDOT_BROKER"] == ("redis://:****@127.0.0.1:1/0", "environment")
    assert shown["LDOT_COLLECTION"] == ("photos", str(tmp_path / ".env"))
    assert shown["LDOT_STORE_TOKEN"] == ("****", str(tmp_path / ".env"))
    assert shown["LDOT_MODEL"] == (tiny_model, "option")
    assert shown["LDOT_STORE"] == ("faiss:./ldot-data", "default")
    texts = [finding["text"] for finding in answer["findings"] if finding["part"] == "settings"]
    assert texts == [
        "LDOT_VISIBILITY_TIMEOUT is '10m': give a whole number of seconds, at least 1",
        "LDOT_STOER is no setting: did you mean LDOT_STORE?",
    ]
    ok = {finding["part"]: finding["ok"] for finding in answer["findings"]}
    assert ok["model"]
    assert not ok["broker"]
    monkeypatch.delenv("LDOT_ENV_FILE")


def test_doctor_for_people(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, tiny_model: str) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("LDOT_STORE_TOKEN", "root:S3cret")
    done = CliRunner().invoke(main, ["doctor", "--model", tiny_model])
    assert done.exit_code == 0, done.output
    assert "S3cret" not in done.output
    assert any(line.split() == ["LDOT_STORE_TOKEN", "****", "environment"] for line in done.output.splitlines())
    assert f"LDOT_MODEL              {tiny_model}" in done.output
    assert "ok    settings      2 of 25 are set" in done.output


@pytest.mark.skipif(sys.platform == "win32", reason="such names are not possible there")
def test_names_and_captions_steer_no_terminal(run: Run, tmp_path: Path, tiny_model: str) -> None:
    photos = tmp_path / "photos"
    photos.mkdir()
    (photos / STEERING).write_bytes(make_photo(0))
    (photos / "a.jpg").write_bytes(make_photo(1))
    (photos / f"bad{STEERING}").write_bytes(b"x")
    caption = json.dumps({"file": "a.jpg", "caption": "harmless \x1b[2J \u202e evil 🚌"})
    (tmp_path / "m.jsonl").write_text(caption + "\n")
    env = {"LDOT_MODEL": tiny_model, "LDOT_DEVICE": "cpu", "PYTHONIOENCODING": "cp1252:strict"}
    done = [
        run(*ENQUEUE, "--metadata", "m.jsonl", env=env),
        run("celery", "-A", "workers", "failures", env=env),
        run("celery", "-A", "workers", "delete", "--filter", '{"kind": "image"}', "--dry-run", env=env),
        run("ldot", "search", "a bus", "--html", "out.html", env=env),
    ]
    assert [one.returncode for one in done] == [1, 0, 0, 0]
    for one in done:
        text = one.stdout + one.stderr
        assert "Traceback" not in text
        assert all(line.isprintable() for line in text.splitlines()), ascii(text)
    shown = r"b\x1b]0;pwned\x07\x1b[31m\u202egpj\n\x9b\u65e5.jpg"
    assert f"bad{shown}: not an image" in done[0].stderr
    assert f"bad{shown}: not an image" in done[1].stdout
    assert shown in done[2].stdout
    assert r"harmless \x1b[2J \u202e evil \U0001f68c" in done[3].stdout
    page = (tmp_path / "out.html").read_text(encoding="utf-8")
    assert page.count("\n") == page.count("\n", 0, page.rindex("</style>")) + 1  # none after the style but the last
    assert all(line.isprintable() for line in page.split("\n"))
    answer = run("ldot", "search", "a bus", "--json", env=env)
    hits = json.loads(answer.stdout)["hits"]
    assert {os.path.basename(hit["source"]) for hit in hits} == {STEERING, "a.jpg"}


def test_a_signed_url_that_fails_is_listed_without_its_signature(run: Run) -> None:
    env = {"LDOT_ALLOW_URLS": "true"}
    url = "https://127.0.0.1:1/a.jpg?X-Amz-Signature=S3cret&size=2"
    done = run("celery", "-A", "workers", "enqueue", url, env=env)
    listed = run("celery", "-A", "workers", "failures", "--json", env=env)
    assert done.returncode == 1
    assert "S3cret" not in done.stdout + done.stderr + listed.stdout
    assert json.loads(listed.stdout)["source"] == "https://127.0.0.1:1/a.jpg?X-Amz-Signature=****&size=2"


@pytest.mark.parametrize("columns", [20, 40, 80, 200])
def test_models_fit_the_terminal(columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", str(columns))
    done = CliRunner().invoke(main, ["models"])
    assert done.exit_code == 0, done.output
    lines = [line for line in done.output.splitlines() if " " in line.strip() and "://" not in line]
    wrapped = [line for line in lines if line.startswith("    ")]
    assert max(map(len, wrapped)) <= max(40, min(columns, 100)) + 45  # a hub id is not broken
    assert columns < 100 or max(map(len, wrapped)) <= 100
