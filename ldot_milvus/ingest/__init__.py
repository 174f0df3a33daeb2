"""Ingestion: ``ingestor`` writes one chunk of sources into a store, ``chunks`` makes sure that no chunk is lost."""
