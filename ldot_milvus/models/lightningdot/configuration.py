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
    """Configuration of a :class:`~ldot_milvus.models.lightningdot.dual_encoder.LightningDOT`.

    Args:
        text_config: the text encoder: BERT, or another transformers encoder with ``last_hidden_state``, selected by
            ``model_type`` (XLM-RoBERTa, DistilBERT, ...; multilingual BERT is a BERT).
        image_config: the image encoder, a BERT. Its only word embedding in use is that of [CLS], so a model that does
            not decode words with it may reduce its vocabulary to 102 entries.
        region_dim: width of a region's feature vector.
        region_classes: number of labels of the region classifier in pre-training (1,600 objects and the background).
        projection_dim: width of the projected vectors.
        pooling: "cls" (published) or "mean", the mean of the last hidden states without padding.
        project_text: False uses the pooled text state without projection, to preserve a sentence encoder's own space.
        normalize: scale vectors to length 1 inside the model; the published models do not.
        calibration_anchors: with n > 0, each encoder stores n vectors of the other modality and appends two
            coordinates to every vector that correct the dot product for hubness (``layers.HubnessCalibration``).
        calibration_weight, calibration_temperature: strength and softmax temperature of this correction.
        label_count: with n > 0, the names of a classifier's n labels are a second path from pixels to language: each
            vector gets a block of its own (``label_names.LabelNames``).
        label_dim: width of this block, at most that of the text encoder.
        label_weight: weight of this block's dot product in the score.
        label_shared_layers: number of first layers that the text encoder shares with the sentence encoder of the label
            names; training leaves them, and the word embeddings, as they are.
        canonical_dim: with n > 0, each vector has a block of the first n canonical directions of sentences and photos
            (``canonical.CanonicalCorrelations``); only with label names, whose sentence encoder it reads.
        canonical_words: number of frequent words whose counts in a text they read beside its vector.
        canonical_weight: weight of this block's dot product in the score.
        first_region_dim: number of a region's first features that the image encoder reads; None: all.
        principal_dim: with n > 0, projected vectors are stored by their first n principal directions
            (``layers.PrincipalDirections``).
        label_features: a region's features are followed by those of the classifier and by the vectors of the label
            names in it (:class:`~ldot_milvus.regions.labels.LabelledExtractor`); ``region_dim`` includes them.
        label_classifier: options of the classifier (:class:`~ldot_milvus.regions.labels.LabelClassifier`), whose
            weights and label names are in the model's folder ``labels``.
        pooler: include BERT's pooler layers, which the published checkpoints contain for their matching head.
        max_text_length: maximum number of tokens of a text, [CLS] and [SEP] included (published: 60).
        fusion: how pre-training combines the [CLS] state of the other modality with a state: "add" (published),
            "multiply" or "none" (:class:`LightningDOTForPreTraining`).
        region_extractor: "kind" and options of the extractor that turns pixels into regions, for example
            ``{"kind": "grid", ...}``; None for a model that reads precomputed regions only.

    Raises:
        ValueError: an option is unknown, ``project_text`` is False and the widths differ, or label names are combined
            with a text encoder that is no BERT, is too narrow or has too few layers.
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
        label_count: int = 0,
        label_dim: int = 126,
        label_weight: float = 0.3,
        label_shared_layers: int = 0,
        canonical_dim: int = 0,
        canonical_words: int = 0,
        canonical_weight: float = 0.8,
        first_region_dim: int | None = None,
        principal_dim: int = 0,
        label_features: bool = False,
        label_classifier: dict[str, Any] | None = None,
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
        if label_count and type(self.text_config) is not BertConfig:
            raise ValueError(f"label names need a text encoder of type bert, not {self.text_config.model_type}")
        if label_count and not 0 <= label_shared_layers <= self.text_config.num_hidden_layers:
            raise ValueError(
                f"label_shared_layers is {label_shared_layers}, and the text encoder has "
                f"{self.text_config.num_hidden_layers} layers"
            )
        if label_count and not 0 < label_dim <= self.text_config.hidden_size:
            raise ValueError(
                f"label_dim is {label_dim}, and the text encoder is {self.text_config.hidden_size} wide: it can be at "
                "most that"
            )
        if canonical_dim and not label_count:
            raise ValueError("canonical_dim needs the sentence encoder of label names, and there are none")
        if not 0 <= principal_dim <= projection_dim:
            raise ValueError(f"principal_dim is {principal_dim}, and vectors have {projection_dim} directions")
        self.region_dim = region_dim
        self.region_classes = region_classes
        self.projection_dim = projection_dim
        self.pooling = pooling
        self.project_text = project_text
        self.normalize = normalize
        self.calibration_anchors = calibration_anchors
        self.calibration_weight = calibration_weight
        self.calibration_temperature = calibration_temperature
        self.label_count = label_count
        self.label_dim = label_dim
        self.label_weight = label_weight
        self.label_shared_layers = label_shared_layers
        self.canonical_dim = canonical_dim
        self.canonical_words = canonical_words
        self.canonical_weight = canonical_weight
        self.first_region_dim = first_region_dim
        self.principal_dim = principal_dim
        self.label_features = label_features
        self.label_classifier = label_classifier
        self.pooler = pooler
        self.max_text_length = max_text_length
        self.fusion = fusion
        self.region_extractor = region_extractor
        most = min(self.canonical_region_dim, 2 * self.text_config.hidden_size)
        if canonical_dim > most:
            raise ValueError(f"canonical_dim is {canonical_dim}, and this model has {most} directions at most")
        super().__init__(**kwargs)

    @property
    def read_region_dim(self) -> int:
        """Number of a region's first features that the image encoder reads."""
        return self.first_region_dim or self.region_dim

    @property
    def learned_dim(self) -> int:
        """Width of what the networks learned."""
        return self.principal_dim or self.projection_dim

    @property
    def canonical_region_dim(self) -> int:
        """Number of a region's first features that canonical correlations read: all but the vectors of label names."""
        return self.region_dim - (2 * self.label_dim if self.label_features else 0)

    @property
    def compared_dim(self) -> int:
        """Width of what a text and a photo are compared by: the learned part, and the blocks beside it."""
        return self.learned_dim + (self.label_dim if self.label_count else 0) + self.canonical_dim

    @property
    def embedding_dim(self) -> int:
        """Width of the encoders' output, with calibration coordinates."""
        return self.compared_dim + (2 if self.calibration_anchors else 0)


