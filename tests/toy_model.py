"""A minimal model family: the vector of a photo is its mean colour, that of a text the colours that it names."""

import numpy as np

from ldot_milvus.images import open_image
from ldot_milvus.models.base import ModelFiles, RerankerFiles

COLOURS = {"red": (1, -1, -1), "green": (-1, 1, -1), "blue": (-1, -1, 1), "white": (1, 1, 1), "black": (-1, -1, -1)}


class ToyFiles(ModelFiles):
    dim, least_side = 3, 8

    def own_reranker(self):
        return ToyRerankerFiles(self.name, self.folder, self)

    def load(self, *, device=None, dtype=None):
        return ToyEmbedder(self)


class ToyEmbedder:
    least_side, vocabulary_size, former_fingerprints = ToyFiles.least_side, None, ()

    def __init__(self, files):
        self.name, self.dim, self.fingerprint = files.name, files.dim, files.fingerprint
        self.reranker = files.own_reranker().load(self)

    def encode_texts(self, texts):
        return np.array([np.sum([COLOURS.get(w, (0,) * 3) for w in text.split()], 0) for text in texts], np.float32)

    def encode_images(self, images):
        return self.encode_features(self.image_features(images))

    def image_features(self, images):
        return [np.asarray(open_image(image).image.resize((8, 8)), np.float32) / 127.5 - 1 for image in images]

    def encode_features(self, features):
        return np.array([pixels.mean((0, 1)) for pixels in features], np.float32)


class ToyRerankerFiles(RerankerFiles):
    def load(self, embedder):
        return ToyReranker(self, embedder)


class ToyReranker:
    dot_weight, former_fingerprints = 0.0, ()

    def __init__(self, files, embedder):
        self.name, self.fingerprint, self._encode = files.name, files.fingerprint, embedder.encode_texts

    def keep(self, features):
        return [{"pixels": pixels.astype(np.float16)} for pixels in features]

    def check(self, kept):
        assert kept["pixels"].shape == (8, 8, 3)

    def score(self, texts, kept):
        return np.array([(one["pixels"] @ v).mean() for v, one in zip(self._encode(texts), kept, strict=True)])
