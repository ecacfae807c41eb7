"""A finished distributed training run becomes a Hugging Face repository."""

from hubmerge.api import convert, inspect, plan, push, verify
from hubmerge.convert import ConvertResult
from hubmerge.errors import HubmergeError
from hubmerge.inspection import Inspection
from hubmerge.names.options import NamingOptions
from hubmerge.progress import Progress
from hubmerge.publish.push import PushResult
from hubmerge.verify import VerifyResult

__version__ = "0.1.0"

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
