"""BLIP's retrieval models (Li et al., ICML 2022): a dual encoder and a cross-attention re-ranker in one network."""
