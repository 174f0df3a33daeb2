"""Dual encoders that transformers implements: SigLIP, SigLIP 2, CLIP, Chinese-CLIP and MetaCLIP 2."""
