"""Fit canonical correlations (:class:`~ldot_milvus.models.lightningdot.canonical.CanonicalCorrelations`)."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass, field

import torch
from torch import Tensor

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.canonical import photo_features, word_counts
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.training.batches import region_tensors
from ldot_milvus.training.data import CaptionedPhotos
from ldot_milvus.training.dual import caption_batches, rebuilt

TEXT_RIDGE, IMAGE_RIDGE = 0.3, 2.0
"""Ridge of each side, in units of a standardised channel's variance (canonical ridge: Vinod, 1976).

The mean recall on dev changes by less than 0.4 between 0.1 and 0.6, and between 1 and 3."""

LEAST_DEVIATION, LEAST_WORD_DEVIATION = 0.01, 1.0
"""Added to the standard deviation of each channel, and of each word's count, in units of their mean.

What hardly varies is not amplified. For counts, 0.01 costs 0.8 points of mean recall on dev: rare words are noise."""

LEAST_CAPTIONS = 10
"""Number of captions that have a word which is counted: 1,826 words of Flickr8k's 30,000 captions."""


def with_canonical(bundle: Bundle, photos: CaptionedPhotos, dim: int) -> LightningDOT:
    """Return the encoder of ``bundle`` with a block of canonical correlations, in place of those that it may have.

    Args:
        bundle: of the encoder, which has label names.
        photos: with captions; every view of a photo is paired with each of its captions.
        dim: number of directions.

    Raises:
        UsageError: the model has no label names, or fewer than ``dim`` directions.
    """
    encoder = bundle.encoder
    words = _frequent_words(bundle, photos)
    try:
        result = rebuilt(encoder, canonical_dim=dim, canonical_words=len(words))
    except ValueError as error:
        raise UsageError(f"finish.canonical_dim: {error}") from error
    assert result.canonical is not None
    moments = _moments(bundle, photos, words, result.config.canonical_region_dim)
    for name, value in moments.directions(dim, words).items():
        getattr(result.canonical, name).copy_(value)
    return result


def carried(encoder: LightningDOT, source: LightningDOT) -> LightningDOT:
    """Return ``encoder`` with the canonical correlations of ``source``: both have the same frozen parts."""
    assert source.canonical is not None
    config = source.config
    result = rebuilt(encoder, canonical_dim=config.canonical_dim, canonical_words=config.canonical_words)
    assert result.canonical is not None
    result.canonical.load_state_dict(source.canonical.state_dict())
    return result


@dataclass
class _Moments:
    """Sums over pairs of a text y, its counts of words last, and a photo x, in float64."""

    pairs: int = 0
    sums: dict[str, Tensor] = field(default_factory=dict)

    def add(self, texts: Tensor, images: Tensor, owner: Tensor) -> None:
        """Add the pairs of a batch.

        Args:
            texts: (C, text_dim + words).
            images: (B, region_dim).
            owner: (C,), index of each text's photo.
        """
        texts, images = texts.double(), images.double()
        count = torch.bincount(owner, minlength=len(images)).double().unsqueeze(1)
        per_photo = torch.zeros(len(images), texts.shape[1], dtype=torch.float64).index_add_(0, owner, texts)
        added = {
            "text": texts.sum(0), "image": (count * images).sum(0),
            "text_text": texts.T @ texts, "image_image": images.T @ (count * images),
            "image_text": images.T @ per_photo,
        }  # fmt: skip
        self.pairs += len(texts)
        self.sums = {name: self.sums.get(name, 0) + value for name, value in added.items()}

    def directions(self, dim: int, words: Tensor) -> dict[str, Tensor]:
        """Return the values of :class:`CanonicalCorrelations`' buffers, by name, given the ids of the words."""
        mean = {side: self.sums[side] / self.pairs for side in ("text", "image")}
        covariance: dict[str, Tensor] = {}
        found: dict[str, Tensor] = {}
        for side in ("text", "image"):
            centred = self.sums[f"{side}_{side}"] / self.pairs - torch.outer(mean[side], mean[side])
            deviation = centred.diagonal().clamp_min(0).sqrt()
            counted = len(words) if side == "text" else 0
            channels, counts = deviation.split([len(deviation) - counted, counted])
            scale = torch.cat([_scale(channels, LEAST_DEVIATION), _scale(counts, LEAST_WORD_DEVIATION)])
            covariance[side] = centred * torch.outer(scale, scale)
            found |= {f"{side}_mean": mean[side], f"{side}_scale": scale}
        cross = self.sums["image_text"] / self.pairs - torch.outer(mean["image"], mean["text"])
        cross = cross * torch.outer(found["image_scale"], found["text_scale"])
        roots = {
            side: torch.linalg.cholesky(
                covariance[side] + ridge * torch.eye(len(covariance[side]), dtype=torch.float64)
            )
            for side, ridge in (("text", TEXT_RIDGE), ("image", IMAGE_RIDGE))
        }
        whitened = torch.linalg.solve_triangular(roots["image"], cross, upper=False)
        whitened = torch.linalg.solve_triangular(roots["text"], whitened.T, upper=False).T
        left, correlations, right = torch.linalg.svd(whitened, full_matrices=False)
        for side, vectors in (("image", left), ("text", right.T)):
            # Each side has half of a correlation, so the dot product weights a direction by all of it.
            scaled = vectors[:, :dim] * correlations[:dim].sqrt()
            found[f"{side}_directions"] = torch.linalg.solve_triangular(roots[side].T, scaled, upper=True).T
        return _with_words_apart(found, words) if len(words) else found


def _scale(deviation: Tensor, least: float) -> Tensor:
    return 1 / (deviation + least * deviation.mean())


def _with_words_apart(found: dict[str, Tensor], words: Tensor) -> dict[str, Tensor]:
    """Split the text's channels: a count is multiplied by one vector, which includes its scale."""
    width = len(found["text_mean"]) - len(words)
    directions = (found["text_scale"] * found["text_directions"])[:, width:].T
    offset = found["text_mean"][width:] @ directions
    own = {f"text_{name}": found[f"text_{name}"][..., :width] for name in ("mean", "scale", "directions")}
    return found | own | {"words": words, "word_directions": directions, "word_offset": offset}


def _frequent_words(bundle: Bundle, photos: CaptionedPhotos) -> Tensor:
    """Return the ids of the words that at least :data:`LEAST_CAPTIONS` captions have, but not all of them, int64."""
    captions = [caption for captions in photos.captions for caption in captions]
    texts = bundle.texts.ids(captions, bundle.encoder.config.max_text_length)
    have = Counter(word for text in texts for word in set(text))
    frequent = sorted(word for word, count in have.items() if LEAST_CAPTIONS <= count < len(texts))
    return torch.tensor(frequent, dtype=torch.int64)


@torch.inference_mode()
def _moments(bundle: Bundle, photos: CaptionedPhotos, words: Tensor, width: int) -> _Moments:
    """Add up all photos; of a region, the first ``width`` features are read."""
    moments = _Moments()
    for rows, tokens in caption_batches(bundle, photos, range(len(photos))):
        texts = torch.cat(
            [bundle.encoder.encode_words_and_sentences(*tokens), word_counts(*tokens, words.to(tokens[0].device))], 1
        ).cpu()
        owner = torch.repeat_interleave(torch.tensor([len(photos.captions[row]) for row in rows]))
        for view in range(len(photos.views)):
            features, _, mask = region_tensors([photos.regions(row, view) for row in rows])
            moments.add(texts, photo_features(features[..., :width], mask), owner)
    return moments
