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
from typing import Any, NamedTuple

from hubmerge.hf_format.asset_names import CONFIG
from hubmerge.hf_format.assets import Assets, read_json
from hubmerge.names.conversion_rules import OnHub, reverse_conversion, stand_ins
from hubmerge.names.model_class import bases_in, class_called, nearest_class, related_classes
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
        stands_for: what the config names and transformers lacks, as "the class X", if the model is
            the nearest that it has.
        is_certain: False if code that comes with the model, and is not run here, defines its class:
            names are compared with those of another one, and its layout on the Hub is not known.
    """

    model: Any
    names: dict[str, tuple[int, ...]]
    ties: dict[str, str]
    says_quantized: bool = False
    stands_for: str = ""
    is_certain: bool = True

    @property
    def model_class(self) -> Any:
        return type(self.model)

    def to_hub(self, stored: Mapping[str, TensorView]) -> OnHub:
        """Return what `save_pretrained` would make of these tensors, by name in memory.

        A tensor whose rule takes others that are missing keeps its name in memory.
        """
        if not self.is_certain:
            return OnHub.unchanged(stored)
        alone = {
            name
            for made_of in self._on_hub.made_of.values()
            if not stored.keys() >= set(made_of)
            for name in made_of
        }
        whole = {name: view for name, view in stored.items() if name not in alone}
        on_hub = reverse_conversion(self.model, whole)
        return on_hub.with_unchanged({name: stored[name] for name in stored if name in alone})

    @cached_property
    def hub_shapes(self) -> dict[str, tuple[int, ...]]:
        """The names that `save_pretrained` gives, ties included, with their shapes."""
        return {name: view.shape for name, view in self._on_hub.tensors.items()}

    @cached_property
    def _on_hub(self) -> OnHub:
        own = stand_ins(self.names)
        return reverse_conversion(self.model, own) if self.is_certain else OnHub.unchanged(own)

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
        """Return whether the loader ignores this tensor, which the model lacks."""
        return _matches(self.model._keys_to_ignore_on_load_unexpected, name)

    def stays_fp32(self, name: str, dtype: str) -> bool:
        """Return whether transformers keeps this tensor in fp32 when the rest is `dtype`."""
        patterns = set(self.model._keep_in_fp32_modules_strict or ())
        if dtype == "float16":  # of less range than bfloat16
            patterns |= set(self.model._keep_in_fp32_modules or ())
        return any(re.search(pattern.replace("*", ".*"), name) for pattern in patterns)


def load_architecture(
    assets: Assets, *, trust_remote_code: bool, keys: Collection[str] = ()
) -> Architecture:
    """Build the model that the assets' config describes, without memory for its weights.

    Args:
        assets: the config, and the model's own code.
        trust_remote_code: run that code.
        keys: names in the checkpoint, which show the class if the config does not.

    Raises:
        UnknownArchitectureError: transformers does not know it, or its config is not usable.
    """
    with tempfile.TemporaryDirectory() as folder, no_network(), quiet_transformers():
        says_quantized = _write_config(assets, Path(folder), with_code=trust_remote_code)
        try:
            built = _build(assets, Path(folder), keys, trusts_code=trust_remote_code)
        except UnknownArchitectureError:
            raise
        except Exception as error:  # noqa: BLE001 - whatever a config makes a model's code raise
            reason = str(error).strip().partition("\n")[0]
            raise UnknownArchitectureError(f"{type(error).__name__}: {reason}") from None
    model, stands_for, is_certain = built
    names = {name: tuple(tensor.shape) for name, tensor in model.state_dict().items()}
    ties = dict(getattr(model, "all_tied_weights_keys", None) or {})
    return Architecture(model, names, ties, says_quantized, stands_for, is_certain)


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


class _Built(NamedTuple):
    """A model, and how its class was found; see `Architecture`."""

    model: Any
    stands_for: str
    is_certain: bool


def _build(assets: Assets, folder: Path, keys: Collection[str], *, trusts_code: bool) -> _Built:
    raw = assets.config or {}
    architectures = raw.get("architectures")
    name = str(architectures[0]) if isinstance(architectures, list) and architectures else ""
    code = bases_in(asset.read() for asset in assets.files if asset.name.endswith(".py"))
    config, knows_type = _parse_config(folder, name, code, trusts_code=trusts_code)
    check_module_counts(config.to_dict())
    unknown_type = "" if knows_type else f"the model_type {raw.get('model_type')!r}"
    auto_map = raw.get("auto_map") or {}
    own = [kind for kind in auto_map if kind.startswith("AutoModel")]
    with _on_meta_device():
        if (found := class_called(name)) is not None:
            return _Built(found(config), unknown_type, is_certain=True)
        if own and trusts_code:
            import transformers

            auto = getattr(transformers, _auto_class(auto_map, own, name))
            return _Built(auto.from_config(config, trust_remote_code=True), "", is_certain=True)
        nearest = nearest_class(config, name, code, keys, lambda found: found(config))
        if nearest is not None:
            return _Built(nearest(config), f"the class {name}" * bool(name), is_certain=not own)
    raise UnknownArchitectureError(f"it has no class {name or config.model_type}")


def _auto_class(auto_map: Mapping[str, Any], kinds: list[str], name: str) -> str:
    """Return the Auto class that leads to the class `name`, or to any model."""
    leading = [kind for kind in kinds if str(auto_map[kind]).endswith(f".{name}")]
    return (leading or kinds)[0]


def _parse_config(
    folder: Path, name: str, code: Mapping[str, list[str]], *, trusts_code: bool
) -> tuple[Any, bool]:
    """Return transformers' config, and whether it is by the `model_type`.

    It is else that of a class that `name` leads to.
    """
    from transformers import AutoConfig

    try:
        return AutoConfig.from_pretrained(folder, trust_remote_code=trusts_code), True
    except Exception:
        for found in related_classes(name, code):
            if found.config_class is not None:
                config = read_json(folder / CONFIG)
                return found.config_class.from_dict(_without(config, {"model_type"})), False
        raise


def check_module_counts(config: Mapping[str, Any]) -> None:
    """Refuse a config that asks for more modules than any model has: building would not end."""
    for name, value in config.items():
        if isinstance(value, Mapping):
            check_module_counts(value)
        elif isinstance(value, int) and value > _MAX_MODULES and _COUNT.search(name):
            raise UnknownArchitectureError(f"{name} is {value:,}, more than any model has")


@contextmanager
def quiet_transformers() -> Iterator[None]:
    """Silence the progress bars and log messages of transformers."""
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
