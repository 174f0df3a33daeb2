"""LightningDOT's networks by the names that are promised; they live in :mod:`ldot_milvus.models.lightningdot`.

``AutoConfig`` and ``AutoModel`` of transformers know them once this is imported.
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
