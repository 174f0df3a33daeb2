"""Write a model's text side as ONNX graphs, so that queries need no torch (``models/onnx_graph.py`` runs them)."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from ldot_milvus.models.base import read_config
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.files import RERANKER, SCORE_GRAPH, TEXT_GRAPH, WEIGHTS
from ldot_milvus.models.loading import QuietTransformers
from ldot_milvus.models.onnx_graph import OUTPUT, PREFIX, about_file, config_hash
from ldot_milvus.weights import WEIGHTS_FILE

Axes = Mapping[str, Mapping[int, str]]

_TEXT_AXES: Axes = {"ids": {0: "texts", 1: "tokens"}, "mask": {0: "texts", 1: "tokens"}}
_PAIR_AXES: Axes = {
    **_TEXT_AXES,
    "text_of_pair": {0: "pairs"},
    "regions": {0: "pairs", 1: "regions"},
    "region_mask": {0: "pairs", 1: "regions"},
}


class _Texts(nn.Module):
    def __init__(self, model: LightningDOT) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, mask: Tensor) -> Tensor:
        return self.model.encode_text(ids, mask)


class _Pairs(nn.Module):
    def __init__(self, model: CrossAttentionReranker) -> None:
        super().__init__()
        self.model = model

    def forward(
        self, ids: Tensor, mask: Tensor, text_of_pair: Tensor, regions: Tensor, region_mask: Tensor
    ) -> tuple[Tensor, Tensor]:
        words, regions = self.model.encode_words(ids, mask)[text_of_pair], regions.float()
        scores = self.model.score(words, mask[text_of_pair], regions, region_mask)
        return scores, self.model.word_weights(words, regions)


def export_graphs(folder: Path) -> list[Path]:
    """Write the graphs of a model beside its weights: of the text encoder, and of a re-ranker with alignment scoring.

    A re-ranker with joint scoring has none: its sequences of words and regions are packed, which a graph cannot
    describe. Nor has one whose region data are the extractor's features, which torch embeds.

    Args:
        folder: of a complete LightningDOT model.

    Returns:
        The graphs that were written.
    """
    written = []
    # The branch for batches with padding is traced, so a text of each batch is shorter than another.
    ids, mask = torch.tensor([[101, 100, 100, 102], [101, 102, 0, 0]]), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    # "eager": for the fused kernel, the exporter adds nodes against texts without words to each layer.
    with QuietTransformers():
        encoder = LightningDOT.from_pretrained(folder, attn_implementation="eager").float().eval()
    written.append(_write(_Texts(encoder), (ids, mask), _TEXT_AXES, {OUTPUT: {0: "rows"}}, folder / TEXT_GRAPH))
    own = folder / RERANKER
    if own.is_dir():
        with QuietTransformers():
            reranker = CrossAttentionReranker.from_pretrained(own, attn_implementation="eager").float().eval()
        if reranker.alignment is not None and reranker.config.region_input == "embedded":
            regions = torch.randn(3, 5, reranker.config.bert_config.hidden_size).half()  # as region data are stored
            region_mask = torch.ones(3, 5, dtype=torch.bool)
            region_mask[0, 3:] = False
            inputs = (ids, mask, torch.tensor([0, 1, 1]), regions, region_mask)
            outputs = {OUTPUT: {0: "rows"}, WEIGHTS: {0: "rows", 1: "tokens", 2: "regions"}}
            written.append(_write(_Pairs(reranker), inputs, _PAIR_AXES, outputs, own / SCORE_GRAPH))
    return written


@torch.no_grad()
def _write(network: nn.Module, inputs: tuple[Tensor, ...], axes: Axes, outputs: Axes, path: Path) -> Path:
    import onnx

    with warnings.catch_warnings():  # of the tracer, about branches that are the same for every input
        warnings.simplefilter("ignore")
        torch.onnx.export(
            network,
            inputs,
            path,
            input_names=list(axes),
            output_names=list(outputs),
            dynamic_axes={**axes, **outputs},
            opset_version=17,
            do_constant_folding=False,  # folded weights would be copies, under other names
            dynamo=False,  # the newer exporter gives weights other names
        )
    graph = onnx.load(path)
    _keep_first_dimensions(graph.graph)
    _remove_unused(graph.graph)
    tensors = [tensor for tensor in graph.graph.initializer if tensor.name.startswith(PREFIX)]
    for tensor in tensors:
        tensor.ClearField("raw_data")
        tensor.data_location = onnx.TensorProto.EXTERNAL
        entry = tensor.external_data.add()
        entry.key, entry.value = "location", WEIGHTS_FILE
    path.write_bytes(graph.SerializeToString())
    names = sorted(tensor.name.removeprefix(PREFIX) for tensor in tensors)
    about = {"config": config_hash(read_config(str(path.parent), path.parent)), "tensors": names}
    about_file(path).write_text(json.dumps(about, indent=1) + "\n")
    return path


def _keep_first_dimensions(graph: Any) -> None:
    """Let the reshapes that split and join attention heads copy the first two dimensions, (texts, tokens), in place.

    The tracer computes the new shape by seven nodes instead. Without these and those of the fused attention, ldot-mini
    encodes a text in 6 % less time.
    """
    from onnx import helper, numpy_helper

    made_by = {name: node for node in graph.node for name in node.output}
    constants = {
        name: numpy_helper.to_array(node.attribute[0].t) for name, node in made_by.items() if node.op_type == "Constant"
    }
    shapes = []
    for reshape in (node for node in graph.node if node.op_type == "Reshape"):
        data, shape = map(made_by.get, reshape.input)
        # Projections are split, and transposed heads are joined.
        if data is None or data.op_type not in ("Add", "Transpose") or shape is None or shape.op_type != "Concat":
            continue
        parts = [made_by[name] for name in shape.input]
        sizes = [part.input[0] if part.op_type == "Unsqueeze" else part.output[0] for part in parts]
        if all(name in constants for name in sizes[2:]) and not any(name in constants for name in sizes[:2]):
            last = [int(constants[name]) for name in sizes[2:]]
            reshape.input[1] = f"{reshape.name}_shape"
            shapes.append(helper.make_node("Constant", [], [reshape.input[1]], value_ints=[0, 0, *last]))
    nodes = [*shapes, *graph.node]
    del graph.node[:]
    graph.node.extend(nodes)


def _remove_unused(graph: Any) -> None:
    """Remove the nodes that no output depends on, in place; ONNX Runtime would find them at every start."""
    used = {output.name for output in graph.output}
    nodes = []
    for node in reversed(graph.node):
        if used.intersection(node.output):
            used.update(node.input)
            nodes.append(node)
    del graph.node[:]
    graph.node.extend(reversed(nodes))
