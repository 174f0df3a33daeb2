"""Requests drawn from the OpenAPI description: none is answered with 500, and all answers are those it declares.

``LDOT_TEST_API_EXAMPLES=220`` sends more than 2,000 requests.
"""

from __future__ import annotations

import os
import warnings
from collections import Counter
from contextlib import suppress
from typing import Any

import pytest

from tests.integration.serve.conftest import Running

schemathesis = pytest.importorskip("schemathesis", reason="schemathesis is in the extra dev")

EXAMPLES = int(os.environ.get("LDOT_TEST_API_EXAMPLES", "6"))
"""Requests of each route, and as many of wrong shapes."""


def test_no_request_makes_it_fail(service: Running) -> None:
    from hypothesis import HealthCheck, Phase, given, settings
    from hypothesis.errors import Unsatisfiable
    from schemathesis import GenerationMode
    from schemathesis.checks import not_a_server_error
    from schemathesis.specs.openapi.checks import (
        content_type_conformance,
        response_schema_conformance,
        status_code_conformance,
    )

    checks: list[Any] = [
        not_a_server_error, status_code_conformance, content_type_conformance, response_schema_conformance,
    ]  # fmt: skip
    statuses: Counter[int] = Counter()
    quick = settings(
        max_examples=EXAMPLES, deadline=None, database=None, derandomize=True, phases=[Phase.generate],
        suppress_health_check=list(HealthCheck),
    )  # fmt: skip

    def ask(case: Any) -> None:
        if case.path == "/v1/search" and isinstance(case.body, dict) and statuses.total() % 2:
            # Of drawn options, hardly any fit each other: the others are asked as they are.
            case.body = {"text": "a dog", **{name: case.body[name] for name in ("k", "offset") if name in case.body}}
        response = case.call(timeout=60)
        statuses[response.status_code] += 1
        case.validate_response(response, checks=checks)

    schema = schemathesis.openapi.from_url(service.url("/openapi.json"))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for result in schema.get_all_operations():
            operation: Any = result.ok()
            for mode in (GenerationMode.POSITIVE, GenerationMode.NEGATIVE):
                with suppress(Unsatisfiable):  # a route without fields has no wrong ones
                    quick(given(operation.as_strategy(generation_mode=mode))(ask))()
    print(dict(statuses))
    assert statuses[200] >= EXAMPLES // 4 + 4  # of the searches, and of the routes without fields
    assert not any(status >= 500 for status in statuses)
