"""``ldot convert`` for EDJE: a checkpoint of the authors to a re-ranker's folder."""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import AutoTokenizer, BertTokenizer, PreTrainedTokenizerBase

from ldot_milvus.errors import ModelError, UsageError
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.checkpoint_layouts import Translation
from ldot_milvus.models.lightningdot.convert import Conversion, check_paths, compare, sha256, write_folder
from ldot_milvus.models.registry import PACKAGED
from ldot_milvus.weights import state_of

WORDS = "language_model.bert.embeddings.word_embeddings.weight"
IMAGE_TOKEN = "<image>"
UNCASED = 30522
"""Size of bert-base-uncased's vocabulary, which MiniLM uses; ldot-mini's tokenizer has it too."""
HEADS = {"microsoft/MiniLM-L12-H384-uncased": (384, 12)}
"""Width and attention heads of the published joint encoder; heads cannot be read from a state dict."""

_RENAMED = [
    (r"^language_model\.bert\.", "bert."),
    (r"^vision_projection\.0\.", "adapter.mlp.fc1."),
    (r"^vision_projection\.2\.", "adapter.mlp.fc2."),
    (r"^vision_projection\.", "adapter."),
    (r"^classification_head\.0\.dense\.", "bert.pooler.dense."),
    (r"^classification_head\.1\.", "classifier."),
]
_DROPPED = [
    (r"^vision_encoder\.", "the frozen first stage, a model of its own"),
    (r"^clip\.", "the frozen first stage, a model of its own"),
    (r"^text_embeddings\.weight$", f"equals {WORDS}"),
    (r"^text_projection\.", "of pre-training only"),
    (r"^language_model\.cls\.", "of pre-training only"),
    (r"\.position_ids$", "a buffer of older code"),
]


def is_edje(content: Any) -> bool:
    """Return True if what a checkpoint contains is an EDJE re-ranker, by the names of its tensors."""
    state = content.get("model", content) if isinstance(content, dict) else {}
    return isinstance(state, dict) and any(str(name).startswith("vision_projection.") for name in state)


def convert_edje(
    source: Path, target: Path, content: Mapping[str, Any], *, config: Mapping[str, Any], vocabulary: Path | None = None
) -> Conversion:
    """Convert a checkpoint to the folder ``target``.

    Args:
        source: the authors' file, for messages and the card.
        target: a new or empty folder.
        content: what the file contains: ``model``, and the training's ``config``; or the tensors alone.
        config: values that cannot be read from a checkpoint: those of a BERT configuration for the joint encoder
            (``num_attention_heads``, ...), and ``vision_num_attention_heads`` and ``vision_layer_norm_eps`` of the
            first stage, which the adapter shares.
        vocabulary: file of the joint encoder's vocabulary; None takes ``vocab.txt`` beside ``source``, else
            bert-base-uncased's if the size is right.

    Raises:
        UsageError: ``target`` is not empty, or there is no vocabulary.
        ModelError: tensors are missing, unknown or of a wrong shape; or the vocabulary has another size.
    """
    check_paths(source, target)
    published = state_of(content.get("model", content), source)
    translation, reasons = translate(published)
    model = EdjeReranker(edje_config(translation.state, content.get("config") or {}, config))
    kind = "EDJE re-ranker" if model.config.compressed_tokens else "uncompressed EDJE re-ranker"
    report = compare(kind, translation, model)
    report.reasons = reasons
    report.check(source)
    model.load_state_dict(translation.state)
    tokenizer = _tokenizer(source, model.config.bert_config.vocab_size, vocabulary)
    stage = (content.get("config") or {}).get("siglip_path")
    report.notes.append(
        f"it reads the tokens of {stage or 'the first stage that it was trained on'}: set LDOT_MODEL to it"
    )

    def fill(folder: Path) -> None:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        (folder / "README.md").write_text(_card(report, source))

    write_folder(target, fill)
    return report


def translate(published: Mapping[str, Tensor]) -> tuple[Translation, dict[str, str]]:
    """Translate the published tensor names to :class:`EdjeReranker`'s, and say why others are dropped.

    Raises:
        ModelError: the copy of the word embeddings differs from them.
    """
    result, reasons = Translation(), dict[str, str]()
    for name, tensor in published.items():
        reason = next((why for pattern, why in _DROPPED if re.search(pattern, name)), None)
        if reason is not None:
            result.dropped.append(name)
            reasons[name] = reason
            continue
        ours = name
        for pattern, replacement in _RENAMED:
            ours = re.sub(pattern, replacement, ours)
        result.state[ours] = tensor
        if ours != name:
            result.renamed[name] = ours
    copy = published.get("text_embeddings.weight")
    if copy is not None and (WORDS not in published or not copy.equal(published[WORDS])):
        raise ModelError(f"text_embeddings.weight is not the same tensor as {WORDS}, unlike in the published models")
    return result, reasons


