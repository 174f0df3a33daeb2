"""The initial EDJE re-ranker of a run, and its teacher."""

from __future__ import annotations

from typing import Any

import torch
from transformers import AutoTokenizer, BertConfig, BertModel, PreTrainedTokenizerBase

from ldot_milvus.errors import UsageError
from ldot_milvus.models.base import Embedder, ModelFiles
from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.files import EdjeFiles
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.bundle import load_tokenizer
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.embedder import LightningDOTEmbedder
from ldot_milvus.models.lightningdot.files import LightningDOTRerankerFiles
from ldot_milvus.models.registry import find_reranker
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.edje_alignment import from_alignment
from ldot_milvus.training.matching import AlignmentTeacher, EdjeScorer, Teacher, check_vocabulary
from ldot_milvus.training.recipe import Start

SIZES = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "max_position_embeddings",
         "layer_norm_eps", "hidden_act", "hidden_dropout_prob", "attention_probs_dropout_prob")  # fmt: skip
HEAD_SIZE = 64
"""Width of an attention head of the adapter, as in the vision encoders of the paper."""


def new_edje(
    start: Start, first_stage: Embedder, photos: CaptionedPhotos
) -> tuple[EdjeReranker, PreTrainedTokenizerBase]:
    """Create a re-ranker whose joint encoder is initialised from a BERT, with that BERT's tokenizer.

    With scoring "aligned", it is initialised from the first stage's alignment re-ranker (:mod:`.edje_alignment`).

    Args:
        start: its ``reranker`` table has ``scoring``, fields of :class:`EdjeConfig`, in ``bert_config`` fields that
            replace the BERT's, and in ``text`` the name of the BERT; without it, the first stage's text encoder is
            taken, which is a LightningDOT model's.
        first_stage: the model whose tokens are read.
        photos: with the tokens; an uncompressed re-ranker needs positions for those of a photo.

    Raises:
        UsageError: there is no BERT, or settings are unknown or do not fit.
    """
    settings = dict(start.reranker)
    scoring, text = settings.pop("scoring"), settings.pop("text", None)
    changes = settings.pop("bert_config", {})
    unknown = settings.keys() - vars(EdjeConfig()).keys()
    if unknown:
        raise UsageError(f"start.reranker.{min(unknown)}: no such setting")
    if scoring == "aligned":
        return from_alignment(first_stage, {**settings, "bert_config": changes}, text, photos)
    config, weights, tokenizer = _bert(text, first_stage)
    token_dim, count = photos.width, len(photos.regions(0))
    defaults: dict[str, Any] = {"compressed_tokens": 64, "adapter_heads": max(1, token_dim // HEAD_SIZE)}
    options = {**defaults, "token_dim": token_dim, **settings}
    if scoring == "uncompressed":
        options["compressed_tokens"] = None
    body = {**{name: getattr(config, name) for name in SIZES}, "vocab_size": len(tokenizer) + 1, **changes}
    try:
        planned = EdjeConfig(bert_config=body, **options)
        body["max_position_embeddings"] += max(0, (planned.compressed_tokens or count) - planned.most_tokens)
        model = EdjeReranker(EdjeConfig(bert_config=body, **options))
        own = model.bert.state_dict()
        known = {name: tensor for name, tensor in weights.items() if name in own}
        for name, tensor in known.items():
            if own[name].shape[1:] != tensor.shape[1:]:
                raise ValueError(f"{name} has shape {tuple(tensor.shape)}, not {tuple(own[name].shape)}")
            rows = min(len(own[name]), len(tensor))  # <image> and further positions are new
            own[name][:rows] = tensor[:rows]
    except (TypeError, ValueError, RuntimeError) as error:
        raise UsageError(f"start.reranker: these settings do not fit ({str(error).splitlines()[0]})") from error
    return model, tokenizer


def load_teacher(name: str, model: ModelFiles, token_dim: int, tokenizer: PreTrainedTokenizerBase) -> Teacher:
    """Load a teacher: an EDJE re-ranker, or the alignment re-ranker of a LightningDOT model.

    Args:
        name: packaged name, folder or hub id.
        model: the first stage.
        token_dim: width of the tokens that the model in training reads.
        tokenizer: of the model in training.

    Raises:
        UsageError: the re-ranker is of another kind, or reads other tokens or another vocabulary.
    """
    files = find_reranker(name, model)
    teacher: Teacher
    if isinstance(files, EdjeFiles):
        teacher = EdjeScorer(EdjeReranker.from_pretrained(files.folder))
        width = files.config.get("region_dim") or files.config["token_dim"]
    elif isinstance(files, LightningDOTRerankerFiles) and files.config.get("scoring") == "alignment":
        teacher, width = (
            AlignmentTeacher(CrossAttentionReranker.from_pretrained(files.folder)),
            files.config["region_dim"],
        )
    else:
        raise UsageError(
            f"teacher {name!r} is neither an EDJE re-ranker nor one of scoring alignment: name one of them"
        )
    if width != token_dim:
        raise UsageError(
            f"teacher {name!r} reads tokens of width {width}, and the model gives {token_dim}: name another"
        )
    its = load_tokenizer(files.folder, files.folder.parent)
    if its is not None:
        check_vocabulary(name, its.get_vocab(), tokenizer.get_vocab())
    return teacher.eval()


def _bert(
    text: str | None, first_stage: Embedder
) -> tuple[BertConfig, dict[str, torch.Tensor], PreTrainedTokenizerBase]:
    """Return configuration, weights and tokenizer of the BERT that the joint encoder starts from."""
    if text is not None:
        try:
            bert = BertModel.from_pretrained(text, add_pooling_layer=False).float()
            return bert.config, bert.state_dict(), AutoTokenizer.from_pretrained(text)
        except (OSError, ValueError) as error:
            raise UsageError(f"start.reranker.text {text!r} is not a BERT: {str(error).splitlines()[0]}") from error
    if isinstance(first_stage, LightningDOTEmbedder):
        encoder = first_stage.bundle.encoder
        if type(encoder.config.text_config) is BertConfig:
            state = {name: tensor.float().cpu() for name, tensor in encoder.text_model.state_dict().items()}
            return encoder.config.text_config, state, first_stage.bundle.tokenizer
    raise UsageError(f"the text encoder of {first_stage.name!r} is not a BERT: name one by start.reranker.text")
