"""Two-stage retrieval, and an HTML page of its results."""
