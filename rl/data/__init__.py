"""Triplets, pictures, videos, labels, selection, and the store of scored candidates."""
