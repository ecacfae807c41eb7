"""What diffusers knows about a model from the class that its config names."""

from __future__ import annotations

import importlib
import re

from hubmerge.errors import HubmergeError


class UnknownModelError(HubmergeError):
    """diffusers is not installed, or has no such class; the message says which."""


def kept_in_fp32(class_name: str) -> tuple[str, ...]:
    """Return regexes of the names that diffusers keeps in fp32, whatever a model is loaded as.

    Raises:
        UnknownModelError: it cannot be told.
    """
    try:
        diffusers = importlib.import_module("diffusers")
        model_class = getattr(diffusers, class_name, None)
    except Exception as error:  # noqa: BLE001 - whatever a package raises that does not fit others
        raise UnknownModelError(f"diffusers cannot be imported ({type(error).__name__})") from None
    if not (isinstance(model_class, type) and issubclass(model_class, diffusers.ModelMixin)):
        raise UnknownModelError(f"diffusers has no model {class_name}")
    modules: str | list[str] = getattr(model_class, "_keep_in_fp32_modules", None) or []
    return tuple(
        rf"(?:^|\.){re.escape(module)}(?:\.|$)"
        for module in ([modules] if isinstance(modules, str) else modules)
    )
