"""Sentences for pairs of pictures, how far they can be trusted, and which triplets are taken."""
