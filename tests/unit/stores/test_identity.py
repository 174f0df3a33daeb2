"""The id of a row."""

from __future__ import annotations

import hashlib

from hypothesis import given
from hypothesis import strategies as st

from ldot_milvus.stores import Record
from ldot_milvus.stores.identity import CONTENT_ID, content_of, has_own_id, row_id

namespaces = st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\0"), min_size=1, max_size=20)
contents = st.binary(max_size=4).map(lambda data: hashlib.sha256(data).hexdigest())


def test_ids_that_other_programs_may_compute() -> None:
    content = hashlib.sha256(b"a photo").hexdigest()
    assert row_id("default", content) == content
    assert row_id("ann", content) == hashlib.sha256(b"ann\0" + content.encode()).hexdigest()


@given(namespaces, namespaces, contents, contents)
def test_one_content_in_one_namespace_is_one_row(a: str, b: str, one: str, two: str) -> None:
    assert (row_id(a, one) == row_id(b, two)) == ((a, one) == (b, two))


@given(namespaces, contents, st.none() | st.text(min_size=1, max_size=10))
def test_the_content_of_any_row_is_known(namespace: str, content: str, own: str | None) -> None:
    id = own or row_id(namespace, content)
    row = Record(id, namespace=namespace, metadata={CONTENT_ID: content} if id != content else {})
    assert content_of(row) == content
    assert has_own_id(row) == (own is not None)
