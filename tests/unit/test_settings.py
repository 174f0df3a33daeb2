"""Settings: where they come from, what is wrong with them, and what they do not show."""

from __future__ import annotations

import logging
import os
import pickle
from pathlib import Path

import pytest

from ldot_milvus import variables
from ldot_milvus.errors import UsageError
from ldot_milvus.images import max_pixels
from ldot_milvus.settings import Settings, WrongSettings, current, variable_of

WRONG = {
    "store": None,
    "store_token": 5,
    "collection": "my-photos",
    "region_dtype": "int4",
    "index_fallback": "perhaps",
    "broker": "localhost:6379",
    "queue": "photos.changes",
    "result_backend": "rpc://",
    "visibility_timeout": "10m",
    "device": "gpu",
    "dtype": "half",
    "log_format": "JSON",
    "serve_token": 5,
    "serve_hosts": "photos.example:8080",
    "serve_origins": "photos.example",
    "serve_ingest": "perhaps",
    "server": "127.0.0.1:8080",
    "allow_urls": "maybe",
    "max_pixels": "0",
}
TAKES = {
    "store": "the address of a store", "store_token": "USER:PASSWORD", "collection": "letters, digits and underscores",
    "region_dtype": "float16 or int8", "index_fallback": "true or false", "broker": "redis://HOST/0 or amqp://",
    "queue": "not ending in .changes", "result_backend": "redis://HOST/DB", "visibility_timeout": "seconds",
    "device": "cuda, cuda:1, mps or cpu", "dtype": "float32, float16 or bfloat16",
    "log_format": "text or json", "serve_token": "a token", "serve_hosts": "without ports",
    "serve_origins": "https://photos.example", "serve_ingest": "true or false", "server": "http://HOST:PORT",
    "allow_urls": "true or false", "max_pixels": "pixels",
}  # fmt: skip


@pytest.mark.parametrize("name", WRONG)
def test_a_wrong_argument_is_one_line(name: str) -> None:
    with pytest.raises(UsageError) as caught:
        Settings(**{name: WRONG[name]})
    assert str(caught.value).startswith(f"{name} is ")
    assert TAKES[name] in str(caught.value).partition(": give ")[2]
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", [name for name, value in WRONG.items() if isinstance(value, str)])
def test_a_wrong_variable_is_one_line(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_of(name), str(WRONG[name]))
    with pytest.raises(UsageError, match=f"^{variable_of(name)} is ") as caught:
        Settings()
    assert TAKES[name] in str(caught.value)


