"""What a Hugging Face repository holds: names, headers, dtypes, assets."""
