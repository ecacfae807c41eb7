"""Errors that are not ours: of Python, and of each library that hubmerge calls."""

from __future__ import annotations

import errno
import zipfile
from collections.abc import Callable, Iterator
from types import ModuleType
from typing import Any

import hf_xet
import httpx2
import huggingface_hub.errors as hub_errors
import safetensors
import torch
import zstandard

REQUEST = httpx2.Request("GET", "http://hub.invalid/")


def refusal(status: int) -> hub_errors.HfHubHTTPError:
    """What huggingface_hub makes of such an answer."""
    return hub_errors.HfHubHTTPError("no", response=httpx2.Response(status, request=REQUEST))


def wrapped(cause: BaseException) -> OSError:
    """What huggingface_hub makes of some errors of its HTTP library."""
    error = OSError("an upload failed")
    error.__cause__ = cause
    return error


# PyO3 makes this class for a panic in Rust, in no module that can be imported.
PanicException = type("PanicException", (BaseException,), {"__module__": "pyo3_runtime"})

FOREIGN: list[BaseException] = [
    OSError(errno.EIO, "Input/output error"),
    PermissionError(errno.EACCES, "Permission denied", "/x"),
    OSError("without a number"),
    FileNotFoundError(errno.ENOENT, "gone", b"/bytes"),
    MemoryError(),
    RecursionError("deep"),
    UnicodeDecodeError("utf-8", b"\xff", 0, 1, "invalid start byte"),
    ValueError("Exceeds the limit"),
    KeyError("key"),
    RuntimeError("torch's own"),
    torch.OutOfMemoryError("torch"),
    safetensors.SafetensorError("header"),
    zipfile.BadZipFile("zip"),
    zstandard.ZstdError("zstd"),
    AssertionError(),
    PanicException("Rust"),
]

FOREIGN_OF_THE_HUB: list[BaseException] = [
    *map(refusal, (400, 401, 404, 409, 412, 429, 500)),
    hub_errors.LocalTokenNotFoundError("no token"),
    hub_errors.OfflineModeIsEnabled("offline"),
    hub_errors.HFValidationError("a//b"),
    hub_errors.EntryNotFoundError("no entry"),
    hub_errors.XetDownloadError("xet"),
    httpx2.ConnectError("refused"),
    httpx2.ReadTimeout("slow"),
    httpx2.InvalidURL("not a URL"),
    httpx2.StreamConsumed(),
    wrapped(refusal(503)),
    wrapped(httpx2.HTTPStatusError("no", request=REQUEST, response=httpx2.Response(500))),
    hf_xet.XetAuthenticationError("401"),
    hf_xet.XetObjectNotFoundError("gone"),
    ConnectionError("hf_xet's own"),
]

LIBRARIES = (torch, safetensors, zipfile, hub_errors, httpx2, hf_xet)


def each_class(module: ModuleType) -> Iterator[type[BaseException]]:
    """The module's public classes of errors."""
    for value in vars(module).values():
        if isinstance(value, type) and issubclass(value, BaseException):
            yield value


def one_of(kind: type[Any]) -> BaseException:
    """An error of this class, whatever its constructor wants."""
    if issubclass(kind, hub_errors.HfHubHTTPError):
        return kind("no", response=httpx2.Response(500, request=REQUEST))
    error: BaseException = kind.__new__(kind, "no")
    return error


def raising(error: BaseException) -> Callable[..., Any]:
    """A function that takes anything and raises `error`."""

    def fail(*_args: Any, **_options: Any) -> Any:
        raise error

    return fail
