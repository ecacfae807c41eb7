"""Hostile checkpoints: the bytes that somebody could put into each of their files."""
