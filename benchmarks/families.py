"""A SigLIP-B/16 and a BLIP-base of full size with random weights: our classes against transformers called by hand.

Both read the same JPEG files and texts in one process, in alternating rounds. Prints JSON: for each task the median
rate of both, the median of the rounds' ratios, also of the processor's time (which other programs on the machine change
less), and the peak of resident memory above that before the call.
"""

from __future__ import annotations

import argparse
import ctypes
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import torch
import transformers
from PIL import Image
from torch.nn.functional import normalize

from ldot_milvus import load_embedder
from ldot_milvus.models.blip.embedder import BlipEmbedder

ROOT = Path(__file__).parents[1]
Task = Callable[[], np.ndarray]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--photos", type=int, default=16)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--dtype", default="float32")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    photos = sorted((ROOT / "examples" / "photos").glob("*.jpg"))[: arguments.photos]
    texts = [line["captions"][0] for line in map(json.loads, (ROOT / "examples/photos/photos.jsonl").open())][
        : arguments.photos
    ]
    result: dict[str, Any] = {
        "machine": torch.cuda.get_device_name() if arguments.device != "cpu" else processor(),
        "threads": arguments.threads, "dtype": arguments.dtype, "torch": torch.__version__,
        "transformers": transformers.__version__, "photos": len(photos), "texts": len(texts),
        "rounds": arguments.rounds,
        "load": [round(load, 1) for load in os.getloadavg()],
    }  # fmt: skip
    for name, make, tasks in (("SigLIP-B/16, 224", siglip, siglip_tasks), ("BLIP-base, 384", blip, blip_tasks)):
        with tempfile.TemporaryDirectory() as folder:
            make(Path(folder))
            result[name] = {
                task: compared(*pair, arguments.rounds)
                for task, pair in tasks(folder, photos, texts, arguments.device, arguments.dtype).items()
            }
    print(json.dumps(result, indent=1))


def siglip(folder: Path) -> None:
    """Write a SigLIP of transformers' default sizes, which are those of B/16 for 224 x 224 pixels."""
    transformers.SiglipModel(transformers.SiglipConfig()).save_pretrained(folder)
    transformers.SiglipImageProcessorPil().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def blip(folder: Path) -> None:
    """Write a BLIP of transformers' default sizes, which are those of base, but for the 12 heads of the text part."""
    config = transformers.BlipConfig(text_config={"num_attention_heads": 12})
    transformers.BlipForImageTextRetrieval(config).save_pretrained(folder)
    transformers.BlipImageProcessorPil().save_pretrained(folder)
    tokenizer().save_pretrained(folder)


def tokenizer() -> transformers.BertTokenizer:
    words = (ROOT / "ldot_milvus" / "pretrained" / "vocab" / "bert-base-cased.txt").read_text().splitlines()
    return transformers.BertTokenizer(vocab={word: number for number, word in enumerate(words)})


def siglip_tasks(
    folder: str, photos: list[Path], texts: list[str], device: str, dtype: str
) -> dict[str, tuple[int, Task, Task]]:
    ours = load_embedder(folder, device=device, dtype=dtype)
    model = transformers.SiglipModel.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    processor = transformers.SiglipImageProcessorPil.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)

    @torch.inference_mode()
    def photos_by_hand() -> np.ndarray:
        pixels = processor(images=opened(photos), return_tensors="pt")["pixel_values"].to(device, model.dtype)
        return unit(model.get_image_features(pixel_values=pixels).pooler_output)

    @torch.inference_mode()
    def texts_by_hand() -> np.ndarray:
        lower = [text.lower() for text in texts]
        ids = words(lower, padding="max_length", max_length=64, truncation=True, return_tensors="pt")["input_ids"]
        return unit(model.get_text_features(input_ids=ids.to(device)).pooler_output)

    return {
        "photos": (len(photos), lambda: ours.encode_images(photos), photos_by_hand),
        "texts": (len(texts), lambda: ours.encode_texts(texts), texts_by_hand),
    }


