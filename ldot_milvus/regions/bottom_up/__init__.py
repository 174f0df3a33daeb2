"""Bottom-up attention (Anderson et al., CVPR 2018): pixels to regions by a Faster R-CNN trained on Visual Genome.

A photo's way, each step in a module of its own::

    preprocessing   RGB photo -> (1, 3, h, w), as the weights want it
    network         -> feature map of stride 16; objectness and shift of each anchor; class, box and attribute scores
    proposals       anchors, shifted -> the best 300 boxes
    pooling         the feature map inside a box -> 14 x 14 bins
    choice          which boxes are kept: the reference's way, and UNITER's
    extractor       all of it, one photo at a time

``configuration`` reads the published ``config.yaml``, ``weights`` the published checkpoint.
"""

from ldot_milvus.regions.bottom_up.configuration import DetectorConfig
from ldot_milvus.regions.bottom_up.extractor import BottomUpExtractor
from ldot_milvus.regions.bottom_up.network import Detector

__all__ = ["BottomUpExtractor", "Detector", "DetectorConfig"]
