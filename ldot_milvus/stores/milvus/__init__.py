"""The Milvus store: Milvus servers and Milvus Lite."""
