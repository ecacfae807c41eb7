"""Read a distributed checkpoint without executing, trusting or following anything in it.

- `locate` finds the folder of the checkpoint that a user means; `foreign` recognizes checkpoints of
  other tools.
- `metadata.read_checkpoint` returns what is stored, as the plain values of `schema`; `tiling`
  proves that the chunks of a tensor cover it.
- `boxes` reads any box of a stored tensor; `data_files` finds its chunks in the files, with one
  module for each storage format (`torch_record`, `compressed_record`, `safetensors_data`).
- `unpickle` and `opcodes` read pickles without executing them; `files` opens every file.

May import hf_format, system, and the modules below them.
"""
