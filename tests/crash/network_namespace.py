"""A network namespace for a process: a machine whose cables to the database and the gateway can be cut."""

from __future__ import annotations

import os
import subprocess
import sys
from contextlib import suppress
from urllib.parse import urlsplit

import pytest

from tests.processes import RunningSimulator

NETWORK = "10.213.0.0/16"
NOT_PERMITTED = "network namespaces are not permitted here (they need root and `ip`), so no test cuts a network"


def run_ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True)


def require_namespaces() -> None:
    """Skip the test where this process may not create network namespaces."""
    try:
        run_ip("netns", "add", f"krea-{os.getpid()}")
        run_ip("netns", "delete", f"krea-{os.getpid()}")
    except (OSError, subprocess.CalledProcessError):
        pytest.skip(NOT_PERMITTED)


class NetworkNamespace:
    """A namespace with two cables (pairs of virtual interfaces): one to the database, one to the gateway.

    `number` tells the namespaces of a test apart. A cable that is cut loses all packets, both ways, without an error.
    """

    def __init__(self, number: int, simulator: RunningSimulator) -> None:
        self.name = f"krea-{os.getpid()}-{number}"
        self._cables = {kind: f"kb{os.getpid() % 100_000}{kind[0]}{number}" for kind in ("database", "gateway")}
        self.addresses: dict[str, str] = {}  # of this machine, as the namespace sees it
        run_ip("netns", "add", self.name)
        run_ip("-n", self.name, "link", "set", "lo", "up")
        for index, (kind, cable) in enumerate(self._cables.items()):
            net = f"10.213.{number * 2 + index}"
            run_ip("link", "add", cable, "type", "veth", "peer", "name", kind, "netns", self.name)
            run_ip("address", "add", f"{net}.1/24", "dev", cable)
            run_ip("link", "set", cable, "up")
            run_ip("-n", self.name, "address", "add", f"{net}.2/24", "dev", kind)
            run_ip("-n", self.name, "link", "set", kind, "up")
            self.addresses[kind] = f"{net}.1"
        urls = (simulator.gateway_url, simulator.cdn_url)
        ports = [str(urlsplit(url).port) for url in urls]
        command = [*self.wrapper, sys.executable, "-m", "tests.crash.relay", self.addresses["gateway"], *ports]
        self._relay = subprocess.Popen(command, stdout=subprocess.PIPE)
        assert self._relay.stdout
        assert self._relay.stdout.readline() == b"ready\n"

    @property
    def wrapper(self) -> list[str]:
        """The command that runs another one in the namespace."""
        return ["ip", "netns", "exec", self.name]

    def cut(self, kind: str) -> None:
        """Cut the cable to the `database` or the `gateway`."""
        run_ip("link", "set", self._cables[kind], "down")

    def connect(self, kind: str) -> None:
        run_ip("link", "set", self._cables[kind], "up")

    def close(self) -> None:
        self._relay.kill()
        self._relay.communicate()
        with suppress(subprocess.CalledProcessError):
            for cable in self._cables.values():
                run_ip("link", "delete", cable)
        run_ip("netns", "delete", self.name)
