"""A hub and two machines, each with addresses of its own: one the hub can call, one behind address translation.

They are network namespaces of this machine, so only root can make them; elsewhere this is skipped.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import stand_in, wait_until

NEEDED = ("ip", "iptables", "nsenter")


# The near one is called at its address, the far one over its link.
BIND = {"near": ("--bind-address", "0.0.0.0"), "far": ()}


def entering(name: str) -> str:
    """What runs a command in a network namespace; `ip netns exec` would keep every mounted disk busy meanwhile."""
    return f"nsenter --net=/run/netns/{name}"


HUB, NEAR, ROUTER, FAR = "occ-hub", "occ-near", "occ-router", "occ-far"
# The hub and two hosts on one network; the far machine on a network of its own behind the second.
NETWORK = f"""
ip netns add {HUB}
ip netns add {NEAR}
ip netns add {ROUTER}
ip netns add {FAR}
ip -n {HUB} link add bridge type bridge
ip link add hub0 netns {HUB} type veth peer name eth0 netns {NEAR}
ip link add hub1 netns {HUB} type veth peer name eth0 netns {ROUTER}
ip link add eth1 netns {ROUTER} type veth peer name eth0 netns {FAR}
ip -n {HUB} link set hub0 master bridge up
ip -n {HUB} link set hub1 master bridge up
ip -n {HUB} addr add 10.77.0.1/24 dev bridge
ip -n {HUB} link set bridge up
ip -n {NEAR} addr add 10.77.0.2/24 dev eth0
ip -n {NEAR} link set eth0 up
ip -n {ROUTER} addr add 10.77.0.3/24 dev eth0
ip -n {ROUTER} link set eth0 up
ip -n {ROUTER} addr add 192.168.77.1/24 dev eth1
ip -n {ROUTER} link set eth1 up
ip -n {FAR} addr add 192.168.77.2/24 dev eth0
ip -n {FAR} link set eth0 up
ip -n {FAR} route add default via 192.168.77.1
{entering(ROUTER)} sh -c "echo 1 > /proc/sys/net/ipv4/ip_forward"
{entering(ROUTER)} iptables -t nat -A POSTROUTING -o eth0 -j MASQUERADE
ip -n {HUB} link set lo up
ip -n {NEAR} link set lo up
ip -n {FAR} link set lo up
"""


@dataclass(frozen=True)
class Machine:
    """One namespace with a home; what it said and was told goes to standard output, a transcript."""

    name: str
    home: Path
    variables: dict[str, str]

    def occ(self, *arguments: str, check: bool = True) -> str:
        """Run `occ` on this machine and return what it printed."""
        given = {"PATH": os.environ["PATH"], "HOME": str(self.home), "LANG": "C.UTF-8", **self.variables}
        done = subprocess.run(
            [*entering(self.name).split(), sys.executable, "-m", "occ_app.cli", *arguments],
            env=given,
            cwd=self.home,
            stdin=subprocess.DEVNULL,
            capture_output=True,
            text=True,
            timeout=60,
            check=False,
        )
        print(f"{self.name}$ occ {' '.join(arguments)}\n{done.stdout}{done.stderr}", end="")
        assert not check or done.returncode == 0, done.stderr
        return done.stdout.strip()


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[tuple[Machine, Machine, Machine]]:
    """The hub's machine, one beside it, and one behind address translation; all daemons are stopped afterwards."""
    if os.geteuid() != 0 or not all(map(shutil.which, NEEDED)):
        pytest.skip(f"NETWORK NAMESPACES ARE NOT TESTED: they want root and {' and '.join(NEEDED)}")
    made = [Machine(name, tmp_path / name, {"OCC_CLAUDE_BIN": str(stand_in(tmp_path))}) for name in (HUB, NEAR, FAR)]
    for machine in made:
        machine.home.mkdir()
    try:
        for line in NETWORK.strip().splitlines():
            subprocess.run(["sh", "-c", line], check=True, capture_output=True, timeout=20)
        yield made[0], made[1], made[2]
    finally:
        for machine, words in zip(made, (("hub", "stop"), ("stop",), ("stop",)), strict=True):
            machine.occ(*words, check=False)
        for name in (HUB, NEAR, ROUTER, FAR):
            subprocess.run(["ip", "netns", "del", name], check=False, capture_output=True, timeout=20)


def test_a_machine_beside_the_hub_and_one_behind_address_translation(
    machines: tuple[Machine, Machine, Machine], tmp_path: Path
) -> None:
    hub, near, far = machines
    url = "http://10.77.0.1:7700"
    assert url in hub.occ("hub", "start", "--bind-address", "0.0.0.0")
    key = hub.occ("hub", "keys", "create", "machines", "--for", "agent")
    for machine, name in ((near, "near"), (far, "far")):
        machine.occ("start", "--api-key", key, "--remote-url", url, "--name", name, "--label", name, *BIND[name])

    def reached() -> dict[str, str]:
        told = json.loads(hub.occ("hub", "agents", "--json"))["agents"]
        return {agent["name"]: agent["via"] for agent in told}

    wait_until(lambda: reached() == {"near": "direct", "far": "link"}, "the hub finds its ways")
    assert [line.split()[2:4] for line in hub.occ("hub", "agents").splitlines()[1:]] == [
        ["online", "link"],
        ["online", "direct"],
    ]
    client = hub.occ("hub", "keys", "create", "me", "--for", "client")
    project = near.home / "project"
    project.mkdir()
    (project / "notes.txt").write_text("buy milk\n")
    for label in ("near", "far"):
        told = near.occ("run", "--url", url, "--token", client, "--dir", str(project), "--label", label, "hello")
        assert told
    listed = hub.occ("jobs", "--hub")
    assert listed.count("succeeded") == 2
    by_agent = {x["agentId"] for x in json.loads(hub.occ("jobs", "--hub", "--json"))["executions"]}
    assert len(by_agent) == 2
