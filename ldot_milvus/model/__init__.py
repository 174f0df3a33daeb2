"""LightningDOT itself, as transformers models: ``AutoConfig`` and ``AutoModel`` know them once this is imported."""

from transformers import AutoConfig, AutoModel

from ldot_milvus.model.configuration import LightningDOTConfig, RerankerConfig
from ldot_milvus.model.dual_encoder import LightningDOT
from ldot_milvus.model.pretraining import LightningDOTForPreTraining
from ldot_milvus.model.reranker import CrossAttentionReranker

AutoConfig.register(LightningDOTConfig.model_type, LightningDOTConfig)
AutoConfig.register(RerankerConfig.model_type, RerankerConfig)
AutoModel.register(LightningDOTConfig, LightningDOT)
AutoModel.register(RerankerConfig, CrossAttentionReranker)

__all__ = [
    "CrossAttentionReranker",
    "LightningDOT",
    "LightningDOTConfig",
    "LightningDOTForPreTraining",
    "RerankerConfig",
]
