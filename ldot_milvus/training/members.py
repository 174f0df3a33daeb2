"""Join dual encoders that were trained separately (:class:`~ldot_milvus.models.lightningdot.members.Members`)."""

from __future__ import annotations

import copy
from dataclasses import replace

import torch
from torch import Tensor

from ldot_milvus.errors import UsageError
from ldot_milvus.models.lightningdot.bundle import Bundle
from ldot_milvus.models.lightningdot.configuration import LightningDOTConfig
from ldot_milvus.models.lightningdot.dual_encoder import LightningDOT
from ldot_milvus.training.batches import region_tensors
from ldot_milvus.training.data import CaptionedPhotos, evenly
from ldot_milvus.training.dual import caption_batches, for_training

SAMPLE = 500
"""Photos, with all their captions, by whose vectors the directions are chosen."""

OWN = ("image_model.", "image_projection.", "text_projection.")
LAYER = "text_model.encoder.layer."


def with_member(bundle: Bundle, member: LightningDOT, photos: CaptionedPhotos) -> LightningDOT:
    """Return the encoder of ``bundle`` with another one, of a single member, as its last member.

    Args:
        bundle: of the encoder, on the CPU.
        member: the encoder to add.
        photos: by whose vectors the directions of the joined vectors are chosen.

    Raises:
        UsageError: the encoders do not share the word embeddings and first text layers.
    """
    first = for_training(bundle.encoder)
    config: LightningDOTConfig = copy.deepcopy(first.config)  # type: ignore[assignment]
    config.members += 1
    try:
        joined = LightningDOT(LightningDOTConfig(**config.to_dict()))
    except ValueError as error:
        raise UsageError(f"fresh: this model can have no further member: {error}") from error
    assert joined.members is not None
    added = _member_state(first, member, f"members.{config.members - 2}.")
    joined.load_state_dict(first.state_dict() | added | {"members.directions": joined.members.directions})
    joined.eval().members.place(_vectors(replace(bundle, encoder=joined), photos))
    return joined


def _member_state(first: LightningDOT, member: LightningDOT, prefix: str) -> dict[str, Tensor]:
    """Return the weights of an encoder under a member's names."""
    shared, trunk = first.config.label_shared_layers, first.config.member_trunk
    ours, state = first.state_dict(), {}
    for name, tensor in member.state_dict().items():
        if name.startswith(OWN):
            state[prefix + name] = tensor
        elif name.startswith(LAYER):
            layer, rest = name.removeprefix(LAYER).split(".", 1)
            number = int(layer)
            if number >= trunk:
                state[f"{prefix}text_layers.{number - trunk}.{rest}"] = tensor
                continue
            frozen = ours[name if number < shared else f"label_names.layers.{number - shared}.{rest}"]
            if not torch.equal(tensor, frozen):
                raise UsageError(
                    f"fresh: layer {number + 1} of the text encoder was trained, and members share the first "
                    f"{trunk}: set frozen_text_layers to that in every stage"
                )
        elif name.startswith("text_model.embeddings.") and not torch.equal(tensor, ours[name]):
            raise UsageError("fresh: the word embeddings were trained, and members share them: set frozen_text_layers")
    return state


@torch.inference_mode()
def _vectors(bundle: Bundle, photos: CaptionedPhotos) -> Tensor:
    """Return the members' vectors of some photos and their captions, one after the other, (n, members * dim)."""
    encoder, rows = bundle.encoder, evenly(len(photos), SAMPLE)
    found: list[Tensor] = []
    for some, tokens in caption_batches(bundle, photos, rows):
        regions = region_tensors([photos.regions(row) for row in some])
        found += encoder.member_vectors(*tokens, *regions)
    return torch.cat(found)
