"""Training: the dual encoder by cross-modal retrieval, the re-ranker by hard negatives."""
