"""The settings of a process's fabric.

Each field of ``Options`` has a twin in the environment, so that a launcher can set it for scripts
that nobody wants to change. A field that is given wins over its twin, the twin over the default.
No setting turns encryption off.
"""

from __future__ import annotations

import dataclasses
import difflib
import hashlib
import os
import warnings
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any, Final, TypeVar

from ._addresses import parse_advertised, parse_ports
from .errors import ConfigError
from .identity import SUITES

__all__ = ["Options", "options_from", "warn_of_unknown_settings"]

SPIN_POLICIES: Final = ("auto", "always", "never")
GENERATION_BITS: Final = 22  # PROTOCOL.md §4
EPOCH_BYTES_MIN: Final = 1 << 16  # less would change keys for every message
EPOCH_BYTES_MAX: Final = 1 << 60
SOCKETS_MAX: Final = 64  # of one interface; a roster entry has room for 128 addresses of an engine
ENGINES_MAX: Final = 16  # roster.py refuses more
PATHS_PER_PEER_MAX: Final = 256  # transport/limits.h, kPathsPerPeerMax
JOB_ID_BYTES_MAX: Final = 64  # roster.py refuses longer ones
_PREFIX: Final = "SECUREFABRIC_"
_SETTINGS_ELSEWHERE: Final = {  # no fields of Options
    "SECUREFABRIC_STORE",
    "SECUREFABRIC_STORE_BIND",
    "SECUREFABRIC_STRICT",
}
_SECONDS_MAX: Final = 24 * 3600.0
_FLAGS: Final = {"1": True, "true": True, "on": True, "0": False, "false": False, "off": False}

T = TypeVar("T")


