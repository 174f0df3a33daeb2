"""Models: embed texts and images as vectors compared by dot product, and score pairs of a text and an image."""
