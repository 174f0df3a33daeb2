"""What a query computes, by ONNX Runtime on the CPU: vectors of texts, and scores of texts with region data.

It needs neither torch nor transformers, whose imports take seconds. Photos are encoded by torch, which is imported for
the first of them; so are texts on a GPU, in half precision, and of models without graphs.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from ldot_milvus.forks import computation, compute_threads
from ldot_milvus.models.base import Array, FilesOnDisk, ImageFeatures, KeptImage, Text
from ldot_milvus.models.explanation import Explanation, explanation
from ldot_milvus.models.lightningdot.files import (
    SCORE_GRAPH,
    TEXT_GRAPH,
    WEIGHTS,
    LightningDOTFiles,
    LightningDOTRerankerFiles,
)
from ldot_milvus.models.lightningdot.inputs import pad_regions
from ldot_milvus.models.lightningdot.region_data import ReadsRegionData, regions_of
from ldot_milvus.models.onnx_graph import Graph, load_graph
from ldot_milvus.models.tokens import Tokens, by_length, distinct_texts, load_tokens

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.reranker import LightningDOTReranker

TEXT_BATCH = 32
"""Texts in a batch. One thread computes 166 texts a second in batches of 32 of similar length."""

PAIR_BATCH = 100
TEXT_LIMIT = 60
"""Tokens of a text where the configuration omits ``max_text_length``."""

_ACCELERATORS = ("/dev/nvidiactl", "/dev/dxg", "/dev/kfd")
"""Devices of NVIDIA's driver, of GPUs under WSL, and of AMD's driver."""


class GraphTexts:
    """Encodes texts as vectors.

    Args:
        files: the model's files.
        graph: the text encoder.
        tokens: its tokenizer.

    Attributes:
        tokens: the tokenizer.
    """

    def __init__(self, files: LightningDOTFiles, graph: Graph, tokens: Tokens) -> None:
        self.tokens = tokens
        self._graph, self._dim = graph, files.dim
        self._limit, self._vocabulary = _text_limit(files), _vocabulary(files, "text_config")

    def encode(self, texts: Iterable[Text]) -> Array:
        """Encode n texts as vectors, float32 (n, dim).

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
        """
        tokens = self.tokens.ids(texts, self._limit, self._vocabulary)

        def encode(rows: list[int]) -> Array:
            ids, mask = self.tokens.arrays([tokens[row] for row in rows])
            return self._graph(ids=ids, mask=mask)

        return by_length(tokens, TEXT_BATCH, self._dim, encode, threads=compute_threads())


class GraphReranker(ReadsRegionData):
    """Scores pairs of a text and an image's region data by word-region alignment. Instances are thread-safe.

    Args:
        files: the files from which the network was loaded.
        graph: the network.
        tokens: its tokenizer.
        network: returns the same network in torch, which region data are made with.
    """

    def __init__(
        self,
        files: LightningDOTRerankerFiles,
        graph: Graph,
        tokens: Tokens,
        network: Callable[[], LightningDOTReranker],
    ) -> None:
        super().__init__(files)
        self.dot_weight = float(files.config.get("dot_weight", 0.0))
        self._graph, self._tokens, self._network = graph, tokens, network
        # ONNX Runtime converts half precision 20 times as fast as NumPy: 0.05 ms for 20 photos, and not 1. The graphs
        # of earlier versions read float32.
        self._region_dtype = np.float16 if "regions" in graph.halves else np.float32

    def keep(self, features: Sequence[ImageFeatures]) -> list[KeptImage]:
        """Convert regions to region data, see :meth:`.reranker.LightningDOTReranker.keep`."""
        return self._network().keep(features)

    def explain(self, text: str, kept: KeptImage) -> Explanation:
        """Compare words and regions, see :meth:`.reranker.LightningDOTReranker.explain`."""
        if WEIGHTS not in self._graph.outputs:  # a graph of an earlier version
            return self._network().explain(text, kept)
        regions = regions_of(kept)
        tokens, words = self._tokens.words(text, _text_limit(self._files))
        ids, mask = self._tokens.arrays([tokens])
        features, _, region_mask = pad_regions([regions], self._region_dtype)
        with computation:
            weights = self._graph(
                WEIGHTS, ids=ids, mask=mask, text_of_pair=np.zeros(1, np.int64), regions=features,
                region_mask=region_mask,
            )  # fmt: skip
        return explanation(words, weights[0], regions.boxes, self.names(kept))

    def score(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> Array:
        """Score text i with photo i, see :meth:`.reranker.LightningDOTReranker.score`."""
        tokens = self._tokens.ids(texts, _text_limit(self._files), _vocabulary(self._files, "bert_config"))
        regions = {id(one): regions_of(one) for one in kept}

        def score(pairs: list[int]) -> Array:
            distinct, text_of_pair = distinct_texts([tokens[pair] for pair in pairs])
            ids, mask = self._tokens.arrays(distinct)
            features, _, region_mask = pad_regions([regions[id(kept[pair])] for pair in pairs], self._region_dtype)
            scores = self._graph(
                ids=ids,
                mask=mask,
                text_of_pair=np.array(text_of_pair, np.int64),
                regions=features,
                region_mask=region_mask,
            )  # fmt: skip
            return scores[:, None]

        return by_length(tokens, PAIR_BATCH, 1, score, threads=compute_threads())[:, 0]


def load_texts(files: LightningDOTFiles, device: str | None, dtype: str | None) -> GraphTexts | None:
    """Load the text encoder of a model, if ONNX Runtime is to run it.

    Args:
        files: the model's files.
        device, dtype: see :func:`~ldot_milvus.models.loading.load_embedder`.

    Returns:
        The encoder; None if torch runs it: on another device, in half precision, and without graph or tokenizer.json.

    Raises:
        ModelError: a file is damaged.
    """
    if not _on_cpu(device) or dtype not in (None, "float32"):
        return None
    tokens = load_tokens(files.folder)
    graph = None if tokens is None else _load(files, TEXT_GRAPH, tokens, _vocabulary(files, "text_config"))
    return None if graph is None or tokens is None else GraphTexts(files, graph, tokens)


def load_pairs(
    files: LightningDOTRerankerFiles, tokens: Tokens, network: Callable[[], LightningDOTReranker]
) -> GraphReranker | None:
    """Load the re-ranker of a model whose texts ONNX Runtime encodes; None if torch runs it.

    Args:
        files: of the model's own re-ranker.
        tokens: the model's tokenizer.
        network: returns the same network in torch.

    Raises:
        ModelError: a file is damaged.
    """
    graph = _load(files, SCORE_GRAPH, tokens, _vocabulary(files, "bert_config"))
    return None if graph is None else GraphReranker(files, graph, tokens, network)


def _load(files: FilesOnDisk, name: str, tokens: Tokens, vocabulary: int | None) -> Graph | None:
    """Load a graph; None if the tokenizer has ids that the network lacks, which the bundle refuses in one line."""
    if vocabulary is not None and tokens.vocabulary > vocabulary:
        return None
    return load_graph(files.folder / name, files.folder / "model.safetensors", files.config)


def _vocabulary(files: FilesOnDisk, part: str) -> int | None:
    """Return the number of ids that a network reads; None if the configuration omits it."""
    return files.config.get(part, {}).get("vocab_size")


def _text_limit(files: FilesOnDisk) -> int:
    return int(files.config.get("max_text_length", TEXT_LIMIT))


def _on_cpu(device: str | None) -> bool:
    """Whether torch would choose the CPU too. Elsewhere than on Linux, only torch can tell."""
    if device is not None:
        return device == "cpu"
    return sys.platform == "linux" and not any(Path(path).exists() for path in _ACCELERATORS)