def _whole(text: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise ValueError("it must be a whole number") from None


def _whole_or_auto(text: str) -> int:
    if text.strip().lower() == "auto":
        return 0
    try:
        return _whole(text)
    except ValueError:
        raise ValueError('it must be a whole number, or "auto"') from None


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise ValueError("it must be a number") from None


def _flag(text: str) -> bool:
    try:
        return _FLAGS[text.strip().lower()]
    except KeyError:
        raise ValueError("say 1 or 0") from None


def _setting(twin: str, default: T, parse: Callable[[str], T]) -> T:
    """Declare a field whose value, when it is not given, comes from the environment."""

    def from_environment() -> T:
        text = os.environ.get(twin)
        if text is None or text == "":
            return default
        try:
            return parse(text)
        except ValueError as error:
            raise ConfigError(f"{twin}={text!r} is not usable: {error}") from None

    # dataclasses.field() is typed as the field's value, hence the Any.
    declared: Any = dataclasses.field(default_factory=from_environment, metadata={"twin": twin})
    result: T = declared
    return result


@dataclass(frozen=True, kw_only=True)
class Options:
    """Settings of the one fabric that all groups of a process share.

    Pass it as ``pg_options`` to ``init_process_group``, or set the twins. Raises ConfigError for a
    value that is out of range.
    """

    key_file: str = _setting("SECUREFABRIC_KEY_FILE", "", str)
    """The job key that ``securefabric keygen`` wrote; the same file on every host."""

    job_id: str = _setting("SECUREFABRIC_JOB_ID", "", str)
    """Tells apart jobs that share a key; empty: torchrun's run id, Slurm's job id or "default"."""

    cert_file: str = _setting("SECUREFABRIC_CERT_FILE", "", str)
    """This rank's certificate (PEM), intermediates behind it; "{rank}" stands for the rank.

    With it ranks prove themselves by certificates, and need no job key. Makers: ``securefabric ca``
    or a SPIFFE agent.
    """

    cert_key_file: str = _setting("SECUREFABRIC_CERT_KEY_FILE", "", str)
    """The private key of cert_file (PEM, ECDSA); empty: cert_file's name with ".key" for ".pem"."""

    ca_file: str = _setting("SECUREFABRIC_CA_FILE", "", str)
    """The CAs (PEM) that vouch for the certificates of all ranks: SPIFFE's trust bundle."""

    suite: str = _setting("SECUREFABRIC_SUITE", "", str)
    """The cipher suite, where no job key says it; empty: "aes-256-gcm"."""

    post_quantum: bool = _setting("SECUREFABRIC_POST_QUANTUM", False, _flag)
    """Let the keys of every link depend on ML-KEM-768 as well; always on without a job key."""

    interfaces: str = _setting("SECUREFABRIC_SOCKET_IFNAME", "", str)
    """Network interfaces, in NCCL's grammar: "eth,ib" prefixes, "=eth0" exact, "^docker" exclude.

    Empty: loopback when all ranks are on this host, else every interface that is up, but not
    loopback and those of containers and virtual machines.
    """

    sockets_per_interface: int = _setting("SECUREFABRIC_SOCKETS_PER_INTERFACE", 3, _whole)
    """UDP sockets on each interface; each is one end of several paths."""

    ports: str = _setting("SECUREFABRIC_PORTS", "", str)
    """UDP ports to use, "first-last", for firewalls; the ranks of a host share them. Empty: any."""

    advertise: str = _setting("SECUREFABRIC_ADVERTISE", "", str)
    """Where others reach this rank, when that is not where its sockets are: behind address
    translation, or in a container with published ports. One item for each interface, separated by
    commas: "ip", the ports being the same, or "ip:port", where the first of ``ports`` is reached,
    the others following. Empty: at the sockets' own addresses."""

    engines: int = _setting("SECUREFABRIC_ENGINES", 0, _whole_or_auto)
    """Cores that may seal and open for this rank, the same number on all ranks: each has keys and
    sockets of its own, and takes a part of every large collective. 0 ("auto"): as many as the
    host of rank 0 has for each of its ranks, at most 4."""

    paths_per_peer: int = _setting("SECUREFABRIC_PATHS_PER_PEER", 8, _whole)
    """Paths over which the packets to one peer are spread."""

    join_timeout_s: float = _setting("SECUREFABRIC_JOIN_TIMEOUT_S", 60.0, _number)
    """How long a rank may take to appear in the store and to prove that it holds its keys."""

    death_timeout_s: float = _setting("SECUREFABRIC_DEATH_TIMEOUT_S", 10.0, _number)
    """Silence after which a peer is lost, and every operation that involves it fails."""

    heartbeat_s: float = _setting("SECUREFABRIC_HEARTBEAT_S", 1.0, _number)
    """Pause between heartbeats on an idle link."""

    epoch_age_s: float = _setting("SECUREFABRIC_EPOCH_AGE_S", 3600.0, _number)
    """Age at which a link gets fresh keys, by a key exchange within it and without a pause."""

    epoch_bytes: int = _setting("SECUREFABRIC_EPOCH_BYTES", 1 << 40, _whole)
    """Bytes, both ways together, after which it does so earlier."""

    gso: bool = _setting("SECUREFABRIC_GSO", True, _flag)
    """Hand bursts to the kernel in one send, where it can (UDP_SEGMENT)."""

    gro: bool = _setting("SECUREFABRIC_GRO", True, _flag)
    """Take bursts from the kernel in one receive, where it can (UDP_GRO)."""

    spin: str = _setting("SECUREFABRIC_SPIN", "auto", str)
    """Whether a waiting thread polls before it sleeps: "always", "never", or "auto", which polls
    only for a moment when more ranks than cores share this host."""

    eager_connect: bool = _setting("SECUREFABRIC_EAGER_CONNECT", False, _flag)
    """Link all members of a group when it is made, not when their first message needs it."""

    tuning_file: str = _setting("SECUREFABRIC_TUNING_FILE", "", str)
    """What ``python -m securefabric.tune`` has measured, the same rows on every host; empty: the
    defaults."""

    test_generation_bits: int = _setting(
        "SECUREFABRIC_TEST_GENERATION_BITS", GENERATION_BITS, _whole
    )
    """For tests: 2**bits packets per key on a path, small to make keys change often."""

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            _check_type(field.name, getattr(self, field.name), str(field.type))
        self._check_ranges()

    def _check_ranges(self) -> None:
        _check_range("sockets_per_interface", self.sockets_per_interface, 1, SOCKETS_MAX)
        _check_range("engines", self.engines, 0, ENGINES_MAX)
        _check_range("paths_per_peer", self.paths_per_peer, 1, PATHS_PER_PEER_MAX)
        _check_range("join_timeout_s", self.join_timeout_s, 0.1, _SECONDS_MAX)
        _check_range("death_timeout_s", self.death_timeout_s, 0.1, _SECONDS_MAX)
        _check_range("heartbeat_s", self.heartbeat_s, 0.01, self.death_timeout_s / 2)
        _check_range("epoch_age_s", self.epoch_age_s, 0.1, _SECONDS_MAX)
        _check_range("epoch_bytes", self.epoch_bytes, EPOCH_BYTES_MIN, EPOCH_BYTES_MAX)
        _check_range("test_generation_bits", self.test_generation_bits, 4, GENERATION_BITS)
        try:
            parse_ports(self.ports)
        except ValueError as error:
            raise _unusable("ports", self.ports, str(error)) from None
        try:
            parse_advertised(self.advertise, has_ports=bool(self.ports))
        except ValueError as error:
            raise _unusable("advertise", self.advertise, str(error)) from None
        if self.spin not in SPIN_POLICIES:
            raise _unusable("spin", self.spin, f"choose one of {', '.join(SPIN_POLICIES)}")
        if self.suite and self.suite not in SUITES:
            raise _unusable("suite", self.suite, f"choose one of {', '.join(SUITES)}")
        if self.job_id and not _is_job_id(self.job_id):
            why = f"it must be printable and have at most {JOB_ID_BYTES_MAX} bytes"
            raise _unusable("job_id", self.job_id, why)

    @property
    def uses_certificates(self) -> bool:
        """Whether ranks prove themselves by certificates."""
        return bool(self.cert_file or self.cert_key_file or self.ca_file)

    def suite_for(self, key_suite: str | None) -> str:
        """Return the suite of the job, given that of its key. Raises ConfigError if they differ."""
        if key_suite is not None and self.suite not in ("", key_suite):
            raise _unusable("suite", self.suite, f"the job key says {key_suite}")
        return key_suite or self.suite or SUITES[0]

    def effective_job_id(self) -> str:
        """Return job_id or, when it is empty, what the launcher calls this job."""
        if self.job_id:
            return self.job_id
        for name in ("TORCHELASTIC_RUN_ID", "SLURM_JOB_ID"):
            text = os.environ.get(name)
            if text:
                return text if _is_job_id(text) else hashlib.sha256(text.encode()).hexdigest()
        return "default"


def unknown_settings() -> list[str]:
    """Say which names in the environment look like settings of ours and are none."""
    found = []
    twins = {str(field.metadata["twin"]) for field in dataclasses.fields(Options)}
    known = {name.removeprefix(_PREFIX) for name in twins | _SETTINGS_ELSEWHERE}
    for name in sorted(os.environ):
        rest = name.removeprefix(_PREFIX)
        if name != rest and rest not in known:
            near = difflib.get_close_matches(rest, known, n=1)
            hint = f"; did you mean {_PREFIX}{near[0]}?" if near else ""
            found.append(f"{name} is no setting of securefabric{hint}")
    return found


def warn_of_unknown_settings() -> None:
    """Warn of them."""
    for text in unknown_settings():
        warnings.warn(text, stacklevel=2)


def options_from(pg_options: object) -> Options | None:
    """Turn what the user passed as ``pg_options`` into Options; None when nothing was passed.

    torch's own options object, which ``split_group`` copies from the parent group, holds none of
    our settings and counts as nothing. Raises ConfigError for any other type or an unknown name.
    """
    if pg_options is None or isinstance(pg_options, Options):
        return pg_options
    if isinstance(pg_options, Mapping):
        return _from_mapping(pg_options)
    if _is_native_options(pg_options):
        return None
    raise ConfigError(
        f"pg_options is a {type(pg_options).__module__}.{type(pg_options).__qualname__}; "
        "pass securefabric.Options(...), a dict of its fields, or None"
    )


def _from_mapping(mapping: Mapping[Any, Any]) -> Options:
    known = {field.name for field in dataclasses.fields(Options)}
    unknown = sorted(str(name) for name in mapping if name not in known)
    if unknown:
        raise ConfigError(
            f"pg_options has unknown settings: {', '.join(unknown)}; "
            f"known are {', '.join(sorted(known))}"
        )
    return Options(**mapping)


def _is_native_options(value: object) -> bool:
    kind = type(value)
    return kind.__name__ == "Options" and kind.__module__ == "securefabric._C"


_TYPES: Final[dict[str, tuple[type, ...]]] = {
    "str": (str,),
    "int": (int,),
    "float": (float, int),
    "bool": (bool,),
}


def _is_job_id(text: str) -> bool:
    return len(text.encode()) <= JOB_ID_BYTES_MAX and text.isprintable()


def _check_type(name: str, value: object, declared: str) -> None:
    # type() and not isinstance(): True is no number of sockets.
    if type(value) not in _TYPES[declared]:
        raise _unusable(name, value, f"its type must be {declared}")


def _check_range(name: str, value: float, least: float, most: float) -> None:
    if not least <= value <= most:  # also refuses NaN
        raise _unusable(name, value, f"it must be between {least:g} and {most:g}")


def _unusable(name: str, value: object, why: str) -> ConfigError:
    twins = {field.name: field.metadata["twin"] for field in dataclasses.fields(Options)}
    return ConfigError(f"option {name}={value!r} ({twins[name]}) is not usable: {why}")
