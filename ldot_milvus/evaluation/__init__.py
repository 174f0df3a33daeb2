"""Recall of a model on photos with captions."""
