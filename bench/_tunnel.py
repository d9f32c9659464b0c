"""A WireGuard tunnel in user space between the two hosts of a bed."""

from __future__ import annotations

import os
import shutil
import subprocess
import tempfile
import time
from pathlib import Path
from typing import Final

from testbed.namespaces import Bed, Host

TUN: Final = Path("/dev/net/tun")
CONTROL_FOLDER: Final = Path("/var/run/wireguard")
PORT: Final = 51_820
OVERHEAD_BYTES: Final = 80  # of a packet in the tunnel, as wg-quick counts it
PATIENCE_S: Final = 10.0


def why_no_tunnel() -> str:
    """Say why this machine cannot have a tunnel; empty when it can."""
    if os.geteuid() != 0:
        return "a WireGuard tunnel needs root"
    if not TUN.exists():
        return f"no {TUN}: this container has no TUN devices"
    missing = [tool for tool in ("wireguard-go", "wg", "setpriv") if shutil.which(tool) is None]
    if missing:
        return (
            f"{', '.join(missing)} not found: apt-get install wireguard-go wireguard-tools "
            "util-linux"
        )
    return ""


class Tunnel:
    """Two wireguard-go, one on each host; a context manager. The bed must outlive it."""

    def __init__(self, bed: Bed) -> None:
        self.mtu = min(bed.mtus) - OVERHEAD_BYTES
        self._bed = bed
        self._daemons: list[subprocess.Popen[bytes]] = []
        self._log = tempfile.TemporaryFile()  # noqa: SIM115  closed with the daemons

    def interface(self, host: Host) -> str:
        """Return the tunnel's device on a host: unique, as all hosts share one control folder."""
        return f"wg{os.getpid()}h{host.number}"

    def daemon_pid(self, host: Host) -> int:
        """Return the process that seals and opens for a host."""
        return self._daemons[host.number - 1].pid

    def __enter__(self) -> Tunnel:
        try:
            keys = [_run(["wg", "genkey"]) for _ in self._bed.hosts]
            for host in self._bed.hosts:
                self._start(host)
            for host, key in zip(self._bed.hosts, keys, strict=True):
                others = [other for other in self._bed.hosts if other is not host]
                peers = {_run(["wg", "pubkey"], keys[o.number - 1]).strip(): o for o in others}
                self._configure(host, key, peers)
        except BaseException:
            self.close()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """End the daemons; their devices go with them."""
        for daemon in self._daemons:
            daemon.terminate()
        for daemon in self._daemons:
            daemon.wait()
        self._log.close()

    def _start(self, host: Host) -> None:
        name = self.interface(host)
        # It ends with this process, however that ends: else it would keep the namespace.
        command = ["setpriv", "--pdeathsig", "TERM", "wireguard-go", "--foreground", name]
        daemon = subprocess.Popen(
            [*host.prefix, *command], stdout=self._log, stderr=subprocess.STDOUT
        )
        self._daemons.append(daemon)
        until = time.monotonic() + PATIENCE_S
        while not (CONTROL_FOLDER / f"{name}.sock").exists():
            if daemon.poll() is not None or time.monotonic() > until:
                self._log.seek(0)
                raise AssertionError(f"wireguard-go: {self._log.read().decode(errors='replace')}")
            time.sleep(0.01)

    def _configure(self, host: Host, key: str, peers: dict[str, Host]) -> None:
        name = self.interface(host)
        setting = ["private-key", "/dev/stdin", "listen-port", str(PORT)]
        for public_key, other in peers.items():
            setting += ["peer", public_key, "allowed-ips", f"{_inner_address(other)}/32"]
            setting += ["endpoint", f"{other.address}:{PORT}"]
        _run([*host.prefix, "wg", "set", name, *setting], key)
        in_host = ["ip", "-n", host.namespace]
        _run([*in_host, "addr", "add", f"{_inner_address(host)}/24", "dev", name])
        _run([*in_host, "link", "set", name, "mtu", str(self.mtu), "up"])


def version() -> str:
    """Return which wireguard-go this is."""
    return _run(["wireguard-go", "--version"]).splitlines()[0]


def daemon_cpu_s(pid: int) -> float:
    """Return the CPU time of a process so far, in the kernel's ticks of usually 10 ms."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    user, system = int(fields[11]), int(fields[12])  # proc(5): utime and stime, 14th and 15th
    return (user + system) / os.sysconf("SC_CLK_TCK")


def _inner_address(host: Host) -> str:
    return f"10.97.0.{host.number}"


def _run(command: list[str], text: str = "") -> str:
    ended = subprocess.run(command, input=text, capture_output=True, text=True, check=False)
    if ended.returncode != 0:
        raise AssertionError(f"{' '.join(command)}\n{ended.stderr}")
    return ended.stdout
