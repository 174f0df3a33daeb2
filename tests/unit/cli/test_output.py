"""Output: no encoding breaks it, no name steers it, and JSON is JSON."""

from __future__ import annotations

import io
import json
import logging
import sys

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldot_milvus.cli.output import say, say_json
from ldot_milvus.errors import UsageError
from ldot_milvus.logs import CleanRecords, JsonFormatter

ENCODINGS = ["ascii", "latin-1", "cp1252", "cp437", "shift_jis", "utf-8", "utf-16-le"]
LINE = "ph/Straße_日本\udce9🚌\x1b[2J\u202e\x85.jpg\n"


def written(encoding: str, print_all: object, monkeypatch: pytest.MonkeyPatch) -> bytes:
    stream = io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")
    with monkeypatch.context() as patch:
        patch.setattr(sys, "stdout", stream)
        print_all()  # type: ignore[operator]
        stream.flush()
    return stream.buffer.getvalue()  # type: ignore[attr-defined]


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_lines_in_every_encoding(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    text = written(encoding, lambda: say(LINE, "b"), monkeypatch).decode(encoding)
    assert text.splitlines()[1:] == ["b"]
    line = text.splitlines()[0]
    assert line.isprintable()
    assert r"\xe9" in line
    assert r"\x1b[2J\u202e\x85.jpg\n" in line
    assert ("日本" in line) == (encoding in ("shift_jis", "utf-8", "utf-16-le"))


@pytest.mark.parametrize("encoding", ENCODINGS)
def test_json_is_utf8_in_every_locale(encoding: str, monkeypatch: pytest.MonkeyPatch) -> None:
    value = {"caption": LINE, "list": [1, None, {"x": "\ud800"}], "source": "redis://:S3cret@h/0"}
    data = written(encoding, lambda: say_json(value, indent=2), monkeypatch)
    text = data.decode("utf-8")
    assert json.loads(text) == {**value, "source": "redis://:****@h/0"}
    assert "日本" in text
    assert all(line.isprintable() for line in text.split("\n"))


@settings(deadline=None)
@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text(st.characters()), lambda inner: st.lists(inner))
)
def test_json_survives_every_text(value: object) -> None:
    with pytest.MonkeyPatch.context() as patch:
        text = written("ascii", lambda: say_json({"value": value}), patch).decode()
    json.loads(text)
    assert text.removesuffix("\n").isprintable()


def test_a_process_without_output(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdout", None)
    monkeypatch.setattr(sys, "stderr", None)
    say("x")
    say("x", err=True)
    say_json({})


@pytest.mark.skipif(sys.platform != "linux", reason="/dev/full is a device of Linux")
@pytest.mark.parametrize("print_all", [lambda: say("x" * 10), lambda: say_json("x")])
def test_a_full_disk_is_one_line(print_all: object, monkeypatch: pytest.MonkeyPatch) -> None:
    with open("/dev/full", "w", buffering=1) as full:
        monkeypatch.setattr(sys, "stdout", full)
        with pytest.raises(UsageError, match=r"the output cannot be written .*No space left"):
            print_all()  # type: ignore[operator]
        monkeypatch.undo()
        full.buffer.raw.close()  # what is left cannot be written either


def test_logs_of_workers_are_clean() -> None:
    """Messages, their arguments and tracebacks, as text and as JSON; the colours of Celery stay."""
    for formatter in (logging.Formatter("\x1b[31m%(message)s"), JsonFormatter()):
        stream = io.StringIO()
        handler = logging.StreamHandler(stream)
        handler.setFormatter(formatter)
        handler.addFilter(CleanRecords())
        log = logging.Logger("worker")
        log.addHandler(handler)
        log.warning("cannot read %s\n%s", "a\x1b[2J\u202e.jpg", "redis://:S3cret@h/0")
        try:
            raise OSError("ftp://u:S3cret@h/x \x07")
        except OSError:
            log.exception("failed")
        text = stream.getvalue()
        assert "S3cret" not in text
        assert "redis://:****@h/0" in text
        assert "ftp://u:****@h/x" in text
        assert all(line.removeprefix("\x1b[31m").isprintable() for line in text.splitlines())
