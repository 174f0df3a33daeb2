"""The module of 0.1.0 that had ``Ingestor``; import it from ``ldot_milvus``. This name goes with 0.3.0."""

import warnings

from ldot_milvus.ingest.ingestor import Failure, Ingestor, Report

__all__ = ["Failure", "Ingestor", "Report"]

warnings.warn("ldot_milvus.ingestion is deprecated: from ldot_milvus import Ingestor", DeprecationWarning, stacklevel=2)
