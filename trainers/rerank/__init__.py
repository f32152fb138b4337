"""Reranking of whole data sets, what `scripts/rerank.py` does."""
