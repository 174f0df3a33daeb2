"""How the packaged ``ldot-mini`` is made, from two public sets of weights and photos with captions.

::

    python -m ldot_milvus.training.mini --minilm FOLDER --resnet FOLDER --train a.tar b.tar --dev dev.tar --out FOLDER

About an hour and a half on two CPU cores. The parts lie in ``--work`` as they are finished, and a second call goes on
from there.
"""

from __future__ import annotations

import argparse
import json
import logging
from pathlib import Path

import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, BertConfig, PreTrainedTokenizerBase

from ..model import CrossAttentionReranker, LightningDOT, LightningDOTConfig
from ..model.storage import save_quantized
from ..regions.grid import GridBackbone, GridExtractor
from .contrastive import ContrastiveRecipe, calibrate, train_dual_encoder
from .data import CachedPhotos, cache_photos
from .rerank import RerankRecipe, train_reranker

IMAGE_LAYERS = 2
GRID = {"kind": "grid", "size": 224, "mirror": True}
# The region input layer reads unscaled features: its columns differ too much for one int8 scale a row.
FULLER_STORAGE = ("anchors", "img_linear", "image_projection", "pos_linear", "rank_output")


def start_from_minilm(folder: Path) -> LightningDOT:
    """A dual encoder whose text side is the sentence encoder, and whose image layers start as its last ones."""
    text = BertConfig.from_pretrained(folder)
    body = {
        "hidden_size": text.hidden_size,
        "num_attention_heads": text.num_attention_heads,
        "intermediate_size": text.intermediate_size,
        # Dropout inside attention would cost its fast kernel; left-out regions regularise the image side.
        "attention_probs_dropout_prob": 0.0,
    }
    model = LightningDOT(
        LightningDOTConfig(
            text_config={**body, "vocab_size": text.vocab_size, "num_hidden_layers": text.num_hidden_layers},
            image_config={
                **body,
                "hidden_dropout_prob": 0.0,
                "num_hidden_layers": IMAGE_LAYERS,
                "vocab_size": 102,
                "max_position_embeddings": 1,
            },
            projection_dim=text.hidden_size,
            pooling="mean",
            project_text=False,
            normalize=True,
            pooler=False,
            region_extractor=GRID,
        )
    )
    weights = {name: tensor.float() for name, tensor in load_file(folder / "model.safetensors").items()}
    model.text_model.load_state_dict({k: v for k, v in weights.items() if not k.startswith("pooler.")})
    for layer in range(IMAGE_LAYERS):
        prefix = f"encoder.layer.{text.num_hidden_layers - IMAGE_LAYERS + layer}."
        part = {name.removeprefix(prefix): tensor for name, tensor in weights.items() if name.startswith(prefix)}
        model.image_model.encoder.layer[layer].load_state_dict(part)
    return model


def package(
    out: Path, dual: LightningDOT, reranker: CrossAttentionReranker | None, tokenizer: PreTrainedTokenizerBase,
    resnet: Path,
) -> None:  # fmt: skip
    """Write the folder that :func:`~ldot_milvus.load_model` reads, with int8 weights."""
    save_quantized(dual, out, keep=FULLER_STORAGE)
    save_quantized(GridBackbone.from_pretrained(resnet), out / "regions")
    if reranker is not None:
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
    shipped = GridExtractor.from_pretrained(str(arguments.resnet), mirror=True, dtype=torch.bfloat16)
    plain = GridExtractor.from_pretrained(str(arguments.resnet), dtype=torch.bfloat16)
    # Training on the smoother averaged features learns the photos by heart sooner, and finds fewer.
    train = cache_photos(arguments.train, [plain, plain, plain], work / "train")
    dev = cache_photos([arguments.dev], [shipped], work / "dev")
    dual = _dual(arguments.minilm, tokenizer, train, dev, work)
    reranker = _reranker(dual, tokenizer, train, dev, work)
    package(arguments.out, dual, reranker, tokenizer, arguments.resnet)
    print(json.dumps({"written": str(arguments.out)}))


def _dual(
    minilm: Path, tokenizer: PreTrainedTokenizerBase, train: CachedPhotos, dev: CachedPhotos, work: Path
) -> LightningDOT:
    if not (work / "dual" / "config.json").exists():
        start = start_from_minilm(minilm)
        log_file = work / "dual.jsonl"
        trained = train_dual_encoder(start, tokenizer, train, dev, ContrastiveRecipe(), log_file)
        calibrate(trained, tokenizer, train).save_pretrained(work / "dual")
    model: LightningDOT = LightningDOT.from_pretrained(work / "dual")
    return model


def _reranker(
    dual: LightningDOT, tokenizer: PreTrainedTokenizerBase, train: CachedPhotos, dev: CachedPhotos, work: Path
) -> CrossAttentionReranker:
    if not (work / "reranker" / "config.json").exists():
        log_file = work / "reranker.jsonl"
        train_reranker(dual, tokenizer, train, dev, RerankRecipe(), log_file).save_pretrained(work / "reranker")
    model: CrossAttentionReranker = CrossAttentionReranker.from_pretrained(work / "reranker")
    return model


if __name__ == "__main__":
    main()