def blip_tasks(
    folder: str, photos: list[Path], texts: list[str], device: str, dtype: str
) -> dict[str, tuple[int, Task, Task]]:
    ours = load_embedder(folder, device=device, dtype=dtype)
    assert isinstance(ours, BlipEmbedder)
    kind = transformers.BlipForImageTextRetrieval
    model = kind.from_pretrained(folder, dtype=getattr(torch, dtype)).to(device).eval()
    processor = transformers.BlipImageProcessorPil.from_pretrained(folder)
    words = transformers.AutoTokenizer.from_pretrained(folder)
    first = photos[:8]
    kept = ours.reranker.keep(ours.image_features(first))
    with torch.inference_mode():
        pixels = processor(images=opened(first), return_tensors="pt")["pixel_values"].to(device, model.dtype)
        states = model.vision_model(pixel_values=pixels).last_hidden_state

    @torch.inference_mode()
    def photos_by_hand() -> np.ndarray:
        pixels = processor(images=opened(photos), return_tensors="pt")["pixel_values"].to(device, model.dtype)
        return unit(model.vision_proj(model.vision_model(pixel_values=pixels).last_hidden_state[:, 0]))

    @torch.inference_mode()
    def texts_by_hand() -> np.ndarray:
        encoded = words(texts, padding=True, max_length=35, truncation=True, return_tensors="pt").to(device)
        output = model.text_encoder(encoded["input_ids"], attention_mask=encoded["attention_mask"])
        return unit(model.text_proj(output.last_hidden_state[:, 0]))

    @torch.inference_mode()
    def match_by_hand() -> np.ndarray:
        encoded = words([texts[0]] * len(first), max_length=35, truncation=True, return_tensors="pt").to(device)
        encoded["input_ids"][:, 0] = model.config.text_config.vocab_size - 1  # [ENC], as the authors do
        output = model.text_encoder(
            encoded["input_ids"], attention_mask=encoded["attention_mask"], encoder_hidden_states=states,
            encoder_attention_mask=torch.ones(states.shape[:2], dtype=torch.long, device=device),
        )  # fmt: skip
        return model.itm_head(output.last_hidden_state[:, 0])[:, 1].float().cpu().numpy()

    return {
        "photos": (len(photos), lambda: ours.encode_images(photos), photos_by_hand),
        "texts": (len(texts), lambda: ours.encode_texts(texts), texts_by_hand),
        "pairs": (len(first), lambda: ours.reranker.score([texts[0]] * len(first), kept), match_by_hand),
    }


def opened(photos: list[Path]) -> list[Image.Image]:
    return [Image.open(photo).convert("RGB") for photo in photos]


def unit(vectors: torch.Tensor) -> np.ndarray:
    return normalize(vectors.float(), dim=-1).cpu().numpy()


def compared(count: int, ours: Task, by_hand: Task, rounds: int) -> Mapping[str, Any]:
    """Time both in alternating order, after one call of each that compares their results."""
    difference = float(np.abs(ours() - by_hand()).max())
    seconds: dict[str, list[float]] = {"ours": [], "by hand": []}
    processor_time: dict[str, list[float]] = {"ours": [], "by hand": []}
    memory = {"ours": 0.0, "by hand": 0.0}
    for number in range(rounds):
        order = [("ours", ours), ("by hand", by_hand)]
        for name, task in order if number % 2 == 0 else reversed(order):
            before = reset_peak()
            started = time.perf_counter(), time.process_time()
            task()
            seconds[name].append(time.perf_counter() - started[0])
            processor_time[name].append(time.process_time() - started[1])
            memory[name] = max(memory[name], resident("VmHWM") - before)
    ratios = [hand / our for hand, our in zip(seconds["by hand"], seconds["ours"], strict=True)]
    used = [hand / our for hand, our in zip(processor_time["by hand"], processor_time["ours"], strict=True)]
    return {
        "ours_per_second": round(count / statistics.median(seconds["ours"]), 2),
        "by_hand_per_second": round(count / statistics.median(seconds["by hand"]), 2),
        "ours_to_by_hand": round(statistics.median(ratios), 3),
        "ratios": [round(ratio, 3) for ratio in ratios],
        "processor_time_ratio": round(statistics.median(used), 3),
        "processor_seconds_ours": round(statistics.median(processor_time["ours"]), 2),
        "ours_peak_mb": round(memory["ours"]),
        "by_hand_peak_mb": round(memory["by hand"]),
        "largest_difference": float(f"{difference:.1e}"),
    }


def reset_peak() -> float:
    """Give freed memory back, set the peak of resident memory to what is left, and return that in MB."""
    ctypes.CDLL("libc.so.6").malloc_trim(0)
    with suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    return resident("VmRSS")


def resident(name: str) -> float:
    """Return a value of /proc/self/status in MB (of 1,000,000 bytes)."""
    status = Path("/proc/self/status").read_text()
    return next(int(line.split()[1]) * 1024 / 1e6 for line in status.splitlines() if line.startswith(f"{name}:"))


def processor() -> str:
    with open("/proc/cpuinfo") as file:
        return next((line.split(": ")[1].strip() for line in file if "model name" in line), platform.processor())


if __name__ == "__main__":
    main()
