"""Plan a conversion: every output file is known before a byte is converted.

- `prepare.prepare` goes from a folder and `options` to a `publication`: a plan and its small files.
- `plan` lays tensors out in shards and writes their headers; `fingerprint` identifies the output.
- `card` writes the model card, `consistency` compares config and tokenizer with the weights.
- `inspection` describes a checkpoint, `preview` describes a plan; `option_record` is what a
  published model records about the options that made it.

May import names and the rooms below.
"""
