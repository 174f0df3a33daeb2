"""Passwords and tokens in addresses and messages; characters that steer a terminal."""

from __future__ import annotations

import unicodedata
from urllib.parse import quote

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from ldot_milvus.errors import LdotError, printable
from ldot_milvus.redaction import HIDDEN, masked, split_user, without_secrets

SECRET = "S3cretPw"

FORMS = [
    f"http://root:{SECRET}@127.0.0.1:19530",
    f"https://root:{SECRET}@[::1]:19530/db",
    f"https://{SECRET}@host",
    f"redis://:{SECRET}@host:6379/0",
    f"rediss://user:{SECRET}@host",
    f"redis://{SECRET}@host/0",
    f"redis://:{SECRET}#1@host:6379/0",
    f"redis://:{SECRET}/1@host:6379/0",
    f"redis://:1/{SECRET}@host:6379/0",
    f"redis://:{SECRET}?x@host/0",
    f"redis://:a@{SECRET}@host/0",
    f"amqp://guest:{SECRET}@host//",
    f"amqp://guest:guest@one//;amqp://guest:{SECRET}@two//",
    f"sentinel://:{SECRET}@one:26379;sentinel://:{SECRET}@two:26379",
    f"ftp://user:{SECRET}@127.0.0.1:1/x",
    f"s3://KEY:{SECRET}@bucket/regions",
    f"simplecache::ftp://user:{SECRET}@host/x",
    f"https://host/a.jpg?X-Amz-Signature={SECRET}",
    f"https://host/a.jpg?size=2&token={SECRET}&x=1",
    f"https://host/a.jpg?x=1;password={SECRET}",
    f"https://host/#access_token={SECRET}",
    f"https://account.blob.core.windows.net/c?sv=1&sig={SECRET}",
    f"redis://host/0?password={SECRET}",
    f"s3://bucket/x?secretAccessKey={SECRET}",
    f"hf_{SECRET}{'a' * 20}",
    f"Authorization: Bearer {SECRET}{'a' * 20}",
]


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("around", ["{}", "cannot reach '{}': refused", "({}) and <{}>", "a://b {}\n{}"])
def test_no_secret_is_left_in_a_text(form: str, around: str) -> None:
    hidden = masked(around.replace("{}", form))
    assert SECRET not in hidden
    assert HIDDEN in hidden
    assert masked(hidden) == hidden
    assert SECRET not in str(LdotError(around.replace("{}", form)))


@pytest.mark.parametrize("form", [form for form in FORMS if "://" in form])
def test_an_address_without_its_secrets_names_the_same_place(form: str) -> None:
    public = without_secrets(form)
    assert SECRET not in public
    assert HIDDEN not in public
    assert without_secrets(public) == public


@pytest.mark.parametrize(
    "text",
    ["https://host:8080/photo@2x.jpg", "s3://bucket/a@b.jpg", "google/siglip@main", "a@b.org", "http://localhost:19530",
     "redis://localhost:6379/0", "give amqp://USER:PASSWORD@HOST//", "https://host/?monkey=x&keyboard=y", "sftp://me@nas/x",
     "/data/a:b@c.jpg", "file:///a:b@c"],
)  # fmt: skip
def test_what_is_no_secret_stays(text: str) -> None:
    assert masked(text) == text


@settings(deadline=None)
@given(
    st.sampled_from(["http", "https", "redis", "rediss", "amqp", "amqps", "ftp", "s3", "sftp"]),
    st.text(min_size=1, max_size=8),
    st.text(min_size=1, max_size=12).filter(lambda text: len(text.strip()) > 0),
    st.sampled_from(["host", "host:80", "[::1]:80", "10.0.0.1/x/y", "host/a?b=c"]),
)
def test_an_encoded_password_is_found_in_every_form(scheme: str, user: str, password: str, place: str) -> None:
    """Whatever the user and the password are, if they are encoded as an address needs it."""
    encoded = quote(f"x{password}", safe="", errors="replace")
    address = f"{scheme}://{quote(user, safe='', errors='replace')}:{encoded}@{place}"
    assert masked(f"see {address}!") == f"see {address.replace(f':{encoded}@', f':{HIDDEN}@')}!"
    plain, given_user = split_user(address)
    assert plain == f"{scheme}://{place}"
    assert given_user is not None
    assert given_user.endswith(f"x{password}".encode("utf-8", "replace").decode())


@settings(deadline=None)
@given(st.sampled_from(["redis", "rediss", "amqp", "ftp"]), st.from_regex(r"[!-~]{1,12}", fullmatch=True))
def test_a_password_that_was_not_encoded_is_hidden_too(scheme: str, password: str) -> None:
    password = f"q{password.translate(str.maketrans('', '', '<>' + chr(34) + chr(39)))}z"
    assert password not in masked(f"{scheme}://user:{password}@host:1/0")


@settings(deadline=None)
@given(st.text())
def test_texts_of_all_kinds_are_masked_once(text: str) -> None:
    hidden = masked(text)
    assert masked(hidden) == hidden


def test_long_texts_take_no_time() -> None:
    for text in ("a" * 200_000, "://" * 60_000, "?" + "token" * 40_000, "http://" + "a:@" * 60_000):
        masked(text)


@settings(deadline=None)
@given(st.text())
def test_nothing_printable_steers_a_terminal(text: str) -> None:
    shown = printable(text)
    assert printable(shown) == shown
    shown.encode()
    for place, character in enumerate(shown):
        if character in "\u200c\u200d":  # between letters of another script, or parts of an emoji
            assert min(shown[place - 1], shown[place + 1]) > "\x7f"
        else:
            assert unicodedata.category(character) not in ("Cc", "Cf", "Cs", "Zl", "Zp")


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("a\x1b]0;pwned\x07.jpg", r"a\x1b]0;pwned\x07.jpg"),
        ("a\x9b31m", r"a\x9b31m"),
        ("c\u202egpj.exe.jpg", r"c\u202egpj.exe.jpg"),
        ("a\u2066b\u200bc\u2028d\ufeff", r"a\u2066b\u200bc\u2028d\ufeff"),
        ("a\u200db", r"a\u200db"),
        ("d\nline\r\tx", r"d\nline\r\tx"),
        ("caf\udce9", r"caf\xe9"),
        ("\udce6\udc97\udca5", "日"),  # as Python has a name in UTF-8 where the locale is C
        ("\ud800", r"\ud800"),
        ("東京\u3000駅", "東京\u3000駅"),
        ("می\u200cخواهم 👩\u200d👧", "می\u200cخواهم 👩\u200d👧"),
    ],
)
def test_what_is_escaped(text: str, shown: str) -> None:
    assert printable(text) == shown
    assert str(LdotError(text)) == shown
