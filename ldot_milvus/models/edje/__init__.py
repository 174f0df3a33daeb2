"""The EDJE re-ranker family: a small joint encoder over a few stored tokens of an image (ICLR 2026, arXiv 2510.06820).

The first stage, whatever model that is, computes the tokens of a photo: the last states of a vision transformer, or
ldot-mini's grid regions. Then, in this order:

1. ``adapters``: at ingestion, N learned queries compress the tokens of a photo to N stored ones;
2. ``inputs``: for a query, text and stored tokens become one sequence;
3. ``joint_encoder``: a BERT reads the sequence, and its first state gives the score.

``files`` describes a re-ranker's folder, ``reranker`` is what search and ingestion call, ``configuration`` defines
sizes and options, and ``convert`` converts the authors' checkpoints.
"""
