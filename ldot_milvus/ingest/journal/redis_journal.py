"""Journal in Redis, for workers on several machines; it is as durable as that Redis (``appendonly yes``)."""

from __future__ import annotations

import secrets
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property
from typing import Any
from urllib.parse import urlsplit

from typing_extensions import override

from ldot_milvus.errors import StoreError, UsageError
from ldot_milvus.ingest.journal.base import DAYS_KEPT, FailedItem, Journal, Progress, Run, Sums, folded
from ldot_milvus.settings import QUEUE

_TIMEOUT = 10.0
_SECONDS_KEPT = DAYS_KEPT * 86_400

# Marks a chunk as finished and adds its sums, unless it was finished before.
_END = """
redis.call('HSET', KEYS[1], 'trouble', '', 'changed', ARGV[2])
if redis.call('HSETNX', KEYS[2], ARGV[1], ARGV[3]) == 0 then return 0 end
redis.call('HDEL', KEYS[3], ARGV[1])
for i = 4, #ARGV, 2 do
  redis.call('HINCRBYFLOAT', KEYS[4], ARGV[i], ARGV[i + 1])
  redis.call('HINCRBYFLOAT', KEYS[5], ARGV[i], ARGV[i + 1])
end
return 1
"""


class RedisJournal(Journal):
    """Connects at the first call, and again after a fork.

    Args:
        url: ``redis://HOST:PORT/DB`` or ``rediss://...``, with a password where the server requires one.
        name: prefix of the keys; deployments that share a server have different ones.

    Raises:
        UsageError: the address has another port than a number.
    """

    def __init__(self, url: str, name: str = QUEUE) -> None:
        try:
            parts = urlsplit(url)
            self.address = f"{parts.scheme}://{parts.hostname}:{parts.port or 6379}{parts.path}"  # without the password
        except ValueError as error:  # its text may contain a part of the password
            raise UsageError(
                "the address of the journal (LDOT_RESULT_BACKEND) is not valid: give redis://HOST/DB, with characters "
                "such as /, # and @ in the password written as %2F, %23 and %40"
            ) from error
        self._url = url
        self._name = name
        self._runs = f"{name}:runs"  # sorted set of run ids by time
        self._failures = f"{name}:failures"  # hash: key to JSON
        self._totals = f"{name}:totals"  # hash: the sums of all runs

    @cached_property
    def _redis(self) -> Any:
        import redis

        return redis.Redis.from_url(
            self._url, socket_timeout=_TIMEOUT, socket_connect_timeout=_TIMEOUT, decode_responses=True
        )

    @override
    def start(self, run: Run) -> None:
        with self._pipeline() as calls:
            calls.zremrangebyscore(self._runs, 0, time.time() - _SECONDS_KEPT)
            calls.zadd(self._runs, {run.id: run.started})
            calls.hset(self._key(run.id), mapping={"run": run.to_json(), "trouble": "", "changed": run.started})
            calls.expire(self._key(run.id), _SECONDS_KEPT)

    @override
    def begin(self, run_id: str, chunk_id: str) -> int:
        with self._pipeline() as calls:
            calls.hexists(self._key(run_id, "ended"), chunk_id)
            calls.hincrby(self._key(run_id, "begun"), chunk_id, 1)
            calls.expire(self._key(run_id, "begun"), _SECONDS_KEPT)
            calls.hset(self._key(run_id), "changed", time.time())
            ended, begun, *_ = calls.execute()
            if ended:
                calls.hdel(self._key(run_id, "begun"), chunk_id)
        return 0 if ended else int(begun)

    @override
    def give_back(self, run_id: str, chunk_id: str) -> None:
        with self._explained():
            self._redis.hincrby(self._key(run_id, "begun"), chunk_id, -1)

    @override
    def end(
        self, run_id: str, chunk_id: str, sums: Sums, failed: Sequence[FailedItem] = (), succeeded: Sequence[str] = ()
    ) -> bool:
        with self._explained():
            redis = self._redis
            if redis.hexists(self._key(run_id, "ended"), chunk_id):
                return False
            counted = folded(sums, redis.hkeys(self._totals) if failed else ())
            # Failures are recorded first: if the worker dies in between, the chunk is processed again.
            old = redis.hmget(self._failures, [item.key for item in failed]) if failed else []
            recorded = {}
            for item, text in zip(failed, old, strict=True):
                recorded[item.key] = item.after(None if text is None else FailedItem.from_json(text)).to_json()
            if recorded:
                redis.hset(self._failures, mapping=recorded)
            if succeeded:
                redis.hdel(self._failures, *succeeded)
            keys = [self._key(run_id), *(self._key(run_id, part) for part in ("ended", "begun", "sums")), self._totals]
            pairs = [value for pair in counted.items() for value in pair]
            first = redis.eval(_END, len(keys), *keys, chunk_id, time.time(), "done" if sums else "split", *pairs)
            for key in keys[:-1]:
                redis.expire(key, _SECONDS_KEPT)
            return bool(first)

    @override
    def ended(self, run_id: str) -> dict[str, bool]:
        with self._explained():
            states = self._redis.hgetall(self._key(run_id, "ended"))
        return {chunk: state == "split" for chunk, state in states.items()}

    @override
    def note_trouble(self, run_id: str, trouble: str) -> None:
        with self._explained():
            if self._redis.exists(self._key(run_id)):
                self._redis.hset(self._key(run_id), "trouble", trouble)

    @override
    def progress(self, run_id: str) -> Progress | None:
        with self._explained():
            calls = self._redis.pipeline()
            calls.hgetall(self._key(run_id))
            calls.hvals(self._key(run_id, "begun"))
            calls.hgetall(self._key(run_id, "sums"))
            about, begun, sums = calls.execute()
        if "run" not in about:
            return None
        return Progress(
            Run.from_json(about["run"]), _numbers(sums), sum(int(count) > 0 for count in begun),
            float(about["changed"]), about["trouble"],
        )  # fmt: skip

    @override
    def runs(self) -> list[Run]:
        with self._explained():
            ids = self._redis.zrevrange(self._runs, 0, -1)
            texts = [self._redis.hget(self._key(id), "run") for id in ids]
        return [Run.from_json(text) for text in texts if text]

    @override
    def failures(self, run_id: str | None = None) -> list[FailedItem]:
        with self._explained():
            items = [FailedItem.from_json(text) for text in self._redis.hvals(self._failures)]
        return sorted(
            (item for item in items if run_id in (None, item.run_id)), key=lambda item: (item.time, item.source)
        )

    @override
    def clear(self, keys: Sequence[str]) -> int:
        with self._explained():
            return int(self._redis.hdel(self._failures, *keys)) if keys else 0

    @override
    def totals(self) -> Sums:
        with self._explained():
            return _numbers(self._redis.hgetall(self._totals))

    @override
    def check_writable(self) -> None:
        key = f"{self._name}:doctor-{secrets.token_hex(8)}"
        with self._explained():
            self._redis.set(key, "", ex=60)  # disappears by itself if the next line cannot delete it
            self._redis.delete(key)

    def _key(self, run_id: str, part: str = "") -> str:
        return f"{self._name}:run:{run_id}" + (f":{part}" if part else "")

    @contextmanager
    def _pipeline(self) -> Iterator[Any]:
        """Collect calls and run them in one transaction."""
        with self._explained(), self._redis.pipeline(transaction=True) as calls:
            yield calls
            calls.execute()

    @contextmanager
    def _explained(self) -> Iterator[None]:
        import redis

        try:
            yield
        except (redis.RedisError, OSError) as error:
            raise StoreError(
                f"the journal at {self.address} cannot be used ({error}): start that Redis server, or set "
                "LDOT_RESULT_BACKEND to another one or to a file"
            ) from error


def _numbers(sums: dict[str, str]) -> Sums:
    return {name: float(value) for name, value in sums.items()}
