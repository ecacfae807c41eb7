"""Check names and shapes with transformers' own loader, before a byte is converted.

What the loader calls missing, unexpected or of another shape now, it would call so after hours of
conversion and upload. It is given tensors of the meta device, which have a shape and no data.

The check is about the weights and nothing else. `from_pretrained` would also ask for accelerate, a
quantizer and its GPU, and files to download, and each of them would become a verdict that differs
from machine to machine. So only its inner part is called: the one that renames and converts a
state dict and puts it into a model.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

from hubmerge.errors import CheckpointError
from hubmerge.formatting import format_list
from hubmerge.hf_format.dtypes import DType
from hubmerge.names.architecture import Architecture, quiet_transformers
from hubmerge.names.reference import differences
from hubmerge.system.offline import no_network

Shape = tuple[int, ...]


class PlannedTensor(Protocol):
    """One tensor as it will be published."""

    @property
    def name(self) -> str: ...
    @property
    def shape(self) -> Shape: ...
    @property
    def dtype(self) -> DType: ...


@dataclass(frozen=True)
class Verdict:
    """How names and shapes differ from those of the model.

    Attributes:
        mismatched: name, shape, and the shape that the model has.
    """

    unexpected: frozenset[str]
    missing: frozenset[str]
    mismatched: tuple[tuple[str, Shape, Shape], ...]

    def problems(self) -> list[str]:
        """Return what is wrong, in words; nothing if everything fits."""
        problems = [differences(self.unexpected, self.missing)]
        mismatched = [
            f"{name} is {ours}, the model has {theirs}" for name, ours, theirs in self.mismatched
        ]
        if mismatched:
            problems.append(f"{len(mismatched)} of another shape: {format_list(mismatched)}")
        return [problem for problem in problems if problem]

    @property
    def count(self) -> int:
        return len(self.unexpected) + len(self.missing) + len(self.mismatched)


def check_with_loader(tensors: Iterable[PlannedTensor], architecture: Architecture) -> list[str]:
    """Load the planned tensors, without data, into the model.

    Returns:
        Warnings: why the loader could not be asked, if names and shapes were compared without it;
        what does not fit a class that is not certain to be the model's.

    Raises:
        CheckpointError: a name or shape is not what the model has; all are listed.
    """
    shapes = _without_quantized(tensors, architecture)
    warnings = []
    try:
        with no_network(), quiet_transformers():
            verdict = _ask_loader(shapes, architecture)
    except Exception as error:  # noqa: BLE001 - whatever transformers raises, it is no verdict
        reason = " ".join(f"{type(error).__name__}: {error}".split())[:300]
        verdict = _compare(shapes, architecture)
        warnings.append(
            f"transformers' loader could not be asked ({reason}): names and shapes were compared "
            "with those that save_pretrained writes"
        )
    problems = verdict.problems()
    if problems:
        found = f"{architecture.model_class.__name__} would not load whole: {'; '.join(problems)}"
        if not architecture.is_certain:
            return [*warnings, found]
        raise CheckpointError(
            found,
            "Correct names with --rename or --model-key, or check that the config is this "
            "model's; --no-check-model converts all the same.",
        )
    return warnings


class _ConversionError(Exception):
    """The loader got names that it knows, and could not make the model's tensors of them."""


def _ask_loader(shapes: Mapping[str, Shape], architecture: Architecture) -> Verdict:
    """Load tensors of these shapes as `from_pretrained` does.

    Of transformers, these are inner functions: `tests/names/test_loader_check.py` fails when they
    change.
    """
    import torch
    from transformers.conversion_mapping import get_model_conversion_mapping
    from transformers.core_model_loading import convert_and_load_state_dict_in_model
    from transformers.modeling_utils import LoadStateDictConfig

    meta = torch.device("meta")
    model = architecture.build_again()
    rules = get_model_conversion_mapping(model)
    for rule in rules:
        if getattr(rule, "force_cpu", False):
            rule.force_cpu = False  # there are no data to convert
    info, _ = convert_and_load_state_dict_in_model(
        model=model,
        state_dict={name: torch.empty(shape, device=meta) for name, shape in shapes.items()},
        load_config=LoadStateDictConfig(
            ignore_mismatched_sizes=True,
            device_map={"": meta},
            dtype=torch.float32,
            weight_mapping=rules,
        ),
    )
    if info.conversion_errors:
        raise _ConversionError("; ".join(info.conversion_errors.values()))
    model.mark_tied_weights_as_initialized(info)
    model.tie_weights(missing_keys=info.missing_keys, recompute_mapping=False)
    model._adjust_missing_and_unexpected_keys(info)
    mismatched = [
        (name, tuple(ours), tuple(theirs)) for name, ours, theirs in sorted(info.mismatched_keys)
    ]
    return Verdict(frozenset(info.unexpected_keys), frozenset(info.missing_keys), tuple(mismatched))


def _compare(shapes: Mapping[str, Shape], architecture: Architecture) -> Verdict:
    """Compare with what `save_pretrained` would write, and with the model's names in memory."""
    return min(
        (
            _difference(shapes, wanted, architecture)
            for wanted in (architecture.hub_shapes, architecture.names)
        ),
        key=lambda verdict: verdict.count,
    )


def _difference(
    shapes: Mapping[str, Shape], wanted: Mapping[str, Shape], architecture: Architecture
) -> Verdict:
    missing = set(wanted) - set(shapes)
    for name, other in architecture.ties.items():
        # One of the two is enough.
        if name in shapes or other in shapes:
            missing -= {name, other}
    unexpected = set(shapes) - set(wanted)
    mismatched = tuple(
        (name, shape, wanted[name])
        for name, shape in sorted(shapes.items())
        if name in wanted and wanted[name] != shape
    )
    return Verdict(
        frozenset(name for name in unexpected if not architecture.ignores_unexpected(name)),
        frozenset(name for name in missing if not architecture.ignores_missing(name)),
        mismatched,
    )


def _without_quantized(
    tensors: Iterable[PlannedTensor], architecture: Architecture
) -> dict[str, Shape]:
    """Put the model's own tensors in place of those of modules that are stored quantized.

    Only the quantizer knows what those are called, and it may not be installed. What the config
    says of a quantization counts for nothing here if the weights have none.
    """
    planned = {tensor.name: tensor for tensor in tensors}
    shapes = {name: tensor.shape for name, tensor in planned.items()}
    if not architecture.says_quantized:
        return shapes
    own = {**architecture.names, **architecture.hub_shapes}
    modules = {name.rpartition(".")[0] for name in own}
    quantized = {
        _module_of(name, modules)
        for name, tensor in planned.items()
        if tensor.dtype.kind == "scaled"
        or (tensor.dtype.kind == "int" and not architecture.is_integer(name))
    }
    for name in planned:
        if _module_of(name, modules) in quantized and shapes[name] != own.get(name):
            del shapes[name]
    for name, shape in architecture.hub_shapes.items():
        # A bias is never quantized.
        if name.rpartition(".")[0] in quantized and not name.endswith("bias"):
            shapes.setdefault(name, shape)
    return shapes


def _module_of(name: str, modules: set[str]) -> str | None:
    """Return the innermost of these modules that a name is in."""
    while "." in name:
        name = name.rpartition(".")[0]
        if name in modules:
            return name
    return None
