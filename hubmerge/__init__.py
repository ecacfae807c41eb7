"""A finished distributed training run becomes a Hugging Face repository."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubmerge.api import convert, inspect, plan, push, verify
    from hubmerge.conversion.to_folder import ConvertResult
    from hubmerge.errors import HubmergeError
    from hubmerge.names.options import NamingOptions
    from hubmerge.planning.inspection import Inspection
    from hubmerge.progress import Progress
    from hubmerge.publish.push import PushResult
    from hubmerge.verification import VerifyResult

__version__ = "0.1.0"

# Imported when first asked for: `hubmerge --help` needs none of it.
_MODULES = {
    "ConvertResult": "conversion.to_folder",
    "HubmergeError": "errors",
    "Inspection": "planning.inspection",
    "NamingOptions": "names.options",
    "Progress": "progress",
    "PushResult": "publish.push",
    "VerifyResult": "verification",
    "convert": "api",
    "inspect": "api",
    "plan": "api",
    "push": "api",
    "verify": "api",
}

__all__ = [
    "ConvertResult",
    "HubmergeError",
    "Inspection",
    "NamingOptions",
    "Progress",
    "PushResult",
    "VerifyResult",
    "__version__",
    "convert",
    "inspect",
    "plan",
    "push",
    "verify",
]


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


if not TYPE_CHECKING:  # else any name would be one of the package's

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"hubmerge.{_MODULES[name]}"), name)
        return value
