"""Two-stage retrieval, and its results as a page."""
