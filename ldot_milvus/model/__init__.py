"""LightningDOT itself, as transformers models: ``AutoConfig`` and ``AutoModel`` know them once this is imported."""

from transformers import AutoConfig, AutoModel

from .configuration import LightningDOTConfig, RerankerConfig
from .dual_encoder import LightningDOT
from .pretraining import LightningDOTForPreTraining
from .reranker import CrossAttentionReranker

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
