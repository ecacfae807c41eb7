"""Carrying out a plan: stored chunks become safetensors files."""
