"""Models: texts and images to vectors that are compared by dot product, and pairs of both to scores."""
