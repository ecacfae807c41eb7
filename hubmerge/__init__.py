"""A finished distributed training run becomes a Hugging Face repository."""

from hubmerge.api import convert, inspect, plan, push
from hubmerge.convert import ConvertResult
from hubmerge.errors import HubmergeError
from hubmerge.inspection import Inspection
from hubmerge.progress import Progress
from hubmerge.publish.push import PushResult

__version__ = "0.1.0"

__all__ = [
    "ConvertResult",
    "HubmergeError",
    "Inspection",
    "Progress",
    "PushResult",
    "__version__",
    "convert",
    "inspect",
    "plan",
    "push",
]
