"""Decide which stored tensors are the model, and under which names the Hub expects them.

- `naming` makes all decisions in order: `selection` drops training state and other models, then
  `prefixes`, `experts`, `tied` and the rest translate what remains.
- `weights.Weight` is the result: which view (`views`) of which stored tensors becomes a tensor.
- `architecture` and `reference` say what transformers or a base model expect; `loader_check` and
  `adapter_check` compare the result with the real loader.
- A trainer's own model definition is a table: `torchtitan`, `prime_rl`, applied by `translation`.
- `adapter` and `peft_tuners` name the tensors of a PEFT adapter.

Works on names and shapes alone. May import checkpoint and the rooms below.
"""
