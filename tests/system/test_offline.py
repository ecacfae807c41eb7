"""No network in one thread, while others keep theirs."""

from __future__ import annotations

import socket
import threading
from collections.abc import Iterator

import pytest

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


def test_another_thread_keeps_the_network(address: tuple[str, int]) -> None:
    """A push of the same process goes on while names are checked."""
    reached = []
    with no_network():
        other = threading.Thread(target=lambda: reached.append(socket.create_connection(address)))
        other.start()
        other.join()
    (connection,) = reached
    connection.close()
