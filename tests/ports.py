"""Ports of this machine for what tests start."""

import contextlib
import random
import socket

#: Below those that other processes get for their connections.
_PORTS = range(20_000, 32_000)


def free_ports(count: int) -> list[int]:
    """Ports that nobody listens on, each another one."""
    found: list[int] = []
    with contextlib.ExitStack() as stack:
        # Not in the order of a seed: other processes of the tests look for ports as well.
        for port in random.SystemRandom().sample(_PORTS, len(_PORTS)):
            if len(found) == count:
                return found
            candidate = stack.enter_context(socket.socket())
            with contextlib.suppress(OSError):
                candidate.bind(("127.0.0.1", port))
                found.append(port)
    raise OSError("too few free ports")
