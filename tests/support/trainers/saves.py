"""Checkpoints written in this process, with exactly the state dict that a trainer would save."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import torch
import torch.distributed.checkpoint as dcp

State = dict[str, Any]


def save(folder: Path, state: State) -> Path:
    """`dcp.save` of a nested state dict; returns the folder."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        dcp.save(state, checkpoint_id=str(folder), no_dist=True)
    return folder


def save_model(folder: Path, model: Any) -> Path:
    """As VeOmni saves, with an optimizer's state beside that must be left alone."""
    weights = model.state_dict()
    moments = {name: torch.ones(2) for name in list(weights)[:3]}
    return save(folder, {"model": weights, "optimizer": {"state": moments}})


def save_config(folder: Path, model: Any) -> Path:
    """The assets of a run: its config, with the class of the model."""
    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    return folder


def prefixed(prefix: str, weights: State) -> State:
    """Each weight under a longer name."""
    return {prefix + name: tensor for name, tensor in weights.items()}
