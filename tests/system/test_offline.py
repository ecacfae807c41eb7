"""No network in one thread, while others keep theirs."""

from __future__ import annotations

import socket
import threading
import time
from collections.abc import Iterator

import pytest
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import LocalEntryNotFoundError

from hubmerge.system.offline import NetworkRefusedError, no_network


@pytest.fixture
def address() -> Iterator[tuple[str, int]]:
    """Where something listens."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield server.getsockname()


def test_neither_a_name_nor_an_address_is_reached(address: tuple[str, int]) -> None:
    """Whatever asks for a connection is told so at once, and no longer after the block."""
    with no_network():
        with pytest.raises(NetworkRefusedError):
            socket.getaddrinfo("localhost", 80)
        with pytest.raises(NetworkRefusedError), socket.socket() as client:
            client.connect(address)
        with no_network():
            pass
        with pytest.raises(NetworkRefusedError):
            socket.create_connection(address)
    socket.create_connection(address).close()


def test_huggingface_hub_does_not_try_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """It knows at once that the file is not there, and does not wait for a network."""
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(time, "sleep", lambda _: pytest.fail("waits to try again"))
    with no_network(), pytest.raises(LocalEntryNotFoundError):
        hf_hub_download("someone/not-in-the-cache", "config.json")


def test_another_thread_keeps_the_network(address: tuple[str, int]) -> None:
    """A push of the same process goes on while names are checked."""
    reached = []
    with no_network():
        other = threading.Thread(target=lambda: reached.append(socket.create_connection(address)))
        other.start()
        other.join()
    (connection,) = reached
    connection.close()
