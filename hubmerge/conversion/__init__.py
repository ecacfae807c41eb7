"""Carry out a plan: stored chunks become safetensors files.

- `to_folder.convert_plan` writes a folder; `output_folder` locks, resumes and completes it, and
  `folder_record` says how it was made.
- `shard_writer.write_shard` writes one shard; `hash_shard` only computes its sha256.
- `slabs` cuts a tensor into slabs that fit a block, `cast` changes their dtype, `conveyor` passes
  blocks through one thread per stage.

May import planning and the rooms below.
"""
