"""Checkpoint keys become Hub names."""
