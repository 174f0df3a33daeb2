"""Measure the recall of a model on photos with captions."""
