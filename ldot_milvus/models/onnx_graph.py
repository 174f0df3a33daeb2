"""Networks as ONNX graphs without weights, which ONNX Runtime runs on the CPU without torch.

A query from the shell needs a text encoder and a re-ranker, and importing torch and transformers takes longer than
everything else together. A graph of a model's folder describes the network (100 kB), and the weights stay in
``model.safetensors``::

    text.onnx          the network
    text.onnx.json     which tensors it reads, and of which configuration it was made

``lightningdot/onnx_export.py`` writes them.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ldot_milvus.errors import ModelError, first_line
from ldot_milvus.tensors import read_tensors

OUTPUT = "output"
"""Name of the output that every graph has."""

PREFIX = "model."
"""What precedes a tensor's name in a graph."""


class Graph:
    """A network that ONNX Runtime runs. Instances are thread-safe, and usable after a fork.

    Args:
        session: an ``onnxruntime.InferenceSession`` with the output :data:`OUTPUT`.

    Attributes:
        outputs: names of all outputs.
        halves: names of the inputs in half precision.
    """

    def __init__(self, session: Any) -> None:
        self._session = session
        self.outputs = frozenset(output.name for output in session.get_outputs())
        self.halves = frozenset(one.name for one in session.get_inputs() if one.type == "tensor(float16)")

    def __call__(self, name: str | None = None, /, **inputs: NDArray[Any]) -> NDArray[np.float32]:
        """Run the network on arrays by the names of its inputs, and return an output; None for :data:`OUTPUT`."""
        output: NDArray[np.float32] = self._session.run([name or OUTPUT], inputs)[0]
        return output


def load_graph(path: Path, weights: Path, config: Mapping[str, Any]) -> Graph | None:
    """Load a network from its graph and its weights.

    Args:
        path: the graph.
        weights: a safetensors file.
        config: the configuration of the network.

    Returns:
        The network; None if there is no graph, or one of another configuration, or the weights are not in float32,
        float16 or our int8 storage: torch then runs the network.

    Raises:
        ModelError: the weights do not fit the graph, or a file is damaged.
    """
    try:
        about = json.loads(about_file(path).read_text())
        graph = path.read_bytes()
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise ModelError(f"{path} cannot be read ({first_line(error)}): copy it again, or delete it") from error
    if about.get("config") != config_hash(config):
        return None
    try:
        tensors = read_tensors(weights, about["tensors"])
        return None if tensors is None else Graph(_session(graph, tensors))
    except Exception as error:  # safetensors and ONNX Runtime have many types
        raise ModelError(f"the weights in {weights.parent} cannot be loaded: {first_line(error)}") from error


def _session(graph: bytes, tensors: Mapping[str, NDArray[Any]]) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    # One thread computes a text in 4.5 ms, two threads in 3.5 ms on two free cores. A pool of threads would spin for
    # cores that other processes use, and does not survive a fork. Batches of texts run in several calls at once.
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3  # errors only
    values = [onnxruntime.OrtValue.ortvalue_from_numpy(tensor) for tensor in tensors.values()]
    options.add_external_initializers([PREFIX + name for name in tensors], values)
    return onnxruntime.InferenceSession(graph, options, providers=["CPUExecutionProvider"])


def about_file(graph: Path) -> Path:
    """Return the file that describes a graph."""
    return graph.with_name(graph.name + ".json")


def config_hash(config: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a configuration: a graph contains values of it, and is not used for another one."""
    return hashlib.sha256(json.dumps(config, sort_keys=True).encode()).hexdigest()
