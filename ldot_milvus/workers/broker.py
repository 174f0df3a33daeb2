"""Whether the broker is there: told at once, not after Celery's own long series of attempts."""

from __future__ import annotations

from ldot_milvus.errors import StoreError, first_line

SECONDS = 5


def check_broker(broker: str) -> str:
    """The broker's address without its password, if it answers within some seconds.

    Raises:
        StoreError: it does not, or it is of no kind that kombu knows.
    """
    from kombu.connection import Connection
    from kombu.exceptions import OperationalError
    from kombu.utils.url import maybe_sanitize_url

    address = str(maybe_sanitize_url(broker))
    try:
        with Connection(broker, connect_timeout=SECONDS) as connection:  # type: ignore[no-untyped-call]
            connection.ensure_connection(max_retries=2, interval_start=0.2, timeout=SECONDS)
    except (OperationalError, OSError, ImportError, KeyError) as error:
        raise StoreError(
            f"the broker at LDOT_BROKER ({address}) does not answer ({first_line(error)}): start it, or unset "
            "LDOT_BROKER to ingest in this process"
        ) from error
    return address