@pytest.mark.parametrize("value", ["", " ", "\t\r\n"])
@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_variable_is_not_set(name: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(variable_of(name), value)
    settings = Settings()
    assert getattr(settings, name) == Settings.model_fields[name].default
    assert settings.origin(name) == "default"
    assert name not in settings.model_fields_set
    assert current(name) == Settings.model_fields[name].default


@pytest.mark.parametrize("name", Settings.model_fields)
def test_an_empty_argument_or_option_is_refused(name: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} is empty: give "):
        Settings(**{name: ""})
    with pytest.raises(UsageError, match=f"^--{name.replace('_', '-')} is empty: give "):
        Settings(_given_as="option", **{name: " "})


def test_all_that_is_wrong_is_told_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDOT_VISIBILITY_TIMEOUT", "10m")
    with pytest.raises(WrongSettings) as caught:
        Settings(collection="my-photos")
    assert caught.value.problems.keys() == {"collection", "visibility_timeout"}
    assert "LDOT_VISIBILITY_TIMEOUT is '10m'" in str(caught.value)


@pytest.mark.parametrize("name", ["broker", "result_backend"])
@pytest.mark.parametrize(
    "address",
    ["redis://localhost:port/0", "redis://:S3#ss@h/0", "redis://:S3/ss@h/0", "redis://:S3?ss@h/0", "redis://:1/S3@h/0",
     "redis://h/abc", "redis://a b@h/0", "redis://:S3[x@h/0", "redis://u:S3\x1b@h/0"],
)  # fmt: skip
def test_addresses_that_cannot_be_parsed_show_no_password(name: str, address: str) -> None:
    with pytest.raises(UsageError, match=f"^{name} ") as caught:
        Settings(**{name: address})
    assert "S3" not in str(caught.value).replace("%2F", "")
    assert str(caught.value).isprintable()


def test_an_unknown_argument_has_the_nearest_name() -> None:
    with pytest.raises(UsageError, match=r"^stoer is no setting: did you mean store\?$"):
        Settings(stoer="x")
    with pytest.raises(UsageError, match=r"^k is no setting$"):
        Settings(k=3)


def test_an_unknown_variable_is_told_once(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(variables, "_told", set())
    monkeypatch.setenv("LDOT_STOER", "x")
    monkeypatch.setenv("LDOT_TEST_SOMETHING", "x")
    with caplog.at_level(logging.WARNING):
        Settings()
        Settings()
    assert [record.getMessage() for record in caplog.records] == ["LDOT_STOER is no setting: did you mean LDOT_STORE?"]


def test_white_space_around_values_and_letter_case_of_names_do_not_matter(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LDOT_COLLECTION", " photos\r")
    monkeypatch.setenv("ldot_model", "other")
    monkeypatch.setenv("LDOT_DEVICE", "CPU")
    settings = Settings()
    assert (settings.collection, settings.model, settings.device) == ("photos", "other", "cpu")


def test_secrets_are_not_shown_and_still_there() -> None:
    settings = Settings(
        store="http://root:S3cret@h:1", store_token="S3cret", broker="redis://:S3cret@h/0", region_store="ftp://u:S3cret@h/x",
        result_backend="redis://:S3cret@h/1", store_alias="http://a:S3cret@h", serve_token="S3cret",
    )  # fmt: skip
    for text in (repr(settings), str(settings), *(settings.shown(name) for name in Settings.model_fields)):
        assert "S3cret" not in text
    again = pickle.loads(pickle.dumps(settings))
    assert (again.token, again.broker) == ("S3cret", "redis://:S3cret@h/0")
    assert again.origin("broker") == "argument"


def test_a_file_of_variables_is_read_where_it_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / ".env").write_bytes(
        b"\xef\xbb\xbfLDOT_COLLECTION=from_file\r\nexport LDOT_MODEL='from file'\r\nLDOT_DEVICE=\nLDOT_MAX_PIXELS=7\n"
        b'# LDOT_QUEUE=x\nOTHER=1\nLDOT_STORE_TOKEN="a#b"\n'
    )
    monkeypatch.chdir(tmp_path)
    assert Settings().collection == "images"  # never by itself
    monkeypatch.setenv("LDOT_ENV_FILE", ".env")
    monkeypatch.setenv("LDOT_MODEL", "from environment")
    settings = Settings(queue="given")
    values = (settings.collection, settings.model, settings.queue, settings.device, settings.token)
    assert values == ("from_file", "from environment", "given", None, "a#b")
    origins = [settings.origin(name) for name in ("collection", "model", "queue", "device")]
    assert origins == [str(tmp_path / ".env"), "environment", "argument", "default"]
    assert max_pixels() == current("max_pixels") == 7
    monkeypatch.chdir("/")  # the file was found, and stays the same
    assert Settings().collection == "from_file"
    assert "OTHER" not in os.environ
    (tmp_path / ".env").write_text("LDOT_MAX_PIXELS=many")
    with pytest.raises(UsageError, match="LDOT_MAX_PIXELS is 'many'"):
        current("max_pixels")


@pytest.mark.parametrize("content", [None, b"LDOT_STORE=\xff\xfe"])
def test_a_file_of_variables_that_cannot_be_read(
    content: bytes | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if content is not None:
        (tmp_path / "env").write_bytes(content)
    monkeypatch.setenv("LDOT_ENV_FILE", str(tmp_path / "env"))
    with pytest.raises(UsageError, match=r"LDOT_ENV_FILE names .*, which cannot be read"):
        Settings()
