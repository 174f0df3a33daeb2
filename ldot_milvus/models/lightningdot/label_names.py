"""Label names: a second path from pixels to language, through the words for what a classifier sees."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from transformers import PretrainedConfig
from transformers.models.bert.modeling_bert import BertLayer

from ldot_milvus.models.lightningdot.layers import BertBody, pool


class LabelNames(nn.Module):
    """Compares a text with the names of the labels that a classifier gives to a photo (ConSE: Norouzi et al., 2014).

    A sentence encoder m, which is not trained further, places the names in its own space. A photo is the mean of its
    labels' vectors, weighted by their probabilities; a text is its own vector; both are centred. So a photo is found by
    what the classifier knows, even where the image encoder's training data show nothing like it.

    The sentence encoder shares the word embeddings and the first layers with the model's text encoder, which leaves
    them untrained; only the other layers are stored here. A block has the ``dim`` directions in which the names differ
    most (their principal components): photos lie between the names, so the other directions say little.

    Args:
        config: of the text encoder.
        count: number of labels.
        dim: width of a block.
        shared: number of shared layers.
        weight: weight of this comparison in the score of a text with a photo.
    """

    vectors: Tensor
    mean: Tensor
    directions: Tensor

    def __init__(self, config: PretrainedConfig, count: int, dim: int, shared: int, weight: float) -> None:
        super().__init__()
        self.register_buffer("vectors", torch.zeros(count, dim))
        self.register_buffer("mean", torch.zeros(config.hidden_size))
        self.register_buffer("directions", torch.zeros(dim, config.hidden_size))
        self.layers = nn.ModuleList(BertLayer(config) for _ in range(shared, config.num_hidden_layers))
        self.weight = weight

    def train(self, mode: bool = True) -> LabelNames:
        """Keep dropout off: the sentence encoder is not trained."""
        return super().train(False)

    @torch.no_grad()
    def sentences(self, body: BertBody, states: Tensor, mask: Tensor) -> Tensor:
        """Encode sentences with m as vectors (B, H) of length 1.

        Args:
            body: the text encoder.
            states: (B, T, H), after the shared layers.
            mask: (B, T), 1 = token, 0 = padding.
        """
        states = body.encode(states, mask.bool(), self.layers)
        return nn.functional.normalize(pool(states, mask, "mean").float(), dim=-1)

    def text_block(self, sentences: Tensor) -> Tensor:
        """Return the block (B, dim) of texts, given their vectors by :meth:`sentences`."""
        return (sentences - self.mean.float()) @ self.directions.float().T

    def image_block(self, probabilities: Tensor) -> Tensor:
        """Return the block (B, dim) of photos, given their label probabilities (B, places, count), the whole first."""
        return self.weight * (probabilities[:, 0].float() @ self.vectors.float())

    @torch.no_grad()
    def place(self, labels: Tensor, texts: Tensor, directions: Tensor | None = None) -> None:
        """Set the labels' vectors, their directions, and the mean of texts.

        Args:
            labels: (count, H), the names' vectors by :meth:`sentences`.
            texts: (N, H), vectors of texts like those that will be searched.
            directions: (dim, H), of length 1, to be kept; None: those in which the names differ most.
        """
        centred = labels - labels.mean(0)
        if directions is None:
            directions = torch.linalg.svd(centred, full_matrices=True).Vh[: len(self.directions)]
        self.directions.copy_(directions)
        self.vectors.copy_(centred @ directions.T)
        self.mean.copy_(texts.mean(0))
