"""The plan: every output file known before a byte is converted."""
