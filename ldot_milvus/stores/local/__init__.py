"""The local store: SQLite stores the rows, FAISS indexes in memory search them."""
