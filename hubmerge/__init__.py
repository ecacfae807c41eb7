"""A finished distributed training run becomes a Hugging Face repository."""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from hubmerge.api import convert, inspect, plan, push, verify
    from hubmerge.conversion.to_folder import ConvertResult
    from hubmerge.errors import (
        AccessError,
        BlobMissingError,
        CheckpointError,
        CommitConflictError,
        DamagedFileError,
        HubmergeError,
        InsufficientSpaceError,
        MismatchError,
        NoModelWeightsError,
        NotACheckpointError,
        RetriesExhaustedError,
        TargetChangedError,
        TransientError,
        UnsafeInputError,
        UsageError,
    )
    from hubmerge.names.options import NamingOptions
    from hubmerge.planning.inspection import Inspection
    from hubmerge.planning.plan import Plan
    from hubmerge.progress import Progress
    from hubmerge.publish.push import PushResult
    from hubmerge.verification import VerifyResult

__version__ = "0.1.0"

# Imported on first use: `hubmerge --help` needs none of it.
_MODULES = {
    "AccessError": "errors",
    "BlobMissingError": "errors",
    "CheckpointError": "errors",
    "CommitConflictError": "errors",
    "ConvertResult": "conversion.to_folder",
    "DamagedFileError": "errors",
    "HubmergeError": "errors",
    "Inspection": "planning.inspection",
    "InsufficientSpaceError": "errors",
    "MismatchError": "errors",
    "NamingOptions": "names.options",
    "NoModelWeightsError": "errors",
    "NotACheckpointError": "errors",
    "Plan": "planning.plan",
    "Progress": "progress",
    "PushResult": "publish.push",
    "RetriesExhaustedError": "errors",
    "TargetChangedError": "errors",
    "TransientError": "errors",
    "UnsafeInputError": "errors",
    "UsageError": "errors",
    "VerifyResult": "verification",
    "convert": "api",
    "inspect": "api",
    "plan": "api",
    "push": "api",
    "verify": "api",
}

__all__ = [
    "AccessError",
    "BlobMissingError",
    "CheckpointError",
    "CommitConflictError",
    "ConvertResult",
    "DamagedFileError",
    "HubmergeError",
    "Inspection",
    "InsufficientSpaceError",
    "MismatchError",
    "NamingOptions",
    "NoModelWeightsError",
    "NotACheckpointError",
    "Plan",
    "Progress",
    "PushResult",
    "RetriesExhaustedError",
    "TargetChangedError",
    "TransientError",
    "UnsafeInputError",
    "UsageError",
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


if not TYPE_CHECKING:  # or else any name would be one of the package's

    def __getattr__(name: str) -> Any:
        if name not in _MODULES:
            raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
        value = globals()[name] = getattr(import_module(f"hubmerge.{_MODULES[name]}"), name)
        return value
