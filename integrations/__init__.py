"""A short name for :mod:`ldot_milvus.integrations`, and nothing else."""
