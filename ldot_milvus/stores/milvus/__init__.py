"""Milvus servers and Milvus Lite as a store."""
