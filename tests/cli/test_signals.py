"""Signals that arrive where an exception of a handler does not get through."""

from __future__ import annotations

import signal
import subprocess
import sys

import pytest

from hubmerge.cli.signals import _CLEAN_UP_SECONDS
from tests.support.patience import end_soon

BEFORE = """
import hashlib, threading, time, weakref
from hubmerge.cli.signals import ended_by_signals

def say(number):
    print("said", int(number), flush=True)

def work():
    try:
        wait()
    finally:
        print("cleaned up", flush=True)

class Finalized:
    def __del__(self):
        print("ready", flush=True)
        time.sleep(600)

def in_a_finalizer():
    Finalized()
    time.sleep(600)

def in_a_callback():
    def callback(_):
        print("ready", flush=True)
        time.sleep(600)
    target = type("Target", (), {})()
    reference = weakref.ref(target, callback)
    del target
    time.sleep(600)

def in_native_code():
    threading.Timer(0.5, print, ["ready"], {"flush": True}).start()
    hashlib.pbkdf2_hmac("sha256", b"", b"", 100_000_000)

def in_code_that_drops_it():
    try:
        print("ready", flush=True)
        time.sleep(600)
    except BaseException:
        time.sleep(600)

def in_python():
    print("ready", flush=True)
    time.sleep(600)

with ended_by_signals(say):
    work()
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize(
    ("where", "cleans_up"),
    [
        ("in_python", True),
        ("in_a_finalizer", True),
        ("in_a_callback", True),
        ("in_native_code", False),
        ("in_code_that_drops_it", False),
    ],
)
def test_it_ends_within_two_seconds(where: str, cleans_up: bool, number: signal.Signals) -> None:
    """The main thread cleans up where it can; the process ends, and says so once, in each case."""
    assert _CLEAN_UP_SECONDS <= 1  # the rest of the two is for a busy machine
    program = BEFORE.replace("wait()", f"{where}()")
    process = subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    out, err = end_soon(process, number)
    assert process.returncode == 128 + number
    assert out == "cleaned up\n" * cleans_up + f"said {int(number)}\n"
    assert err == ""


def test_what_was_there_comes_back() -> None:
    """Handlers, hook and wakeup descriptor; a signal that is ignored stays so."""
    program = """
import os, signal, sys
from hubmerge.cli.signals import ended_by_signals
signal.signal(signal.SIGINT, signal.SIG_IGN)
def state():
    fd = signal.set_wakeup_fd(-1)
    signal.set_wakeup_fd(fd)
    return [fd, sys.unraisablehook, *map(signal.getsignal, (signal.SIGINT, signal.SIGTERM))]
before, files = state(), os.listdir("/dev/fd")
with ended_by_signals(print):
    assert state()[2:] != before[2:] and state()[2] == signal.SIG_IGN
    os.kill(os.getpid(), signal.SIGINT)
assert state() == before and os.listdir("/dev/fd") == files
print("kept")
"""
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=False
    )
    assert (done.stdout, done.stderr) == ("kept\n", "")
