"""LightningDOT. An image's way through it, one module a step:

1. ``embedder``: photos become regions by the model's region extractor (:mod:`ldot_milvus.regions`);
2. ``dual_encoder``: a text, or the regions of an image, to one vector, by transformer layers of ``layers``;
3. ``cross_attention``: the score of a text and an image, by one transformer over both or by ``alignment``.

``bundle`` finds a model's folder and loads its parts, ``configuration`` has their sizes and choices, and
``pretraining`` has the heads of the three objectives. ``convert`` turns a published checkpoint into a folder, by the
tensor names in ``checkpoint_layouts``.
"""
