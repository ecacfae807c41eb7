"""Tiny models, and checkpoints of them as real trainers write them.

`models` builds the architectures, `saves` writes a checkpoint in this process, and `runs` holds
what two processes do under accelerate, the Trainer and PEFT.
"""
