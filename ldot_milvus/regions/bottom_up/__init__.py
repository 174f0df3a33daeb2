"""Bottom-up attention (Anderson et al., CVPR 2018): extract regions with a Faster R-CNN trained on Visual Genome.

A photo passes through these modules in order::

    preprocessing   RGB photo -> network input (1, 3, h, w)
    network         input -> feature map of stride 16; objectness and deltas of each anchor; class, box and attribute
                    scores of each region
    boxes           anchors and deltas -> the best 300 proposals
    pooling         the feature map inside a proposal -> 14 x 14 bins
    selection       proposals -> regions, by the reference's rule or by UNITER's

``extractor`` runs these steps for one photo at a time. ``configuration`` reads the published ``config.yaml``,
``weights`` the published checkpoint, and ``names`` the names of classes and attributes.
"""

from ldot_milvus.regions.bottom_up.configuration import DetectorConfig
from ldot_milvus.regions.bottom_up.extractor import BottomUpExtractor
from ldot_milvus.regions.bottom_up.network import Detector

__all__ = ["BottomUpExtractor", "Detector", "DetectorConfig"]