def edje_config(state: Mapping[str, Tensor], trained: Mapping[str, Any], known: Mapping[str, Any]) -> EdjeConfig:
    """Read the configuration from the tensors.

    Args:
        state: tensors by our names.
        trained: the ``config`` of the checkpoint.
        known: see :func:`convert_edje`.

    Raises:
        ModelError: a tensor that determines a size is missing, or numbers of heads are unknown.
    """
    compressed = "adapter.query" in state
    token_dim = _size(state, "adapter.key.weight" if compressed else "adapter.mlp.fc1.weight", 1)
    width = _size(state, "bert.embeddings.word_embeddings.weight", 1)
    heads = known.get("num_attention_heads")
    published_width, published_heads = HEADS.get(str(trained.get("language_model_path")), (0, 0))
    if heads is None and width == published_width:
        heads = published_heads
    vision_heads = known.get("vision_num_attention_heads")
    if vision_heads is None and token_dim % 64 == 0:
        vision_heads = token_dim // 64
    missing = {"num_attention_heads": heads, "vision_num_attention_heads": vision_heads if compressed else 1}
    unknown = [name for name, value in missing.items() if value is None]
    if unknown:
        raise ModelError(
            "the checkpoint does not say the number of attention heads: give a JSON file with "
            f"{json.dumps(unknown)[1:-1]} by --config"
        )
    vision_eps = 1e-5 if re.search(r"(?<!sig)(clip|vit)", str(trained.get("siglip_path")).lower()) else 1e-6
    options = ("hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob", "layer_norm_eps", "pad_token_id")
    layers = {int(match[1]) for name in state if (match := re.match(r"bert\.encoder\.layer\.(\d+)\.", name))}
    return EdjeConfig(
        bert_config={
            **{name: known[name] for name in options if name in known},
            "hidden_size": width,
            "num_attention_heads": heads,
            "num_hidden_layers": max(layers, default=-1) + 1,
            "intermediate_size": _size(state, "bert.encoder.layer.0.intermediate.dense.bias", 0),
            "vocab_size": _size(state, "bert.embeddings.word_embeddings.weight", 0),
            "max_position_embeddings": _size(state, "bert.embeddings.position_embeddings.weight", 0),
            "type_vocab_size": _size(state, "bert.embeddings.token_type_embeddings.weight", 0),
        },
        token_dim=token_dim,
        compressed_tokens=_size(state, "adapter.query", 1) if compressed else None,
        adapter_hidden=_size(state, "adapter.mlp.fc1.weight", 0),
        adapter_heads=vision_heads or 1,
        adapter_layer_norm_eps=known.get("vision_layer_norm_eps", vision_eps),
    )


def _size(state: Mapping[str, Tensor], name: str, axis: int) -> int:
    if name not in state:
        raise ModelError(f"the checkpoint has no tensor {name} (our name), which determines the model's size")
    return int(state[name].shape[axis])


def _tokenizer(source: Path, size: int, vocabulary: Path | None) -> PreTrainedTokenizerBase:
    """Load the tokenizer of a joint encoder with ``size`` embeddings, the last of which is ``<image>``'s.

    ``<image>`` is not an entry of our tokenizer: the network puts the image tokens in their place by position, and a
    user's text that contains the word stays a text.
    """
    beside = source.with_name("vocab.txt")
    file = vocabulary or (beside if beside.is_file() else None)
    if file is None and size == UNCASED + 1:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(PACKAGED / "ldot-mini")
        return tokenizer
    if file is None:
        raise UsageError(
            f"{source}: its joint encoder has {size - 1:,} words, which are not bert-base-uncased's: give their file "
            "by --vocab, or put it beside the checkpoint as vocab.txt"
        )
    try:
        words = file.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise UsageError(f"{file} cannot be read ({error}): give a vocabulary, one word on each line") from error
    words = words[:-1] if words and words[-1] == IMAGE_TOKEN else words
    if len(words) != size - 1:
        raise ModelError(
            f"{file} has {len(words):,} words, and {source} has embeddings of {size - 1:,} and {IMAGE_TOKEN}"
        )
    return BertTokenizer(vocab={word: place for place, word in enumerate(words)}, do_lower_case=True)


def _card(report: Conversion, source: Path) -> str:
    notes = "".join(f"- {note[0].upper()}{note[1:]}.\n" for note in report.notes)
    return f"""---
library_name: ldot-milvus
---

# {report.kind}, converted

Converted by ldot-milvus (`ldot convert`) from `{source.name}`, whose SHA-256 is
`{sha256(source)}`. The {report.parameters:,} parameters are unchanged; the tensors have other names.

- Renamed: {len(report.renamed)} tensors. Dropped: {len(report.dropped)}, the frozen first stage and what only
  pre-training uses.
- Authors of the model: EDJE, ICLR 2026 (arXiv 2510.06820). Their licence and the limits of their training data apply to
  these weights too.
{notes}"""
