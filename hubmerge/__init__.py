"""A finished distributed training run becomes a Hugging Face repository."""

from hubmerge.api import convert, inspect, plan
from hubmerge.convert import ConvertResult
from hubmerge.errors import HubmergeError
from hubmerge.inspection import Inspection
from hubmerge.progress import Progress

__version__ = "0.1.0"

__all__ = [
    "ConvertResult",
    "HubmergeError",
    "Inspection",
    "Progress",
    "__version__",
    "convert",
    "inspect",
    "plan",
]
