"""Configurations of the dual encoder and of the re-ranker.

The defaults are the published sizes (LightningDOT, NAACL 2021: BERT-base towers over 2048-d regions).
"""

from __future__ import annotations

from typing import Any, ClassVar

from transformers import AutoConfig, BertConfig, PretrainedConfig

CLS_TOKEN_ID = 101
"""[CLS] in every BERT WordPiece vocabulary; the image encoder's first position is this token too."""

POOLINGS = ("cls", "mean")
FUSIONS = ("none", "add", "multiply")


def _bert_config(value: BertConfig | dict[str, Any] | None) -> BertConfig:
    if isinstance(value, BertConfig):
        return value
    return BertConfig(**{"vocab_size": 28996, "layer_norm_eps": 1e-12, **(value or {})})


def _text_config(value: PretrainedConfig | dict[str, Any] | None) -> PretrainedConfig:
    if isinstance(value, PretrainedConfig):
        return value
    if value is None or value.get("model_type", "bert") == "bert":
        return _bert_config(value)
    return AutoConfig.for_model(**value)


class LightningDOTConfig(PretrainedConfig):
    """Sizes and choices of a :class:`~ldot_milvus.models.lightningdot.dual_encoder.LightningDOT`.

    Args:
        text_config: the text body: BERT, or what its ``model_type`` says of transformers' encoders that give
            ``last_hidden_state`` (XLM-RoBERTa, DistilBERT, ...; multilingual BERT is a BERT).
        image_config: the image body, a BERT. It only ever looks up the [CLS] token, so a model that shares nothing
            with it may keep a vocabulary of 102.
        region_dim: width of a region's feature vector.
        region_classes: labels of the region classifier in pre-training (1,600 objects and the background).
        projection_dim: width of the vectors that are compared by dot product.
        pooling: "cls" (published) or "mean", which averages the last hidden states of the real positions.
        project_text: False compares the pooled text state itself, to keep a sentence encoder's own space.
        normalize: scale vectors to length 1 inside the model; the published models do not.
        calibration_anchors: with n > 0, n vectors of the other side are kept with each encoder and every vector gets
            two coordinates that take its hubness out of the dot product (``layers.HubnessCalibration``).
        calibration_weight, calibration_temperature: how much, and how sharply.
        pooler: keep BERT's pooler layers, which the published checkpoints carry for their matching head.
        max_text_length: tokens a text is cut to, [CLS] and [SEP] included (published: 60).
        fusion: how the other side's [CLS] state joins in pre-training (:class:`LightningDOTForPreTraining`).
        region_extractor: how pixels become regions for this model, e.g. ``{"kind": "grid", ...}``.
    """

    model_type = "lightningdot"
    sub_configs: ClassVar = {"text_config": AutoConfig, "image_config": BertConfig}

    def __init__(
        self,
        text_config: PretrainedConfig | dict[str, Any] | None = None,
        image_config: BertConfig | dict[str, Any] | None = None,
        region_dim: int = 2048,
        region_classes: int = 1601,
        projection_dim: int = 768,
        pooling: str = "cls",
        project_text: bool = True,
        normalize: bool = False,
        calibration_anchors: int = 0,
        calibration_weight: float = 0.6,
        calibration_temperature: float = 0.08,
        pooler: bool = True,
        max_text_length: int = 60,
        fusion: str = "add",
        region_extractor: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        if pooling not in POOLINGS:
            raise ValueError(f"pooling is {pooling!r}; it must be one of {', '.join(POOLINGS)}")
        if fusion not in FUSIONS:
            raise ValueError(f"fusion is {fusion!r}; it must be one of {', '.join(FUSIONS)}")
        self.text_config = _text_config(text_config)
        self.image_config = _bert_config(image_config)
        if not project_text and self.text_config.hidden_size != projection_dim:
            raise ValueError(
                f"project_text=False needs projection_dim ({projection_dim}) to equal the text encoder's "
                f"hidden_size ({self.text_config.hidden_size})"
            )
        self.region_dim = region_dim
        self.region_classes = region_classes
        self.projection_dim = projection_dim
        self.pooling = pooling
        self.project_text = project_text
        self.normalize = normalize
        self.calibration_anchors = calibration_anchors
        self.calibration_weight = calibration_weight
        self.calibration_temperature = calibration_temperature
        self.pooler = pooler
        self.max_text_length = max_text_length
        self.fusion = fusion
        self.region_extractor = region_extractor
        super().__init__(**kwargs)

    @property
    def embedding_dim(self) -> int:
        """Width of the vectors that the encoders give."""
        return self.projection_dim + (2 if self.calibration_anchors else 0)


class RerankerConfig(PretrainedConfig):
    """Sizes and choices of a :class:`~ldot_milvus.models.lightningdot.cross_attention.CrossAttentionReranker`.

    Args:
        bert_config: the one body that reads text and regions together.
        region_dim: width of the region vectors that it reads.
        scoring: "joint" (published: UNITER's image-text matching) runs the layers over words and regions together
            and scores the pooled first position; "alignment" runs them over the words alone and lets each word look
            for itself among the regions (``alignment.WordRegionAlignment``), which learns from far fewer pairs.
        region_input: what is stored of an image for re-ranking. "features" is what the region extractor gives
            (published); "embedded" is what ``CrossAttentionReranker.embed_regions`` makes of it, computed
            once at ingestion: the same scores from less to store and less to do in a query.
        dot_weight: weight of the dual encoder's dot product that retrieval adds to this model's score
            (0 in the published system).
        max_text_length: tokens a text is cut to, [CLS] and [SEP] included.
    """

    model_type = "lightningdot-reranker"
    sub_configs: ClassVar = {"bert_config": BertConfig}

    def __init__(
        self,
        bert_config: BertConfig | dict[str, Any] | None = None,
        region_dim: int = 2048,
        scoring: str = "joint",
        region_input: str = "features",
        dot_weight: float = 0.0,
        max_text_length: int = 60,
        **kwargs: Any,
    ) -> None:
        if scoring not in ("joint", "alignment"):
            raise ValueError(f"scoring is {scoring!r}; it must be 'joint' or 'alignment'")
        if region_input not in ("features", "embedded"):
            raise ValueError(f"region_input is {region_input!r}; it must be 'features' or 'embedded'")
        self.bert_config = _bert_config(bert_config)
        self.region_dim = region_dim
        self.scoring = scoring
        self.region_input = region_input
        self.dot_weight = dot_weight
        self.max_text_length = max_text_length
        super().__init__(**kwargs)


AutoConfig.register(LightningDOTConfig.model_type, LightningDOTConfig)
AutoConfig.register(RerankerConfig.model_type, RerankerConfig)
