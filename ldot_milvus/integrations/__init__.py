"""Adapters to other frameworks, without retrieval logic."""
