"""The local store: SQLite holds the rows, FAISS indexes in memory answer searches."""
