"""Public import path of LightningDOT's networks, which are defined in :mod:`ldot_milvus.models.lightningdot`.

Importing this module registers them with transformers' ``AutoConfig`` and ``AutoModel``.
"""

from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig, RerankerConfig
from ldot_milvus.models.lightningdot.cross_attention import CrossAttentionReranker
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.models.lightningdot.pretraining import LightningDOTForPreTraining

__all__ = [
    "CrossAttentionReranker",
    "LightningDOT",
    "LightningDOTConfig",
    "LightningDOTForPreTraining",
    "RerankerConfig",
]
