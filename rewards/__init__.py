"""Rewards, one idea a file (to come)."""
