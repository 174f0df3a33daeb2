"""Settings, read from environment variables with the prefix ``LDOT_`` and, if it is asked for, from a file of them."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from functools import lru_cache
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import (
    AfterValidator,
    BeforeValidator,
    Field,
    PositiveInt,
    PrivateAttr,
    SecretStr,
    StringConstraints,
    ValidationError,
)
from pydantic_settings import BaseSettings, PydanticBaseSettingsSource, SettingsConfigDict
from typing_extensions import override

from ldot_milvus.errors import UsageError
from ldot_milvus.redaction import HIDDEN, masked
from ldot_milvus.variables import PREFIX, Variable, nearest, read_variables, stamp, warn_of_unknown

QUEUE = "ldot"
"""The default of ``LDOT_QUEUE``. Messages in flight depend on it."""

COLLECTION_NAME = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}")
"""The collection names that Milvus accepts."""

REDIS = ("redis://", "rediss://")

_URL_HINT = "with characters such as /, # and @ in the password written as %2F, %23 and %40"


def _matching(pattern: re.Pattern[str]) -> AfterValidator:
    def check(value: str) -> str:
        if not pattern.fullmatch(value):
            raise ValueError
        return value

    return AfterValidator(check)


def _matching_list(pattern: re.Pattern[str]) -> AfterValidator:
    def check(value: str | None) -> str | None:
        if not all(pattern.fullmatch(one) for one in split_list(value)):
            raise ValueError
        return value

    return AfterValidator(check)


def split_list(value: str | None) -> list[str]:
    """Return the entries of a setting that are separated by commas."""
    return [] if value is None else [one.strip() for one in value.split(",")]


def _checked_queue(name: str) -> str:
    # The second queue of "photos" is "photos.changes", which no other deployment may have as its first.
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]{0,99}", name) or name.endswith(".changes"):
        raise ValueError
    return name


def _checked_url(url: str) -> str:
    for one in url.split(";"):  # Celery tries several brokers in turn
        parts = urlsplit(one)
        _ = parts.port  # raises ValueError
        bad = not parts.scheme or "://" not in one or not one.isprintable() or " " in one
        if bad or "@" in parts.path + parts.query + parts.fragment or parts.fragment:
            raise ValueError
        if one.startswith(REDIS) and not re.fullmatch(r"/?\d*", parts.path):
            raise ValueError
    return url


def _checked_journal(address: str) -> str:
    if "://" not in address:
        return address
    if not address.startswith(REDIS):
        raise ValueError
    return _checked_url(address)


_Text = Annotated[
    str,
    StringConstraints(strip_whitespace=True, min_length=1, strict=True),
    BeforeValidator(lambda value: os.fspath(value) if isinstance(value, os.PathLike) else value),
]
_Switch = Annotated[bool, Field(description="true or false")]
_Lower = BeforeValidator(lambda value: value.strip().lower() if isinstance(value, str) else value)
_Url = Annotated[_Text, AfterValidator(_checked_url)]
_HOST = re.compile(r"[A-Za-z0-9._-]+|\[[0-9A-Fa-f:.]+\]")
_ORIGIN = re.compile(r"\*|https?://[^/\s,]+")
_SERVER = re.compile(r"https?://[^/\s@?#]+(/[^\s?#@]*)?")
_DEVICE = re.compile(r"(cpu|mps|cuda|xpu)(:\d+)?")


class Settings(BaseSettings):
    """Settings of the library, the commands and the workers; ``docs/settings.md`` describes each of them.

    The defaults suit a laptop: a local store, no broker, the packaged model. A value that is given as an argument
    overrides the environment variable ``LDOT_`` and its name, and this the file that ``LDOT_ENV_FILE`` names. An empty
    variable counts as unset. The representation contains no password and no token.

    Raises:
        UsageError: a value of the wrong kind, or an argument that is no setting; the message names it and what it
            takes.
    """

    model_config = SettingsConfigDict(env_prefix=PREFIX, extra="forbid", populate_by_name=True)

    store: Annotated[_Text, Field(description="the address of a store")] = "faiss:./ldot-data"
    # Other addresses of a worker's store, separated by commas.
    store_alias: Annotated[_Text | None, Field(description="addresses of the store, separated by commas")] = None
    store_token: Annotated[
        Annotated[SecretStr, Field(min_length=1)] | None,
        BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value),
        Field(description="USER:PASSWORD or an API key"),
    ] = None
    collection: Annotated[
        _Text,
        _matching(COLLECTION_NAME),
        Field(description="at most 255 letters, digits and underscores, and no digit first"),
    ] = "images"
    model: Annotated[_Text, Field(description="a packaged name, a folder or a hub id")] = "ldot-mini"
    # None: the model's own; "none": dot product alone.
    reranker: Annotated[_Text | None, Field(description="a folder, a hub id or none")] = None
    region_store: Annotated[_Text | None, Field(description="a folder or an fsspec address")] = None  # None: beside it
    region_dtype: Annotated[  # in which region data are written
        Literal["float16", "int8"], Field(description="float16 or int8")
    ] = "float16"
    # Other addresses of a worker's region store, separated by commas.
    region_store_alias: Annotated[_Text | None, Field(description="addresses of the region store")] = None
    index: Annotated[_Text, Field(description="auto, or an index type such as HNSW:M=16")] = "auto"
    index_fallback: _Switch = True  # use the nearest CPU index type if the server has no GPU
    broker: Annotated[  # None: ingest in this process
        _Url | None, Field(description=f"redis://HOST/0 or amqp://USER:PASSWORD@HOST//, {_URL_HINT}")
    ] = None
    queue: Annotated[
        _Text,
        AfterValidator(_checked_queue),
        Field(
            description="1 to 100 letters, digits, dots, dashes and underscores, beginning with a letter or digit and "
            "not ending in .changes"
        ),
    ] = QUEUE
    result_backend: Annotated[  # the journal; None: beside a local store, else the broker if it is Redis
        Annotated[_Text, AfterValidator(_checked_journal)] | None,
        Field(description=f"redis://HOST/DB, {_URL_HINT}, or the path of a file"),
    ] = None
    visibility_timeout: Annotated[  # seconds until an unacknowledged chunk is delivered again
        PositiveInt, Field(description="a whole number of seconds, at least 1")
    ] = 600
    device: Annotated[
        Annotated[_Text, _matching(_DEVICE)] | None, _Lower, Field(description="cuda, cuda:1, mps or cpu")
    ] = None
    dtype: Annotated[
        Literal["float32", "float16", "bfloat16"] | None, Field(description="float32, float16 or bfloat16")
    ] = None
    # Of the workers and of the service.
    log_format: Annotated[Literal["text", "json"], Field(description="text or json")] = "text"
    serve_token: Annotated[  # None: no client needs one
        Annotated[SecretStr, Field(min_length=1)] | None,
        BeforeValidator(lambda value: value.strip() if isinstance(value, str) else value),
        Field(description="a token"),
    ] = None
    serve_hosts: Annotated[  # None: those of this machine for a service on loopback, else any
        _Text | None, _matching_list(_HOST), Field(description="host names without ports, separated by commas")
    ] = None
    serve_origins: Annotated[  # of pages of other sites
        _Text | None,
        _matching_list(_ORIGIN),
        Field(description="origins such as https://photos.example, separated by commas, or *"),
    ] = None
    serve_ingest: _Switch = False
    server: Annotated[  # of ldot search
        Annotated[_Text, _matching(_SERVER)] | None, Field(description="the address of a service, http://HOST:PORT")
    ] = None
    allow_urls: _Switch = False
    max_pixels: Annotated[PositiveInt, Field(description="a whole number of pixels, at least 1")] = (
        178_956_970  # of a photo; Pillow's own limit
    )

    _origins: dict[str, str] = PrivateAttr(default_factory=dict)

    def __init__(self, _given_as: str = "argument", **values: Any) -> None:
        for name in values.keys() - type(self).model_fields:
            raise UsageError(f"{name} is no setting{nearest(name, type(self).model_fields)}")
        variables = read_variables(type(self).model_fields)
        try:
            super().__init__(**values)
        except ValidationError as error:
            raise WrongSettings(_problems(error, values, variables, _given_as)) from None
        origins = {name: variable.origin for name, variable in variables.items()}
        self._origins = {**origins, **dict.fromkeys(values, _given_as)}
        warn_of_unknown(type(self).model_fields)

    @classmethod
    @override
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        return init_settings, _Variables(settings_cls)

    def origin(self, name: str) -> str:
        """Return where a setting comes from: "default", "environment", the path of a file, "option" or "argument".

        Args:
            name: name of the field, such as "store".
        """
        return self._origins.get(name, "default")

    def shown(self, name: str) -> str:
        """Return the value of a setting for people, without secrets; empty if it is not set.

        Args:
            name: name of the field, such as "store".
        """
        value = getattr(self, name)
        if value is None:
            return ""
        if isinstance(value, SecretStr):
            return HIDDEN
        return str(value).lower() if isinstance(value, bool) else masked(str(value))

    @property
    def token(self) -> str | None:
        """The value of ``store_token``."""
        return None if self.store_token is None else self.store_token.get_secret_value()

    @property
    def serve_secret(self) -> str | None:
        """The value of ``serve_token``."""
        return None if self.serve_token is None else self.serve_token.get_secret_value()

    @override
    def __repr_args__(self) -> Iterator[tuple[str | None, Any]]:
        for name, value in super().__repr_args__():
            yield name, masked(value) if isinstance(value, str) else value


class WrongSettings(UsageError):
    """Settings have values of the wrong kind.

    Attributes:
        problems: what is wrong with each of them, by the name of the field.
    """

    def __init__(self, problems: dict[str, str]) -> None:
        super().__init__("; ".join(problems.values()))
        self.problems = problems


def current(name: str) -> Any:
    """Return the value of a setting in the environment, of which reading all settings anew would take milliseconds.

    Args:
        name: name of the field, such as "max_pixels".

    Raises:
        UsageError: as :class:`Settings`.
    """
    return _value(name, stamp(variable_of(name)))


@lru_cache(maxsize=16)
def _value(name: str, _: object) -> Any:
    return getattr(Settings(), name)


def variable_of(name: str) -> str:
    """Return the environment variable of a field."""
    return f"{PREFIX}{name.upper()}"


class _Variables(PydanticBaseSettingsSource):
    """The variables of :mod:`ldot_milvus.variables`, as pydantic-settings reads them."""

    @override
    def get_field_value(self, field: Any, field_name: str) -> tuple[Any, str, bool]:
        raise NotImplementedError  # __call__ reads all fields at once

    @override
    def __call__(self) -> dict[str, Any]:
        return {name: variable.value for name, variable in read_variables(self.settings_cls.model_fields).items()}


def _problems(
    error: ValidationError, values: dict[str, Any], variables: dict[str, Variable], given_as: str
) -> dict[str, str]:
    """Say of each wrong value what it is and what the setting takes."""
    problems: dict[str, str] = {}
    for detail in error.errors():
        field = str(detail["loc"][0])
        if field in values:
            name = f"--{field.replace('_', '-')}" if given_as == "option" else field
            value = values[field]
        else:
            name, value = variables[field].name, variables[field].value
        takes = Settings.model_fields[field].description
        problems[field] = f"{name} {_what_is_wrong(field, value)}: give {takes}"
    return problems


def _what_is_wrong(field: str, value: Any) -> str:
    if isinstance(value, str) and not value.strip():
        return "is empty"
    if field in ("store_token", "serve_token") or not (value is None or isinstance(value, (str, int, float))):
        return f"is of the type {type(value).__name__}"
    # Of an address that cannot be parsed, it is not certain what is the password.
    if isinstance(value, str) and any(mark in value for mark in "@?#"):
        return "is not a valid address" if "://" in value else "has a wrong value"
    return f"is {value!r}"
