"""How the packaged ``ldot-mini`` is made, from two public sets of weights and photos with captions.

::

    python -m ldot_milvus.training.mini --minilm FOLDER --resnet FOLDER --train a.tar b.tar --dev dev.tar --out FOLDER

Two to three hours on two CPU cores. The parts lie in ``--work`` as they are finished, and a second call goes on from
there.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from ..model import CrossAttentionReranker, LightningDOT, LightningDOTConfig, RerankerConfig
from ..model.storage import save_quantized
from ..regions.grid import GridBackbone, GridExtractor
from .batches import tokenize
from .contrastive import ContrastiveRecipe
from .data import CachedPhotos, cache_photos
from .dot_weight import with_dot_weight
from .dual import calibrate, caption_meanings, train_dual_encoder
from .rerank import train_reranker

DUAL = ContrastiveRecipe(stop=3), ContrastiveRecipe(epochs=2, text_learning_rate=4e-5, learning_rate=4e-4, seed=13)
RERANKER = ContrastiveRecipe(stop=3, seed=11)
IMAGE_LAYERS = 2
GRID = {"kind": "grid", "size": 224, "mirror": True}
# The region input layer reads unscaled features: its columns differ too much for one int8 scale a row.
FULLER_STORAGE = ("anchors", "img_linear", "image_projection", "region_projection", "pos_linear", "importance")


def start_from_minilm(folder: Path) -> LightningDOT:
    """A dual encoder whose text side is the sentence encoder, and whose image layers start as its last ones."""
    body, weights = _body(folder), _weights(folder)
    layers = body["num_hidden_layers"]
    model = LightningDOT(
        LightningDOTConfig(
            text_config=body,
            image_config={
                **body,
                "hidden_dropout_prob": 0.0,
                "num_hidden_layers": IMAGE_LAYERS,
                "vocab_size": 102,
                "max_position_embeddings": 1,
            },
            projection_dim=body["hidden_size"],
            pooling="mean",
            project_text=False,
            normalize=True,
            pooler=False,
            region_extractor=GRID,
        )
    )
    model.text_model.load_state_dict(weights)
    for layer in range(IMAGE_LAYERS):
        prefix = f"encoder.layer.{layers - IMAGE_LAYERS + layer}."
        part = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        model.image_model.encoder.layer[layer].load_state_dict(part)
    return model


def reranker_from_minilm(folder: Path) -> CrossAttentionReranker:
    """A re-ranker whose words come from the sentence encoder."""
    model = CrossAttentionReranker(
        RerankerConfig(bert_config=_body(folder), scoring="alignment", region_input="embedded")
    )
    model.bert.load_state_dict(_weights(folder), strict=False)  # all but what reads regions
    return model


def _body(folder: Path) -> dict[str, Any]:
    config = BertConfig.from_pretrained(folder)
    sizes = ("hidden_size", "num_attention_heads", "intermediate_size", "num_hidden_layers", "vocab_size")
    # Dropout inside attention would cost its fast kernel; left-out regions regularise the image side.
    return {name: getattr(config, name) for name in sizes} | {"attention_probs_dropout_prob": 0.0}


def _weights(folder: Path) -> dict[str, Tensor]:
    tensors = load_file(folder / "model.safetensors")
    return {name: tensor.float() for name, tensor in tensors.items() if not name.startswith("pooler.")}


def package(
    out: Path, dual: LightningDOT, reranker: CrossAttentionReranker, tokenizer: PreTrainedTokenizerBase, resnet: Path
) -> None:
    """Write the folder that :func:`~ldot_milvus.load_model` reads, with int8 weights."""
    save_quantized(dual, out, keep=FULLER_STORAGE)
    save_quantized(GridBackbone.from_pretrained(resnet), out / "regions")
    save_quantized(reranker, out / "reranker", keep=FULLER_STORAGE)
    tokenizer.save_pretrained(out)


def main() -> None:
    """Train and package."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--minilm", type=Path, required=True, help="all-MiniLM-L6-v2 as a transformers folder")
    parser.add_argument("--resnet", type=Path, required=True, help="ResNet-50 as a transformers folder")
    parser.add_argument("--train", type=Path, nargs="+", required=True)
    parser.add_argument("--dev", type=Path, required=True)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--work", type=Path, default=Path("ldot-mini-work"))
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(arguments.minilm)
    shipped = GridExtractor.from_pretrained(str(arguments.resnet), mirror=True)
    plain = GridExtractor.from_pretrained(str(arguments.resnet))
    # Training on the smoother averaged features learns the photos by heart sooner, and finds fewer.
    train = cache_photos(arguments.train, [plain, plain], work / "train")
    dev = cache_photos([arguments.dev], [shipped], work / "dev")
    reranker = _reranker(arguments.minilm, tokenizer, train, dev, work)
    dual = _dual(arguments.minilm, tokenizer, train, dev, reranker, work)
    reranker = with_dot_weight(reranker, dual, tokenizer, dev)
    package(arguments.out, dual, reranker, tokenizer, arguments.resnet)
    print(json.dumps({"written": str(arguments.out)}))


def _dual(
    minilm: Path, tokenizer: PreTrainedTokenizerBase, train: CachedPhotos, dev: CachedPhotos,
    teacher: CrossAttentionReranker, work: Path,
) -> LightningDOT:  # fmt: skip
    if not (work / "dual" / "config.json").exists():
        meanings = _meanings(minilm, tokenizer, train)
        start = start_from_minilm(minilm)
        trained = train_dual_encoder(start, tokenizer, meanings, train, dev, DUAL, work / "dual.jsonl", teacher)
        calibrate(trained, tokenizer, train).save_pretrained(work / "dual")
    model: LightningDOT = LightningDOT.from_pretrained(work / "dual")
    return model.eval()


def _reranker(
    minilm: Path, tokenizer: PreTrainedTokenizerBase, train: CachedPhotos, dev: CachedPhotos, work: Path
) -> CrossAttentionReranker:
    if not (work / "reranker" / "config.json").exists():
        meanings = _meanings(minilm, tokenizer, train)
        start = reranker_from_minilm(minilm)
        trained = train_reranker(start, tokenizer, meanings, train, dev, RERANKER, work / "reranker.jsonl")
        trained.save_pretrained(work / "reranker")
    model: CrossAttentionReranker = CrossAttentionReranker.from_pretrained(work / "reranker")
    return model.eval()


def _meanings(minilm: Path, tokenizer: PreTrainedTokenizerBase, train: CachedPhotos) -> Tensor:
    return caption_meanings(start_from_minilm(minilm), tokenize(tokenizer, train.captions, RERANKER.text_tokens))


if __name__ == "__main__":
    main()
