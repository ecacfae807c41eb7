"""What transformers knows about a model from its config alone: names, shapes, ties, precision."""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Collection, Iterable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from hubmerge.checkpoint.schema import StoredTensor
from hubmerge.hf_format.asset_names import CONFIG
from hubmerge.hf_format.assets import Assets
from hubmerge.names.conversion_rules import reverse_conversion
from hubmerge.names.views import TensorView
from hubmerge.system.offline import no_network

# Numbers in a config that say how many modules there are, and more than any model has.
_COUNT = re.compile(r"(?:^|_)(?:layers?|blocks|experts|depth)$")
_MAX_MODULES = 10_000

# What a config says of a quantization, and of how a model is run: packages and hardware for it may
# be missing here.
_QUANTIZATION = frozenset({"quantization_config", "compression_config"})
_OF_THE_MACHINE = frozenset(
    {
        "attn_implementation",
        "_attn_implementation",
        "_attn_implementation_internal",
        "_attn_implementation_autoset",
        "experts_implementation",
        "_experts_implementation",
        "_experts_implementation_internal",
        "use_kernels",
    }
)


class UnknownArchitectureError(Exception):
    """transformers cannot build the model; the message says why."""


@dataclass(frozen=True)
class Architecture:
    """A model without weights.

    Attributes:
        model: on the meta device.
        names: its own names, with their shapes, as a training run holds them in memory.
        ties: names that share another's tensor, and that other.
        says_quantized: whether the config describes a quantization, which the model does not have.
    """

    model: Any
    names: dict[str, tuple[int, ...]]
    ties: dict[str, str]
    says_quantized: bool = False

    @property
    def model_class(self) -> Any:
        return type(self.model)

    def to_hub(self, stored: Mapping[str, TensorView]) -> dict[str, TensorView]:
        """What `save_pretrained` would make of these, by the names of the Hub's layout."""
        return reverse_conversion(self.model, stored)

    @cached_property
    def hub_shapes(self) -> dict[str, tuple[int, ...]]:
        """The names that `save_pretrained` gives, ties included, with their shapes."""
        own = {
            name: TensorView.whole(StoredTensor(name, "", shape, ()))
            for name, shape in self.names.items()
        }
        return {name: part.shape for name, part in self.to_hub(own).items()}

    def build_again(self) -> Any:
        """Build another model of the same kind."""
        with no_network(), quiet_transformers(), _on_meta_device():
            return self.model_class(deepcopy(self.model.config))

    def is_integer(self, name: str) -> bool:
        """Return whether this is a tensor of the model, by its name in memory, of integers."""
        tensor = self._state.get(name)
        return not (tensor is None or tensor.is_floating_point())

    @cached_property
    def _state(self) -> dict[str, Any]:
        return dict(self.model.state_dict())

    def ignores_missing(self, name: str) -> bool:
        """Return whether the loader does without this tensor."""
        return _matches(self.model._keys_to_ignore_on_load_missing, name)

    def ignores_unexpected(self, name: str) -> bool:
        """Return whether the loader passes over this tensor, which the model lacks."""
        return _matches(self.model._keys_to_ignore_on_load_unexpected, name)

    def stays_fp32(self, name: str, dtype: str) -> bool:
        """Would transformers keep this tensor, by its name in memory, in fp32 beside `dtype`?"""
        patterns = set(self.model._keep_in_fp32_modules_strict or ())
        if dtype == "float16":  # of less range than bfloat16
            patterns |= set(self.model._keep_in_fp32_modules or ())
        return any(re.search(pattern.replace("*", ".*"), name) for pattern in patterns)


def load_architecture(assets: Assets, *, trust_remote_code: bool) -> Architecture:
    """Build the model that the assets' config describes, without memory for its weights.

    Raises:
        UnknownArchitectureError: transformers does not know it, or its config is not usable.
    """
    with tempfile.TemporaryDirectory() as folder, no_network(), quiet_transformers():
        says_quantized = _write_config(assets, Path(folder), with_code=trust_remote_code)
        try:
            model = _build(Path(folder), trust_remote_code=trust_remote_code)
        except UnknownArchitectureError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a config makes a model's code raise
            reason = str(error).strip().partition("\n")[0]
            raise UnknownArchitectureError(f"{type(error).__name__}: {reason}") from None
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return Architecture(model, names, ties, says_quantized)


def _matches(patterns: Iterable[str] | None, name: str) -> bool:
    return any(re.search(pattern, name) for pattern in patterns or ())


def _write_config(assets: Assets, folder: Path, *, with_code: bool) -> bool:
    """Put the config into `folder`, and the model's own code only if that may be run.

    Left out of the config is what depends on the machine, and changes no name.

    Returns:
        Whether the config describes a quantization.
    """
    config = _without(assets.config or {}, _OF_THE_MACHINE)
    plain = _without(config, _QUANTIZATION)
    (folder / CONFIG).write_text(json.dumps(plain))
    for asset in assets.files:
        if with_code and asset.name.endswith(".py"):
            (folder / asset.name).write_bytes(asset.read())
    return bool(plain != config)


def _without(value: Any, keys: Collection[str]) -> Any:
    """Return a JSON value without these keys, at any depth."""
    if isinstance(value, dict):
        return {key: _without(inner, keys) for key, inner in value.items() if key not in keys}
    if isinstance(value, list):
        return [_without(inner, keys) for inner in value]
    return value


@contextmanager
def _on_meta_device() -> Iterator[None]:
    """Make tensors without data; numbers that a model's code reads while it is built are real."""
    import torch
    from transformers.initialization import meta_device_safe_creation_ops

    with torch.device("meta"), meta_device_safe_creation_ops():
        yield


def _build(folder: Path, *, trust_remote_code: bool) -> Any:
    import transformers

    config = transformers.AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
    check_module_counts(config.to_dict())
    model_class = _model_class(config)
    with _on_meta_device():
        if model_class is not None:
            return model_class(config)
        if trust_remote_code:
            for kind in config.auto_map if getattr(config, "auto_map", None) else ():
                if kind.startswith("AutoModel"):
                    auto = getattr(transformers, kind)
                    return auto.from_config(config, trust_remote_code=True)
    named = ", ".join(config.architectures or ()) or config.model_type
    raise UnknownArchitectureError(f"transformers has no class {named}")


def check_module_counts(config: Mapping[str, Any]) -> None:
    """A config may come from a repository; one of a million layers would be built for ever."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_module_counts(value)
        elif isinstance(value, int) and value > _MAX_MODULES and _COUNT.search(name):
            raise UnknownArchitectureError(f"{name} is {value:,}, more than any model has")


def _model_class(config: Any) -> Any:
    import transformers

    if config.architectures:
        # The config may come from a repository: nothing but a model is built because it says so.
        named = getattr(transformers, str(config.architectures[0]), None)
        is_model = isinstance(named, type) and issubclass(named, transformers.PreTrainedModel)
        return named if is_model else None
    for mapping in (
        transformers.MODEL_FOR_CAUSAL_LM_MAPPING,
        transformers.MODEL_FOR_IMAGE_TEXT_TO_TEXT_MAPPING,
        transformers.MODEL_MAPPING,
    ):
        if type(config) in mapping:
            return mapping[type(config)]
    return None


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """No progress bar and no log line from transformers: its verdict is read, not watched."""
    from transformers.utils import logging

    verbosity, bars = logging.get_verbosity(), logging.is_progress_bar_enabled()
    logging.set_verbosity(logging.CRITICAL + 1)
    logging.disable_progress_bar()
    try:
        yield
    finally:
        logging.set_verbosity(verbosity)
        if bars:
            logging.enable_progress_bar()
