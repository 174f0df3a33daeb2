"""Passwords and tokens in addresses: hide them in texts, and separate them from an address."""

from __future__ import annotations

import re
from urllib.parse import unquote

HIDDEN = "****"
"""Stands for a secret in a text."""

_NAMES = (
    r"[\w.-]{0,40}(?:passw(?:or)?d|passphrase|pwd|token|secret|signature|credential|api[_-]?key|access[_-]?key)"
    r"[\w.-]{0,40}|pass|pw|sig|sas|key|auth"
)
_PARAMETER = re.compile(rf"([?&;#](?:{_NAMES})=)[^&;#\s\"'<>]+", re.IGNORECASE)
_TOKEN = re.compile(r"\bhf_[A-Za-z0-9]{16,}|\b(?<=bearer )[\w.~+/=-]{16,}", re.IGNORECASE)
_END_OF_ADDRESS = re.compile(r"[\s\"'<>]")
_SCHEME = re.compile(r"[A-Za-z][A-Za-z0-9+.-]{0,30}\Z")
_HOST = re.compile(r"(?:\[[^\]]*\]|[^:@]*)(?::\d*)?\Z")
_PATHS_WITH_AT = ("http", "https", "s3", "gs", "gcs", "az", "abfs", "file")
"""Schemes whose paths may contain an @: photos, buckets. In addresses of servers it ends a password."""


def masked(text: str) -> str:
    """Return a text with :data:`HIDDEN` instead of the secrets in its addresses.

    Secrets are the password before an ``@``, the user name if there is no password and it may be a key, the values of
    parameters such as ``token=``, and tokens of the Hugging Face hub. A password with characters that an address cannot
    contain, such as ``/``, is recognised except in the address of a web page with the form ``host:port/path@``.

    Args:
        text: any text, such as an address, or the message of a library that repeats one.
    """
    head, *rest = text.split("://")
    parts = [head]
    for after in rest:
        end = _END_OF_ADDRESS.search(after)
        place = after[: end.start()] if end else after
        parts.append(_without_password(_scheme_before(parts[-1]), place, HIDDEN) + after[len(place) :])
    return _TOKEN.sub(HIDDEN, _PARAMETER.sub(rf"\g<1>{HIDDEN}", "://".join(parts)))


def without_secrets(address: str) -> str:
    """Return an address without password and secret parameters, which names the same place.

    Args:
        address: one address, or several of fsspec joined by ``::``.
    """
    head, *rest = address.split("://")
    parts = [head]
    for after in rest:
        parts.append(_without_password(_scheme_before(parts[-1]), after, ""))
    kept = _PARAMETER.sub(lambda found: found[0][0], "://".join(parts))
    return re.sub(r"([?#])[&;]+", r"\1", re.sub(r"[?&;#]+(?=#|$)", "", kept))


def split_user(address: str) -> tuple[str, str | None]:
    """Separate the user from the address of a server.

    Returns:
        The address without it, and ``user:password`` without percent-encoding; None if the address names no user.
    """
    scheme, mark, place = address.partition("://")
    end = _user_end(scheme, place) if mark else -1
    return (address, None) if end < 0 else (f"{scheme}://{place[end + 1 :]}", unquote(place[:end]))


def _without_password(scheme: str, place: str, hidden: str) -> str:
    """Replace the secret before the ``@`` of an address without its scheme."""
    end = _user_end(scheme, place)
    if end < 0:
        return place
    user, colon, password = place[:end].partition(":")
    if password == "PASSWORD":  # in our own messages and help texts
        return place
    if scheme.startswith(("http", "redis")) and not (colon and hidden):  # a user alone is a key
        user = hidden
    elif colon and hidden:
        user += f":{hidden}"
    return f"{user}@{place[end + 1 :]}" if user else place[end + 1 :]


def _user_end(scheme: str, place: str) -> int:
    """Return the position of the ``@`` behind the user in an address without its scheme; -1 without one."""
    authority = re.split(r"[/?#]", place, maxsplit=1)[0]
    if "@" in authority:
        return authority.rindex("@")
    # A character that should have been encoded has ended the authority within the password.
    if "@" in place and (scheme not in _PATHS_WITH_AT or not _HOST.match(authority)):
        return place.rindex("@")
    return -1


def _scheme_before(text: str) -> str:
    found = _SCHEME.search(text[-31:])
    return found[0].lower() if found else ""