class RerankerConfig(PretrainedConfig):
    """Configuration of a :class:`~ldot_milvus.models.lightningdot.cross_attention.CrossAttentionReranker`.

    Args:
        bert_config: the transformer, a BERT.
        region_dim: width of a region's feature vector.
        first_region_dim: number of its first features that are read; None: all.
        scoring: "joint" (published: UNITER's image-text matching) runs the transformer over words and regions
            together and scores the pooled first position. "alignment" runs it over the words alone and compares each
            word with the regions (``alignment.WordRegionAlignment``), which learns from far fewer pairs.
        region_alignment: an "alignment" compares each region with the words too, not only each word with the regions.
        region_input: what ingestion stores for re-ranking. "features" is the region extractor's output (published).
            "embedded" is the output of ``CrossAttentionReranker.embed_regions``: the scores are the same, with less to
            store and less to compute in a query.
        dot_weight: weight of the dual encoder's dot product that retrieval adds to this model's score
            (0 in the published system).
        max_text_length: maximum number of tokens of a text, [CLS] and [SEP] included.

    Raises:
        ValueError: an option is unknown.
    """

    model_type = "lightningdot-reranker"
    sub_configs: ClassVar = {"bert_config": BertConfig}

    def __init__(
        self,
        bert_config: BertConfig | dict[str, Any] | None = None,
        region_dim: int = 2048,
        first_region_dim: int | None = None,
        scoring: str = "joint",
        region_alignment: bool = False,
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
        self.first_region_dim = first_region_dim
        self.scoring = scoring
        self.region_alignment = region_alignment
        self.region_input = region_input
        self.dot_weight = dot_weight
        self.max_text_length = max_text_length
        super().__init__(**kwargs)

    @property
    def read_region_dim(self) -> int:
        """Number of a region's first features that are read."""
        return self.first_region_dim or self.region_dim


AutoConfig.register(LightningDOTConfig.model_type, LightningDOTConfig)
AutoConfig.register(RerankerConfig.model_type, RerankerConfig)
