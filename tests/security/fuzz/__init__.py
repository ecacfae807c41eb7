"""Fuzzing of everything that parses: what is fed, and what may come out."""
