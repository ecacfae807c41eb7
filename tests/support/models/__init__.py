"""Every model class of transformers, built small from a config that is shrunk."""
