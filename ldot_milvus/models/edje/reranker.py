"""Re-rank with EDJE. The region data of an image are its ``tokens``, the adapter's output: float16 (N, H)."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import torch

from ldot_milvus.errors import InputError, ModelError
from ldot_milvus.forks import computation
from ldot_milvus.models.base import Array, Embedder, ImageFeatures, KeptImage, Text
from ldot_milvus.models.edje.files import EdjeFiles, wrong_width
from ldot_milvus.models.edje.inputs import pad_tokens
from ldot_milvus.models.edje.joint_encoder import EdjeReranker
from ldot_milvus.models.lightningdot.bundle import load_tokenizer
from ldot_milvus.models.loading import QuietTransformers, choose_device, choose_dtype, device_of
from ldot_milvus.models.network_reranker import NetworkReranker
from ldot_milvus.models.patches import tokens_of
from ldot_milvus.models.texts import TextTokens, by_length
from ldot_milvus.regions.base import Regions

PAIR_BATCH = 100
IMAGE_BATCH = 32
TOKENS = "tokens"


class EdjeTokenReranker(NetworkReranker):
    """Scores pairs of a text and an image's stored tokens. Instances are thread-safe.

    Args:
        files: the files from which the network was loaded.
        model: the network, on ``device`` and in ``dtype``.
        texts: the tokenizer of the network.
        first_stage: name of the model whose tokens are kept, for messages.
        device, dtype: where the network runs and in which precision.
    """

    model: EdjeReranker

    def __init__(
        self,
        files: EdjeFiles,
        model: EdjeReranker,
        texts: TextTokens,
        first_stage: str,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(files, model, texts, device, dtype)
        self._first_stage = first_stage

    @computation
    @torch.inference_mode()
    def keep(self, features: Sequence[ImageFeatures]) -> list[KeptImage]:
        """Run the adapter over the first stage's tokens, and store its output in half precision.

        Raises:
            ModelError: the tokens have another width than the adapter reads, or no boxes where it reads regions.
            InputError: the features have no tokens, or more than the joint encoder has positions for; or a value is
                not finite or exceeds the range of half precision.
        """
        config, kept = self.model.config, list[KeptImage]()
        reads = config.region_dim or config.token_dim
        for start in range(0, len(features), IMAGE_BATCH):
            tokens = tokens_of(features[start : start + IMAGE_BATCH])
            for one in tokens:
                if one.shape[1] != reads:
                    raise ModelError(wrong_width(self.name, reads, self._first_stage, one.shape[1]))
                if config.compressed_tokens is None and len(one) > config.most_tokens:
                    raise InputError(
                        f"the image has {len(one)} tokens, and re-ranker {self.name!r} has positions for "
                        f"{config.most_tokens}: use one that compresses the tokens"
                    )
            padded, mask = pad_tokens([one.to(self._device, self._dtype) for one in tokens])
            boxes = self._boxes(features[start : start + IMAGE_BATCH])
            adapted, image_mask = self.model.adapt(padded, mask, boxes)
            kept += [_record(row[its].float()) for row, its in zip(adapted, image_mask, strict=True)]
        return kept

    def _boxes(self, features: Sequence[ImageFeatures]) -> torch.Tensor | None:
        """Pad the boxes of regions, for a network that embeds them."""
        if self.model.config.region_dim is None:
            return None
        regions = [one for one in features if isinstance(one, Regions)]
        if len(regions) < len(features):
            raise ModelError(
                f"re-ranker {self.name!r} reads regions, and model {self._first_stage!r} gives tokens: name the model "
                "that it was trained on"
            )
        padded, _ = pad_tokens([torch.from_numpy(one.boxes) for one in regions])
        return padded.to(self._device, self._dtype)

    def check(self, kept: KeptImage) -> None:
        """Validate region data that was read from a store.

        Raises:
            InputError: the tokens are missing, or have another number or width. The message says which.
        """
        if TOKENS not in kept:
            raise InputError(f"the region data lack {TOKENS}; they contain {', '.join(kept) or 'no array'}")
        shape, config = kept[TOKENS].shape, self.model.config
        count, width = config.compressed_tokens, config.bert_config.hidden_size
        right = len(shape) == 2 and shape[1] == width and 1 <= shape[0] <= config.most_tokens
        if not right or count not in (None, shape[0]):
            raise InputError(
                f"the region data have {TOKENS} of shape {shape}, and re-ranker {self.name!r} reads "
                f"({count or 'n'}, {width})"
            )

    def score(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> Array:
        """Score text i with image i by the joint encoder.

        Args:
            texts: n texts, or their token ids with [CLS] and [SEP]. A repeated text is tokenized once.
            kept: the region data of n images.

        Returns:
            float32 (n,); higher is better.

        Raises:
            UsageError: ``texts`` is a single string, or a text is empty.
            InputError: region data that :meth:`check` refuses.
        """
        for record in {id(one): one for one in kept}.values():
            self.check(record)
        limit, vocabulary = self.model.config.max_text_length, self.model.config.bert_config.vocab_size
        keys = [text if isinstance(text, str) else tuple(text) for text in self._texts.checked(texts, vocabulary)]
        distinct: dict[str | tuple[int, ...], Text] = {key: key if isinstance(key, str) else [*key] for key in keys}
        ids = dict(zip(distinct, self._texts.ids(distinct.values(), limit, vocabulary), strict=True))
        tokens = [ids[key] for key in keys]
        number = {key: place for place, key in enumerate(ids)}
        of_pair = [number[key] for key in keys]

        def score(pairs: list[int]) -> torch.Tensor:
            here = {of_pair[pair]: pair for pair in pairs}  # a text is encoded once, whatever the number of its images
            places = {text: place for place, text in enumerate(here)}
            padded, mask = self._texts.padded([tokens[pair] for pair in here.values()])
            of_text = torch.tensor([places[of_pair[pair]] for pair in pairs], device=self._device)
            stored = [torch.from_numpy(np.asarray(kept[pair][TOKENS])) for pair in pairs]
            images, image_mask = pad_tokens([one.to(self._device, self._dtype) for one in stored])
            return self.model.score(padded, mask, images, image_mask, of_text).unsqueeze(1)

        return by_length(tokens, PAIR_BATCH, 1, score)[:, 0]

    def score_and_match(self, texts: Iterable[Text], kept: Sequence[KeptImage]) -> tuple[Array, Array]:
        """Return the scores of :meth:`score` twice: they are the logits of matching, by which EDJE is trained."""
        scores = self.score(texts, kept)
        return scores, scores


def load_edje(files: EdjeFiles, embedder: Embedder) -> EdjeTokenReranker:
    """Load the network and tokenizer of a re-ranker, on the embedder's device and in its precision.

    Raises:
        ModelError: files are missing or do not fit together.
    """
    device_name, dtype_name = device_of(embedder)
    device = choose_device(device_name)
    dtype = choose_dtype(dtype_name, device)
    with QuietTransformers():
        try:
            model = EdjeReranker.from_pretrained(files.folder).to(device, dtype).eval()
            tokenizer = load_tokenizer(files.folder)
        except (OSError, ValueError) as error:
            first = str(error).splitlines()[0]
            raise ModelError(f"the re-ranker {files.name!r} cannot be loaded: {first}") from error
    if tokenizer is None:
        raise ModelError(f"re-ranker {files.name!r} has no tokenizer: copy its vocab.txt to {files.folder}")
    if len(tokenizer) > model.config.bert_config.vocab_size:
        raise ModelError(
            f"re-ranker {files.name!r}: its tokenizer has {len(tokenizer):,} entries, and it reads "
            f"{model.config.bert_config.vocab_size:,}: they belong to different models"
        )
    return EdjeTokenReranker(files, model, TextTokens(tokenizer, device), embedder.name, device, dtype)


def _record(tokens: torch.Tensor) -> KeptImage:
    halves = tokens.half().cpu().numpy()
    if not np.isfinite(halves).all():
        raise InputError("the image's tokens are not finite, or exceed the range of half precision (65,504)")
    return {TOKENS: np.ascontiguousarray(halves)}
