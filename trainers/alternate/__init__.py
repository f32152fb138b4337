"""Rounds in which both roles improve each other on pairs without words (SWIRL, arXiv 2602.06130)."""
