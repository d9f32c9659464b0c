"""``securefabric doctor``: what this host can do, and what would stop a job here."""

from __future__ import annotations

import os
import platform
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from . import __version__
from ._addresses import parse_ports
from ._cores import ENGINES_AUTO_MAX, usable_cores
from .errors import ConfigError, SecureFabricError
from .identity import read_key_text
from .options import Options, unknown_settings

__all__ = ["Finding", "examine"]

# From linux/udp.h; the socket module does not name them.
_SOL_UDP: Final = 17
_UDP_SEGMENT: Final = 103
_UDP_GRO: Final = 104
# Below this, bursts of a few peers overrun a receive buffer; see socket(7), rmem_max.
_RECEIVE_BUFFER_BYTES_WANTED: Final = 4 << 20
# Payloads at an MTU of 1,500 and of 9,000.
_PACKET_SIZES: Final = (1424, 8928)
_MEASURED_BYTES: Final = 4 << 20
_MEASURED_RUNS: Final = 5


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One line of the report."""

    topic: str
    detail: str
    verdict: str = "ok"
    """"ok", "note" (a job runs, but something is missing) or "FAIL" (no job can start here)."""

    @property
    def is_fatal(self) -> bool:
        """Whether no job can start on this host."""
        return self.verdict == "FAIL"

    def __str__(self) -> str:
        return f"{self.verdict:<5} {self.topic:<16} {self.detail}"


def examine() -> list[Finding]:
    """Examine this host with the settings of the environment."""
    checks: list[tuple[str, Callable[[], Iterator[Finding]]]] = [
        ("versions", _versions),
        ("cipher suites", _suites),
        ("offloads", _offloads),
        ("receive buffer", _receive_buffer),
        ("settings", _settings),
        ("interfaces", _interfaces),
        ("mpi", _mpi),
    ]
    findings: list[Finding] = []
    said: set[str] = set()  # of the settings, which several checks read
    for topic, check in checks:
        try:
            findings.extend(check())
        except (ImportError, OSError, RuntimeError, ValueError) as error:
            detail = str(error)
            if detail not in said:
                findings.append(Finding(topic=topic, detail=detail, verdict="FAIL"))
            if isinstance(error, ConfigError):
                said.add(detail)
    return findings


def _versions() -> Iterator[Finding]:
    system = f"Linux {platform.release()}, Python {platform.python_version()}"
    yield Finding(topic="securefabric", detail=f"{__version__} on {system}")
    import torch

    from ._native import check_torch_version

    check_torch_version()
    yield Finding(topic="torch", detail=f"{torch.__version__}, the one securefabric is built for")


def _suites() -> Iterator[Finding]:
    from . import _core

    for failure in _core.provider_failures():
        yield Finding(topic="cipher suite", detail=failure, verdict="note")
    for name, provider, refusal in _core.suites():
        if provider is None:
            yield Finding(topic="cipher suite", detail=f"{name}: {refusal}", verdict="note")
            continue
        speeds = ", ".join(f"{_seal_rate(name, size):.2f} at {size:,} B" for size in _PACKET_SIZES)
        detail = f"{name} by {provider}, known answers checked; one core seals, in GB/s: {speeds}"
        yield Finding(topic="cipher suite", detail=detail)
    yield Finding(topic="secret memory", detail=_core.secret_memory_status())


def _seal_rate(suite: str, packet_bytes: int) -> float:
    """Return how fast packets are sealed on one core, in GB/s; takes some milliseconds.

    Zeros in cache, so what a packet costs beside the cipher is left out. The best of a few short
    runs: others that use this core meanwhile only make it slower.
    """
    from . import _core

    packets = 1 + _MEASURED_BYTES // packet_bytes
    _core.exercise(suite, packet_bytes, packets)
    seconds = []
    for _ in range(_MEASURED_RUNS):
        started = time.perf_counter()
        _core.exercise(suite, packet_bytes, packets)
        seconds.append(time.perf_counter() - started)
    return packets * packet_bytes / min(seconds) / 1e9


def _offloads() -> Iterator[Finding]:
    for topic, option, value in (
        ("GSO", _UDP_SEGMENT, 1400),
        ("GRO", _UDP_GRO, 1),
    ):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.setsockopt(_SOL_UDP, option, value)
            except OSError as error:
                detail = f"the kernel refuses it ({error.strerror}): packets go one by one, slower"
                yield Finding(topic=topic, detail=detail, verdict="note")
            else:
                yield Finding(topic=topic, detail="offered by the kernel")


def _receive_buffer() -> Iterator[Finding]:
    granted = int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="ascii"))
    is_enough = granted >= _RECEIVE_BUFFER_BYTES_WANTED or os.geteuid() == 0
    detail = f"net.core.rmem_max is {granted:,} bytes"
    if not is_enough:
        detail += f"; faster with `sysctl -w net.core.rmem_max={_RECEIVE_BUFFER_BYTES_WANTED}`"
    yield Finding(topic="receive buffer", detail=detail, verdict="ok" if is_enough else "note")


def _settings() -> Iterator[Finding]:
    options = Options()
    yield Finding(topic="settings", detail="the SECUREFABRIC_* variables are valid")
    for unknown in unknown_settings():
        yield Finding(topic="settings", detail=unknown, verdict="note")
    if options.ports:
        yield _ports(options)
    limits = f"{options.epoch_age_s:,.6g} s or {options.epoch_bytes:,} bytes"
    yield Finding(topic="fresh keys", detail=f"of every link after {limits}, whichever comes first")
    yield _engines(options)
    if options.uses_certificates:
        yield _certificate(options)
        if not options.key_file:
            return
    try:
        text = read_key_text(options.key_file)
    except ConfigError as error:
        verdict = "FAIL" if options.key_file else "note"
        yield Finding(topic="job key", detail=str(error), verdict=verdict)
        return
    from . import _core

    key = _core.JobKey(text)
    yield Finding(topic="job key", detail=f"{options.key_file}: {key.key_id}, {key.suite}")


def _ports(options: Options) -> Finding:
    ports = parse_ports(options.ports)
    each = options.sockets_per_interface * (options.engines or 1)
    ranks = (ports.last - ports.first + 1) // each
    detail = f"{ports.first} to {ports.last}, enough for {ranks} ranks on this host, which "
    detail += f"take {each} each on each interface"
    verdict = "ok" if ranks > 0 else "FAIL"
    return Finding(topic="ports", detail=detail, verdict=verdict)


def _engines(options: Options) -> Finding:
    cores = usable_cores()
    if options.engines == 0:
        detail = f"{cores} cores here, divided among the ranks of this host, at most "
        detail += f"{ENGINES_AUTO_MAX} for each; SECUREFABRIC_ENGINES says another number"
        return Finding(topic="engines", detail=detail)
    detail = f"{options.engines} for each rank, {cores} cores here"
    if options.engines <= cores:
        return Finding(topic="engines", detail=detail)
    return Finding(topic="engines", detail=f"{detail}: they take turns", verdict="note")


def _certificate(options: Options) -> Finding:
    from .certificates import CertificateIdentity, own_certificate_paths

    rank = int(os.environ.get("RANK", "0"))
    try:
        identity = CertificateIdentity.load(options, rank, None)
        path, _ = own_certificate_paths(options, rank)
    except SecureFabricError as error:
        return Finding(topic="certificate", detail=str(error), verdict="FAIL")
    until = f"{identity.expires:%Y-%m-%d %H:%M} UTC"
    detail = f"{path}: rank {rank} of job {identity.job}, valid until {until}"
    return Finding(topic="certificate", detail=detail)


def _interfaces() -> Iterator[Finding]:
    from . import _C

    for name, address, mtu in _C.select_interfaces(Options().interfaces):
        yield Finding(topic="interface", detail=f"{name} {address} (MTU {mtu})")


def _mpi() -> Iterator[Finding]:
    try:
        import mpi4py

        library = mpi4py.get_config()  # does not start MPI, which would need its launcher
    except ImportError as error:
        yield Finding(topic="mpi", detail=f"no mpi:// ({error})", verdict="note")
        return
    built = f" ({library['mpicc']})" if library.get("mpicc") else ""
    yield Finding(topic="mpi", detail=f"mpi4py {mpi4py.__version__}{built}")
