"""Short name of :mod:`ldot_milvus.integrations`."""
