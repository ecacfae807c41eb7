"""The formats of a Hugging Face repository: file names, safetensors headers, dtypes, assets.

- `safetensors_header` reads and writes headers; `dtypes` has the element types.
- `filenames` has the names of weights, `asset_names` those of all other files, and `other_weights`
  recognizes weights in other formats.
- `assets.Assets` reads a folder of config, tokenizer and code; `tokenizer_files` and `code_files`
  check what belongs together; `quantization` and `json_text` interpret and edit JSON.

Knows nothing of checkpoints or plans. May import errors and formatting only.
"""
