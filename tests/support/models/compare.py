"""What we publish of a model, and what `save_pretrained` writes: names, shapes and bytes.

``python -m tests.support.models.compare [--out FILE] [NAME ...]`` compares the classes named, or
all that can be built, in this process, and prints those that differ.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
import warnings
from collections.abc import Mapping
from math import prod
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors.torch import load_file

from hubmerge.checkpoint.boxes import row_major
from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.names.architecture import Architecture
from hubmerge.names.experts import to_hub_layout
from hubmerge.names.tied import drop_tied
from hubmerge.names.views import TensorView
from tests.support.models.small import candidates, model_classes
from tests.support.oracle import same_tensor

State = dict[str, torch.Tensor]


def saved_by_transformers(model: Any) -> State:
    """The tensors that `save_pretrained` writes."""
    with TemporaryDirectory() as folder:
        model.save_pretrained(folder)
        return {
            name: tensor.clone()
            for path in sorted(Path(folder).glob("*.safetensors"))
            for name, tensor in load_file(path).items()
        }


def planned_by_us(model: Any) -> tuple[State, list[str]]:
    """The tensors that our recipes make of the model's state dict, and what we warn of."""
    state = {name: t.detach().contiguous() for name, t in model.state_dict().items()}
    names = {name: tuple(tensor.shape) for name, tensor in state.items()}
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    architecture = Architecture(model, names, ties)
    stored = {
        name: TensorView.whole(StoredTensor(name, str(t.dtype)[6:], tuple(t.shape), ()))
        for name, t in state.items()
    }

    def same(left: StoredTensor, right: StoredTensor) -> bool:
        return same_tensor(state[left.key], state[right.key])

    drop_tied(stored, None, architecture, None, same)
    layout = to_hub_layout(stored, "auto", architecture, None)
    found = {name: gathered(view, state) for name, (_, view) in layout.views.items()}
    return found, layout.warnings


def gathered(view: TensorView, state: Mapping[str, torch.Tensor]) -> torch.Tensor:
    """The tensor that a view stands for."""
    result = torch.empty(prod(view.shape), dtype=state[view.sources[0].key].dtype)
    if 0 not in view.shape:
        for part in view.parts:
            source = state[part.source.key]
            strides = row_major(tuple(source.shape))
            first = sum(o * s for o, s in zip(part.origin, strides, strict=True))
            sizes = [axis.size for axis in part.axes]
            steps = [axis.step * strides[axis.dim] for axis in part.axes]
            places = [axis.stride for axis in part.axes]
            result.as_strided(sizes, places, part.offset).copy_(
                source.as_strided(sizes, steps, source.storage_offset() + first)
            )
    return result.reshape(view.shape)


def differences(ours: State, theirs: State) -> str:
    """What differs, in words; "" if nothing does."""
    found = []
    if missing := sorted(theirs.keys() - ours.keys()):
        found.append(f"{len(missing)} missing: {missing[:3]}")
    if unexpected := sorted(ours.keys() - theirs.keys()):
        found.append(f"{len(unexpected)} unexpected: {unexpected[:3]}")
    other = [n for n in sorted(ours.keys() & theirs.keys()) if not same_tensor(ours[n], theirs[n])]
    if other:
        found.append(f"{len(other)} other: {other[:3]}")
    return "; ".join(found)


def compare(name: str) -> dict[str, str]:
    """Build a class small and compare: {"not_built": why}, {"differs": what} or {}."""
    reasons: list[str] = []
    for model in candidates(name, reasons):
        try:
            theirs = saved_by_transformers(model)
            break
        except Exception as error:  # noqa: BLE001 - whatever a model's code raises
            reasons.append(f"{type(error).__name__}: {error}"[:200])
    else:
        return {"not_built": " | ".join(dict.fromkeys(reasons))}
    try:
        ours, told = planned_by_us(model)
    except Exception as error:  # noqa: BLE001 - the run goes on, and reports it
        return {"differs": f"{type(error).__name__}: {error}"[:300]}
    what = differences(ours, theirs)
    return {"differs": f"{what} {' '.join(told)}".strip()} if what else {}


def main() -> None:
    """Compare, and print the figure."""
    import transformers

    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path)
    parser.add_argument("names", nargs="*")
    options = parser.parse_args()
    warnings.simplefilter("ignore")
    transformers.logging.set_verbosity(60)
    transformers.logging.disable_progress_bar()
    results: dict[str, dict[str, str]] = {}
    for name in options.names or model_classes():
        began = time.monotonic()
        results[name] = compare(name)
        for kind, what in results[name].items():
            print(f"{name}: {kind}: {what} ({time.monotonic() - began:.1f} s)", flush=True)
        if options.out:
            options.out.write_text(json.dumps(results, indent=1))
    built = {name for name, result in results.items() if "not_built" not in result}
    equal = sum(not results[name] for name in built)
    print(f"{equal} of {len(built)} equal; {len(results) - len(built)} not built")
    sys.exit(equal != len(built))


if __name__ == "__main__":
    main()
