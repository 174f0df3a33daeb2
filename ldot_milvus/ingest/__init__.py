"""Ingestion: ``ingestor`` writes one chunk of sources into a store by the steps in ``pipeline``.

``chunks`` makes sure that no chunk is lost.
"""
