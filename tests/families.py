"""Small random models of published families, saved by transformers itself in the layout of the hub's repositories."""

from __future__ import annotations

import string
from pathlib import Path

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from ldot_milvus.models.edje.configuration import EdjeConfig
from ldot_milvus.models.edje.joint_encoder import EdjeReranker

LETTERS = string.ascii_letters + string.digits + ".,?!' "


def random_weights(model, seed: int = 0):
    """Draw weights with which different inputs have clearly different outputs, and biases that are not zero."""
    torch.manual_seed(seed)
    for name, weight in model.named_parameters():
        if weight.dim() > 1:
            weight.data.normal_(0, 0.15)
        elif name.endswith("bias"):
            weight.data.normal_(0, 0.1)
    return model.eval()


def siglip(folder: Path, *, size: int = 32, patch: int = 8, width: int = 32, layers: int = 2, seed: int = 0) -> Path:
    """SigLIP 2 of a fixed resolution: its tokenizer keeps capital letters and ends a text with <eos>."""
    tokenizer = Tokenizer(models.BPE({"<pad>": 0, "<eos>": 1, "<unk>": 2, **_numbered(LETTERS, 3)}, []))
    tokenizer.post_processor = processors.TemplateProcessing(single="$A <eos>", special_tokens=[("<eos>", 1)])
    tokenizer = transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<unk>"
    )
    body = {"hidden_size": width, "intermediate_size": 2 * width, "num_hidden_layers": layers, "num_attention_heads": 2}
    config = transformers.SiglipConfig(
        text_config={**body, "vocab_size": len(tokenizer), "projection_size": width},
        vision_config={**body, "image_size": size, "patch_size": patch},
    )
    random_weights(transformers.SiglipModel(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = transformers.SiglipImageProcessorPil(size={"height": size, "width": size})
    processor.save_pretrained(folder)
    return folder


def clip(
    folder: Path, *, size: int = 32, patch: int = 8, width: int = 32, layers: int = 2, seed: int = 0, crop: int = 0
) -> Path:
    """CLIP, whose text and vision parts have other widths than the vectors."""
    tokenizer = _clip_tokenizer()
    body = {"num_hidden_layers": layers, "num_attention_heads": 2}
    config = transformers.CLIPConfig(
        text_config={
            **body, "vocab_size": len(tokenizer), "hidden_size": width, "intermediate_size": 2 * width,
            "eos_token_id": tokenizer.eos_token_id, "bos_token_id": tokenizer.bos_token_id, "pad_token_id": 1,
        },
        vision_config={
            **body, "image_size": size, "patch_size": patch, "hidden_size": width + 16, "intermediate_size": width,
        },
        projection_dim=24,
    )  # fmt: skip
    random_weights(transformers.CLIPModel(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    processor = transformers.CLIPImageProcessorPil(
        size={"shortest_edge": size + crop}, crop_size={"height": size, "width": size}
    )
    processor.save_pretrained(folder)
    return folder


def metaclip2(folder: Path) -> Path:
    """MetaCLIP 2, here with CLIP's tokenizer."""
    tokenizer = _clip_tokenizer()
    body = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.MetaClip2Config(
        text_config={
            **body, "vocab_size": len(tokenizer), "eos_token_id": tokenizer.eos_token_id, "pad_token_id": 1,
            "bos_token_id": tokenizer.bos_token_id,
        },
        vision_config={**body, "image_size": 32, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    random_weights(transformers.MetaClip2Model(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def chinese_clip(folder: Path) -> Path:
    """Chinese-CLIP, with a BERT for texts."""
    tokenizer = bert_tokenizer()
    body = {"hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = transformers.ChineseCLIPConfig(
        text_config={**body, "vocab_size": len(tokenizer)},
        vision_config={**body, "image_size": 32, "patch_size": 8}, projection_dim=24,
    )  # fmt: skip
    random_weights(transformers.ChineseCLIPModel(config)).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.ChineseCLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32).save_pretrained(folder)
    return folder


def blip(
    folder: Path, *, size: int = 32, patch: int = 8, heads: int = 1, vision: int = 48, layers: int = 2, seed: int = 0
) -> Path:
    """BLIP's retrieval model: [DEC] and [ENC] are in the network's vocabulary, and not in the tokenizer."""
    tokenizer = bert_tokenizer()
    config = transformers.BlipConfig(
        text_config={
            "vocab_size": len(tokenizer) + 2, "hidden_size": 64 * heads, "num_attention_heads": heads,
            "intermediate_size": 96, "num_hidden_layers": layers, "max_position_embeddings": 64,
        },
        vision_config={
            "hidden_size": vision, "intermediate_size": 64, "num_hidden_layers": layers, "num_attention_heads": 3,
            "image_size": size, "patch_size": patch, "layer_norm_eps": 1e-6,
        },
        image_text_hidden_size=24,
    )  # fmt: skip
    random_weights(transformers.BlipForImageTextRetrieval(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    transformers.BlipImageProcessorPil(size={"height": size, "width": size}).save_pretrained(folder)
    return folder


def edje(folder: Path, *, token_dim: int = 32, tokens: int = 4, seed: int = 0) -> Path:
    """An EDJE re-ranker over the tokens of :func:`siglip`, with <image> as the last entry of its vocabulary."""
    tokenizer = bert_tokenizer()
    body = {
        "vocab_size": len(tokenizer) + 1, "hidden_size": 24, "num_attention_heads": 2, "intermediate_size": 48,
        "num_hidden_layers": 2, "max_position_embeddings": 64 + tokens,
    }  # fmt: skip
    config = EdjeConfig(
        bert_config=body, token_dim=token_dim, compressed_tokens=tokens, adapter_hidden=48, adapter_heads=2
    )
    random_weights(EdjeReranker(config), seed).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def bert_tokenizer() -> transformers.BertTokenizer:
    """A tokenizer of single letters."""
    words = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    words += [*string.ascii_lowercase, *(f"##{letter}" for letter in string.ascii_lowercase)]
    return transformers.BertTokenizer(vocab={word: i for i, word in enumerate(words)})


def _clip_tokenizer() -> transformers.CLIPTokenizer:
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    pieces = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    return transformers.CLIPTokenizer(vocab=_numbered(pieces, 0), merges=[], model_max_length=77)


def _numbered(pieces: str | list[str], first: int) -> dict[str, int]:
    return {piece: first + i for i, piece in enumerate(pieces)}
