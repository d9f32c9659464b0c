"""Hosts with several links, as network namespaces: real kernels' ECMP, rates, losses and cuts.

    host 1                      switch                      host 2
    ┌───────────┐      ┌────────────────────────┐      ┌───────────┐
    │ e0  p1 ───┼──────┤ h1p1 ── rail1 ── h2p1  ├──────┼─── p1  e0 │   e0: the host's own address,
    │     p2 ───┼──────┤ h1p2 ── rail2 ── h2p2  ├──────┼─── p2     │   reached over all links by
    │     m0 ───┼──────┤ h1m0 ── rail0 ── h2m0  ├──────┼─── m0     │   ECMP that hashes ports
    └───────────┘      └────────────────────────┘      └───────────┘

Each rail is a bridge of its own, so a cable that is pulled at one end is not noticed at the other,
as behind a real switch. Rates are limited where the switch sends to a host, losses happen where a
host receives. m0 is for launchers and stores and has no faults. Neighbours are written down, so
that a silent failure stays silent: nobody asks who has an address and gets no answer.

Needs root, `ip`, `tc` and `nft`. Names are unique; closing the bed removes everything.
"""

from __future__ import annotations

import contextlib
import ctypes
import itertools
import os
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

__all__ = ["Bed", "Host", "why_not"]

CLONE_NEWNET = 0x40000000
LOSS_SCALE = 100_000
_beds = itertools.count()


def why_not() -> str:
    """Say why this machine cannot have a bed; empty when it can."""
    if os.geteuid() != 0:
        return "network namespaces need root"
    missing = [tool for tool in ("ip", "tc", "nft", "unshare") if shutil.which(tool) is None]
    if missing:
        return f"{', '.join(missing)} not found: apt-get install iproute2 nftables util-linux"
    name = f"sftry{os.getpid()}"
    if _call(["ip", "netns", "add", name]).returncode != 0:
        return "this container may not make network namespaces (CAP_SYS_ADMIN)"
    tried = _call(["ip", "netns", "exec", name, "nft", "add", "table", "inet", "x"])
    _call(["ip", "netns", "del", name])
    return "" if tried.returncode == 0 else f"nft does not work here: {tried.stderr.strip()}"


def _call(command: Sequence[str], text: str = "") -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, input=text, capture_output=True, text=True, check=False)


def _must(command: Sequence[str], text: str = "") -> str:
    ended = _call(command, text)
    assert ended.returncode == 0, f"{' '.join(command)}\n{text}\n{ended.stderr}"
    return ended.stdout


@dataclass(frozen=True)
class Host:
    """One namespace; number counts from 1."""

    number: int
    namespace: str
    address: str
    """Of e0."""
    management: str
    """Of m0."""

    @property
    def prefix(self) -> list[str]:
        """The start of a command line that runs on this host."""
        return ["ip", "netns", "exec", self.namespace]

    @contextlib.contextmanager
    def entered(self) -> Iterator[None]:
        """Move this thread, and whom it starts meanwhile, to this host."""
        libc = ctypes.CDLL(None, use_errno=True)
        home = os.open("/proc/thread-self/ns/net", os.O_RDONLY | os.O_CLOEXEC)
        there = os.open(f"/run/netns/{self.namespace}", os.O_RDONLY | os.O_CLOEXEC)
        try:
            assert libc.setns(there, CLONE_NEWNET) == 0, os.strerror(ctypes.get_errno())
            yield
        finally:
            assert libc.setns(home, CLONE_NEWNET) == 0
            os.close(home)
            os.close(there)


@dataclass(kw_only=True)
class _Fault:
    """What a host's filter does to what arrives over one link."""

    loss: float = 0.0
    bytes_max: int | None = None

    def rules(self, link: int) -> list[str]:
        match = f'iifname "p{link}" meta l4proto {{ tcp, udp }}'
        rules = []
        if self.bytes_max is not None:
            rules.append(f"{match} meta length > {self.bytes_max} counter drop")
        if self.loss >= 1.0:
            rules.append(f'iifname "p{link}" counter drop')
        elif self.loss > 0.0:
            share = round(self.loss * LOSS_SCALE)
            rules.append(f"{match} numgen random mod {LOSS_SCALE} < {share} counter drop")
        return rules


