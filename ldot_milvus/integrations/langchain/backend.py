"""The fields that name a model, a re-ranker and a collection, with their own checks, copies and pickles."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

from pydantic import BaseModel, ConfigDict, PrivateAttr, SkipValidation, model_validator
from typing_extensions import Self, TypeIs, override

from ldot_milvus.forks import Lock
from ldot_milvus.integrations.arguments import refuse_unknown
from ldot_milvus.models.base import Embedder, Reranker
from ldot_milvus.search.retriever import Retriever
from ldot_milvus.search.shared import shared_embedder, shared_retriever, shared_store
from ldot_milvus.settings import Settings
from ldot_milvus.stores import VectorStore

T = TypeVar("T")

_making = Lock(reentrant=True)


class StrictFields(BaseModel):
    """Base of components that refuse what they do not know, in the constructor and in copies."""

    model_config = ConfigDict(arbitrary_types_allowed=True, protected_namespaces=())

    @model_validator(mode="before")
    @classmethod
    def _refuse_unknown(cls, values: Any) -> Any:
        if isinstance(values, Mapping):
            refuse_unknown(values, cls.model_fields, cls.__name__)
        return values

    @override
    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Self:
        """Copy the component with other values of some fields; a name that is no field is refused."""
        refuse_unknown(update or (), type(self).model_fields, type(self).__name__)
        return super(StrictFields, copy.deepcopy(self) if deep else self).model_copy(update=update)


class ModelFields(StrictFields):
    """Base of components with a model.

    A component holds nothing but its fields. Models and stores that a field names are shared by the whole process
    (:mod:`ldot_milvus.search.shared`), so a field may change, and a copy costs nothing. Copies share objects that were
    given open or loaded. A pickle contains their addresses and names instead, and loads in any process that reaches
    them.
    """

    model: str | SkipValidation[Embedder] | None = None

    @property
    def embedder(self) -> Embedder:
        """The model, loaded at the first use of its name in this process."""
        return shared_embedder(self.model) if _is_name(self.model) else self.model

    def __deepcopy__(self, memo: dict[int, Any] | None = None) -> Self:
        memo = {} if memo is None else memo
        memo.update((id(value), value) for name, value in self.__dict__.items() if name in self._names())
        return super().__deepcopy__(memo)

    @override
    def __getstate__(self) -> dict[Any, Any]:
        state = super().__getstate__()
        return {**state, "__dict__": {**state["__dict__"], **self._names()}}

    @property
    def model_name(self) -> str:
        """Name of the model that is in effect."""
        return (self.model or Settings().model) if _is_name(self.model) else self.model.name

    def _names(self) -> dict[str, Any]:
        """Return the fields that hold an open or loaded object, with the values that name it."""
        return {} if _is_name(self.model) else {"model": self.model_name}


class CollectionFields(ModelFields):
    """Base of components over a collection."""

    store: str | VectorStore | None = None
    collection: str | None = None
    reranker: str | SkipValidation[Reranker] | None = None

    _made: Made[Retriever] = PrivateAttr(default_factory=lambda: Made())

    @property
    def retriever(self) -> Retriever:
        """The two-stage retriever that the fields describe now. Its first use opens the store and loads the model."""
        store, model, reranker = self.store, self.model, self.reranker
        if not isinstance(store, VectorStore) and _is_name(model) and _is_name(reranker):
            return shared_retriever(store, self.collection, model, reranker)
        opened, embedder, settings = self.opened, self.embedder, Settings()
        reranker = reranker or settings.reranker
        parts = (opened, embedder, reranker, settings.region_store)
        return self._made.get(parts, lambda: Retriever(embedder, opened, reranker=reranker))

    @property
    def reranker_name(self) -> str | None:
        """Name of the re-ranker that is in effect; None for the model's own."""
        return (self.reranker or Settings().reranker) if _is_name(self.reranker) else self.reranker.name

    @property
    def opened(self) -> VectorStore:
        """The open collection."""
        return self.store if isinstance(self.store, VectorStore) else shared_store(self.store, self.collection)

    def __copy__(self) -> Self:
        copied = super().__copy__()
        copied._made = Made()
        return copied

    @override
    def _names(self) -> dict[str, Any]:
        names = super()._names()
        if isinstance(self.store, VectorStore):
            names |= {"store": self.store.address, "collection": self.store.collection}
        if not _is_name(self.reranker):
            names["reranker"] = self.reranker_name
        return names


class Made(Generic[T]):
    """The last value that was made of given objects, to make it once for many calls.

    It is no part of its owner's value: it equals every other one, and a copy or a pickle of it is empty.
    """

    def __init__(self) -> None:
        self._parts: tuple[object, ...] = ()
        self._value: T | None = None

    def get(self, parts: tuple[object, ...], make: Callable[[], T]) -> T:
        """Return the value; ``make`` makes a new one if any of its parts is another than at the last call."""
        with _making:
            if self._value is None or not all(map(_same, parts, self._parts)):
                self._value, self._parts = make(), parts
            return self._value

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Made)

    __hash__ = None  # type: ignore[assignment]

    def __deepcopy__(self, memo: dict[int, Any]) -> Made[T]:
        return Made()

    def __reduce__(self) -> tuple[type[Made[T]], tuple[()]]:
        return Made, ()


def _is_name(value: object) -> TypeIs[str | None]:
    return value is None or isinstance(value, str)


def _same(one: object, other: object) -> bool:
    return one == other if isinstance(one, str) else one is other
