"""Train the dual encoder (pre-training and retrieval) and the re-ranker."""