class Bed:
    """So many hosts with so many links each; a context manager.

    rate_mbit limits every link; mtu may differ from link to link. per_packet makes the links carry
    one packet at a time, where they would pass on whole bursts that the sender left unsegmented;
    then a loss is that of a packet.
    """

    def __init__(
        self,
        hosts: int = 2,
        links: int = 4,
        *,
        rate_mbit: float | None = None,
        queue_ms: float = 20.0,
        mtu: int | Sequence[int] = 1500,
        is_ipv6: bool = False,
        per_packet: bool = False,
    ) -> None:
        self.links = links
        self.mtus = [mtu] * links if isinstance(mtu, int) else list(mtu)
        self.is_ipv6 = is_ipv6
        self._queue_ms = queue_ms
        self._per_packet = per_packet
        name = f"sf{os.getpid()}n{next(_beds)}"
        self._switch = f"{name}s"
        self.hosts = [
            Host(number, f"{name}h{number}", self._ip(0, number), f"10.98.0.{number}")
            for number in range(1, hosts + 1)
        ]
        self._faults: dict[tuple[int, int], _Fault] = {}
        self._rates = {(host.number, link): rate_mbit for host in self.hosts for link in self._all}

    @property
    def _all(self) -> range:
        return range(1, self.links + 1)

    def _ip(self, rail: int, host: int) -> str:
        return f"fd99:{rail}::{host}" if self.is_ipv6 else f"10.99.{rail}.{host}"

    # Making and removing

    def __enter__(self) -> Bed:
        try:
            self._make()
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove all namespaces, and with them every device in them."""
        for namespace in (self._switch, *(host.namespace for host in self.hosts)):
            _call(["ip", "netns", "del", namespace])

    def _make(self) -> None:
        _remove_orphans()
        for namespace in (self._switch, *(host.namespace for host in self.hosts)):
            _must(["ip", "netns", "add", namespace])
        rails = [f"link add rail{k} type bridge mcast_snooping 0" for k in range(self.links + 1)]
        rails += [f"link set rail{k} mtu 9000 up" for k in range(self.links + 1)]
        self._ip_batch(self._switch, rails)
        for host in self.hosts:
            self._make_host(host)
        for host in self.hosts:
            self._introduce(host)
            self._write_faults(host)
            for link in self._all:
                self._write_rate(host.number, link, is_new=True)

    @staticmethod
    def _ip_batch(namespace: str, lines: Sequence[str]) -> None:
        _must(["ip", "-n", namespace, "-batch", "-"], "\n".join(lines) + "\n")

    def _make_host(self, host: Host) -> None:
        n = host.number
        # Hash policy 1: flows are told apart by ports, too, not by addresses alone.
        settings = [f"net.{ip}.fib_multipath_hash_policy=1" for ip in ("ipv4", "ipv6")]
        settings += ["net.ipv6.conf.all.keep_addr_on_down=1"]
        _must([*host.prefix, "sysctl", "-qw", *settings])
        lines = ["link set lo up", "link add e0 type veth peer name e0peer"]
        cables = [("m0", 9000), *((f"p{k}", self.mtus[k - 1]) for k in self._all)]
        for device, mtu in cables:
            lines.append(f"link add {device} type veth peer name h{n}{device} netns {self._switch}")
            lines.append(f"link set {device} mtu {mtu} address {_mac(device, n)} up")
        lines.append(f"link set e0 mtu {min(self.mtus)} up")
        lines += ["link set e0peer up", f"addr add {host.management}/24 dev m0"]
        for device, rail, bits in [("e0", 0, 0), *((f"p{k}", k, 1) for k in self._all)]:
            size = (64 if bits else 128) if self.is_ipv6 else (24 if bits else 32)
            lines.append(f"addr add {self._ip(rail, n)}/{size} dev {device}{self._nodad}")
        if self._per_packet:
            lines += [f"link set p{k} gso_max_segs 1" for k in self._all]
        self._ip_batch(host.namespace, lines)
        ports = [(f"h{n}{device}", device, mtu) for device, mtu in cables]
        self._ip_batch(
            self._switch,
            [
                f"link set {port} mtu {mtu} master rail{device[1:]} up"
                for port, device, mtu in ports
            ],
        )

    @property
    def _nodad(self) -> str:
        return " nodad" if self.is_ipv6 else ""

    def _introduce(self, host: Host, links: Sequence[int] | None = None) -> None:
        """Write down the way to every other host over these links: neighbours and next hops."""
        chosen = links if links is not None else list(self._all)
        neighbours, routes = [], []
        for other in self.hosts:
            if other is host:
                continue
            ways = [(f"p{k}", self._ip(k, other.number)) for k in chosen]
            neighbours += [
                f"neigh replace {ip} dev {device} lladdr {_mac(device, other.number)} nud permanent"
                for device, ip in ways
            ]
            hops = " ".join(f"nexthop via {ip} dev {device}" for device, ip in ways)
            routes.append(f"route replace {other.address} src {host.address} {hops}")
        self._ip_batch(host.namespace, neighbours)
        family = "-6" if self.is_ipv6 else "-4"
        _must(["ip", family, "-n", host.namespace, "-batch", "-"], "\n".join(routes) + "\n")

    # Faults

    def set_down(self, host: int, link: int, *, is_down: bool = True) -> None:
        """Pull a host's cable (or plug it in again); the other hosts notice nothing.

        What they send over that link vanishes; what this host sends takes other links at once.
        """
        one = self.hosts[host - 1]
        _must(["ip", "-n", one.namespace, "link", "set", f"p{link}", "down" if is_down else "up"])
        if not is_down:
            # The kernel forgets neighbours with their link, and a route with its last next hop.
            self._introduce(one, [each for each in self._all if self._is_up(one, each)])

    @staticmethod
    def _is_up(host: Host, link: int) -> bool:
        shown = _must(["ip", "-n", host.namespace, "-o", "link", "show", f"p{link}"])
        return "UP" in shown.partition("<")[2].partition(">")[0].split(",")

    def set_loss(self, share: float, *, host: int | None = None, link: int | None = None) -> None:
        """Lose this share of what arrives at a host over a link (None: any); 1.0: all of it."""
        for fault in self._faults_of(host, link):
            fault.loss = share
        self._write_all_faults(host)

    def set_bytes_max(
        self, bytes_max: int | None, *, host: int | None = None, link: int | None = None
    ) -> None:
        """Lose larger IP packets without a word, as where nobody may send ICMP."""
        for fault in self._faults_of(host, link):
            fault.bytes_max = bytes_max
        self._write_all_faults(host)

    def set_rate(
        self, mbit: float | None, *, host: int | None = None, link: int | None = None
    ) -> None:
        """Change how fast the switch sends to a host over a link."""
        for number in [host] if host else [each.number for each in self.hosts]:
            for which in [link] if link else self._all:
                is_new = self._rates[number, which] is None
                self._rates[number, which] = mbit
                self._write_rate(number, which, is_new=is_new)

    def _faults_of(self, host: int | None, link: int | None) -> list[_Fault]:
        return [
            self._faults.setdefault((number, which), _Fault())
            for number in ([host] if host else [each.number for each in self.hosts])
            for which in ([link] if link else self._all)
        ]

    def _write_all_faults(self, host: int | None) -> None:
        for each in self.hosts:
            if host in (None, each.number):
                self._write_faults(each)

    def _write_faults(self, host: Host) -> None:
        rules = [
            rule
            for (number, link), fault in self._faults.items()
            if number == host.number
            for rule in fault.rules(link)
        ]
        chain = "{ type filter hook prerouting priority -300; }"
        lines = ["add table inet faults", f"add chain inet faults arriving {chain}"]
        lines += ["flush chain inet faults arriving"]
        lines += [f"add rule inet faults arriving {rule}" for rule in rules]
        _must([*host.prefix, "nft", "-f", "-"], "\n".join(lines) + "\n")

    def _write_rate(self, host: int, link: int, *, is_new: bool) -> None:
        mbit = self._rates[host, link]
        device = f"h{host}p{link}"
        in_switch = ["ip", "netns", "exec", self._switch, "tc", "qdisc"]
        if mbit is not None:
            verb = "add" if is_new else "change"
            shape = f"{verb} dev {device} root tbf rate {round(mbit * 1000)}kbit burst 64kb latency"
            _must([*in_switch, *shape.split(), f"{self._queue_ms}ms"])
        elif not is_new:
            _must([*in_switch, "del", "dev", device, "root"])

    # For jobs

    def host_of(self, rank: int) -> Host:
        """Return where a rank lives: ranks take turns over the hosts."""
        return self.hosts[rank % len(self.hosts)]

    def environment(self, rank: int, world_size: int) -> Mapping[str, str]:
        """Return what a launcher would tell a rank on its host."""
        count = len(self.hosts)
        here = [other for other in range(world_size) if other % count == rank % count]
        return {
            "LOCAL_RANK": str(here.index(rank)),
            "LOCAL_WORLD_SIZE": str(len(here)),
            "SECUREFABRIC_SOCKET_IFNAME": "=e0",
            "GLOO_SOCKET_IFNAME": "e0",
        }

    def links_of(self, host: int, other: int, ports: Sequence[tuple[int, int]]) -> list[int]:
        """Return the link that a host's kernel hashes UDP onto, from a port to the other's port."""
        sender, receiver = self.hosts[host - 1], self.hosts[other - 1]
        ends = f"{receiver.address} from {sender.address}"
        asked = [f"route get {ends} ipproto udp sport {own} dport {its}" for own, its in ports]
        command = ["ip", "-6" if self.is_ipv6 else "-4", "-n", sender.namespace, "-o"]
        shown = _must([*command, "-batch", "-"], "\n".join(asked) + "\n")
        links = [int(link) for link in re.findall(r" dev p(\d+) ", shown)]
        assert len(links) == len(ports), shown
        return links

    def link_bytes(self, host: int) -> list[int]:
        """Return how many bytes a host has sent over each link so far."""
        counted = []
        for link in self._all:
            path = f"/sys/class/net/h{host}p{link}/statistics/rx_bytes"
            counted.append(int(_must(["ip", "netns", "exec", self._switch, "cat", path])))
        return counted

    def write_launch_agent(self, path: Path) -> Path:
        """Write what mpirun starts its daemons with: it takes a host's management address."""
        cases = "\n".join(
            f"  {host.management}) namespace={host.namespace} name=host{host.number} ;;"
            for host in self.hosts
        )
        path.write_text(
            "#!/bin/sh\n# ssh's place: agent HOST COMMAND...\n"
            f'case "$1" in\n{cases}\n  *) echo "no host $1" >&2; exit 1 ;;\nesac\nshift\n'
            "exec ip netns exec $namespace unshare --uts "
            'sh -c "hostname $name && $*"\n'
        )
        path.chmod(0o700)
        return path


def _remove_orphans() -> None:
    """Remove the namespaces of beds whose process was killed."""
    for path in Path("/run/netns").glob("sf*"):
        named = re.fullmatch(r"sf(\d+)n\d+(?:s|h\d+)", path.name)
        if named and not Path(f"/proc/{named[1]}").exists():
            _call(["ip", "netns", "del", path.name])


def _mac(device: str, host: int) -> str:
    rail = 0 if device == "m0" else int(device[1:])
    return f"02:53:46:00:{rail:02x}:{host:02x}"
