"""The guard of conftest.py: what leaves the machine is refused, what stays is not."""

from __future__ import annotations

import socket

import pytest


@pytest.mark.parametrize("family", [socket.AF_INET, socket.AF_INET6])
def test_a_connection_to_the_outside_is_refused(family):
    outside = (
        "192.0.2.1" if family == socket.AF_INET else "2001:db8::1"
    )  # addresses for documentation, RFC 5737 and 3849
    with socket.socket(family) as attempt, pytest.raises(PermissionError, match="stay on the loopback"):
        attempt.connect((outside, 80))
    with (
        socket.socket(family, socket.SOCK_DGRAM) as attempt,
        pytest.raises(PermissionError, match="stay on the loopback"),
    ):
        attempt.sendto(b"x", (outside, 80))


def test_the_loopback_address_is_open():
    with socket.socket() as server, socket.socket() as client:
        server.bind(("127.0.0.1", 0))
        server.listen()
        client.connect(server.getsockname())
