"""The LightningDOT model family. A query and a photo pass through these modules in order:

1. ``embedder`` tokenizes texts, and turns photos into regions with the model's region extractor
   (:mod:`ldot_milvus.regions`);
2. ``dual_encoder`` encodes a text, or the regions of an image, as one vector, with the transformer layers in
   ``layers`` and, beside what they learned, ``label_names`` and ``canonical`` correlations;
3. ``cross_attention`` scores a pair of a text and an image, with one transformer over both or with ``alignment``.

On the CPU, ``text_side`` does what 1 to 3 do with texts by ONNX Runtime, from the graphs that ``onnx_export`` wrote.
``files`` describes a model's folder and ``bundle`` loads its components. ``configuration`` defines their sizes and
options. ``pretraining`` adds the heads of the three pre-training objectives. ``convert`` converts a published
checkpoint to a folder, with the tensor names in ``checkpoint_layouts``.
"""
