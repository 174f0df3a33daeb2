"""Remote file systems of fsspec, such as ``s3://bucket/photos``, with limits on silence.

By its defaults, s3fs would wait six minutes for a server that accepts connections and never answers; for its permission
to upload, it would wait for ever.
"""

from __future__ import annotations

from typing import Any

CONNECT_SECONDS, READ_SECONDS = 5, 10
"""Seconds until an attempt fails that cannot connect, or that receives nothing."""

ATTEMPTS = 2
"""Attempts of each request, which s3fs makes; botocore repeats none."""

CONNECTIONS = 32
"""Requests at a time: the region data that a search reads by default is requested at once."""

CALL_SECONDS = 30.0
"""Limit of a call that reads or writes small files, and one second more for each file."""


def open_filesystem(address: str) -> tuple[Any, str]:
    """Return the file system of an address in this process, and the path in it.

    Args:
        address: an fsspec address, which may be chained (``simplecache::s3://...``).

    Raises:
        ImportError: the package of the file system is not installed; the message names it.
        ValueError: fsspec does not know the scheme.
    """
    import fsspec

    options: dict[str, Any] = {}
    if "s3://" in address:
        limits = {
            "connect_timeout": CONNECT_SECONDS, "read_timeout": READ_SECONDS, "retries": {"total_max_attempts": 1},
            "max_pool_connections": CONNECTIONS,
        }  # fmt: skip
        own = fsspec.config.conf.get("s3", {}).get("config_kwargs", {})  # the user's, which arguments would replace
        # No cached listings: other programs write to the bucket.
        options["s3"] = {"config_kwargs": {**limits, **own}, "use_listings_cache": False}
    fs, path = fsspec.core.url_to_fs(address, **options)
    if "s3://" in address and hasattr(fs, "retries"):
        fs.retries = ATTEMPTS
    return fs, str(path)


def call(fs: Any, method: str, *args: Any, files: int = 1, **kwargs: Any) -> Any:
    """Call a method of a file system, with a time limit if it belongs to a network.

    Args:
        fs: the file system.
        method: name of the method.
        args, kwargs: its arguments.
        files: number of small files that it reads or writes.

    Raises:
        TimeoutError: the call did not end within :data:`CALL_SECONDS` and a second for each file.
    """
    if not fs.async_impl:
        return getattr(fs, method)(*args, **kwargs)
    from fsspec.asyn import sync
    from fsspec.exceptions import FSTimeoutError

    seconds = CALL_SECONDS + files
    try:
        return sync(fs.loop, getattr(fs, f"_{method}"), *args, timeout=seconds, **kwargs)
    except FSTimeoutError as error:
        raise TimeoutError(f"no answer within {seconds:.0f} s") from error
