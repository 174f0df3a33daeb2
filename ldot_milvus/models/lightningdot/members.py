"""Members: dual encoders that were trained separately, whose vectors are searched as one."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import TYPE_CHECKING, cast

import torch
from torch import Tensor, nn
from transformers.models.bert.modeling_bert import BertLayer
from typing_extensions import override

from ldot_milvus.models.lightningdot.layers import BertBody, projection

if TYPE_CHECKING:
    from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig


class Member(nn.Module):
    """A further dual encoder: what it does not share with the model's first one.

    It reads the same words and regions. It shares the word embeddings and the first text layers, which are not trained:
    those that the first dual encoder shares with the sentence encoder of the label names, and possibly more of the
    latter's.

    Args:
        config: of the model.
    """

    def __init__(self, config: LightningDOTConfig) -> None:
        super().__init__()
        text, images = config.text_config, config.image_config
        count = text.num_hidden_layers - config.member_trunk
        self.text_layers = nn.ModuleList(BertLayer(text) for _ in range(count))
        self.text_projection: nn.Module = nn.Identity()
        if config.project_text:
            self.text_projection = projection(text.hidden_size, config.projection_dim)
        self.image_model = BertBody(images, region_dim=config.region_dim, pooler=config.pooler)
        self.image_projection = projection(images.hidden_size, config.projection_dim)


class Members(nn.ModuleList):
    """The further members of a model, and the directions in which the vectors of all are stored.

    The score of a text and a photo is the mean of the members' dot products (an ensemble: Hansen and Salamon, TPAMI
    1990): the dot product of the vectors one after the other. They are stored by their first principal directions:
    with two members of ldot-mini, 192 of 768 lose no recall.

    Attributes:
        directions: (learned_dim, members * projection_dim), of length 1.
    """

    directions: Tensor

    def __init__(self, config: LightningDOTConfig) -> None:
        super().__init__(Member(config) for _ in range(config.members - 1))
        self.register_buffer("directions", torch.zeros(config.learned_dim, config.members * config.projection_dim))

    @override
    def __iter__(self) -> Iterator[Member]:
        return cast("Iterator[Member]", super().__iter__())

    def joined(self, vectors: list[Tensor]) -> Tensor:
        """Join the vectors (B, projection_dim) of all members as (B, learned_dim)."""
        return torch.cat(vectors, dim=1) @ self.directions.to(vectors[0].dtype).T / math.sqrt(len(vectors))

    @torch.no_grad()
    def place(self, vectors: Tensor) -> None:
        """Set the directions to the principal ones of ``vectors`` (n, members * projection_dim), of texts and photos.

        They are not centred: dot products are to stay as they are, not distances from a mean.
        """
        values = vectors.double()
        self.directions.copy_(torch.linalg.eigh(values.T @ values).eigenvectors.flip(1).T[: len(self.directions)])
