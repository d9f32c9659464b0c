"""The encrypted store: a c10d store whose every byte crosses the network under CURVE.

``open_store`` is all that is needed, and mostly not even that: ``init_method="securefabric://..."``
(rendezvous.py) and ``torchrun --rdzv-backend=securefabric`` (elastic.py) call it.

    wire.py    messages, and their bounds     sans-IO
    pieces.py  how messages cross             sans-IO
    table.py   keys, queues, waiters          sans-IO
    keys.py    CURVE keys from the job key
    server.py  the server's process           imports neither torch nor the native core
    host.py    starts and ends that process
    client.py  connections and errors
    _C.Store   (native/torch/store.h) what torch sees
"""

from __future__ import annotations

import ipaddress
import os
import socket
import sys
import threading
import time
from datetime import timedelta
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .._C import Store, StoreGate
    from .table import Limits

__all__ = ["BIND_VARIABLE", "LONGEST_TIMEOUT", "close_all_at_exit", "open_store"]

DEFAULT_TIMEOUT: Final = timedelta(seconds=300)  # torch's own
BIND_VARIABLE: Final = "SECUREFABRIC_STORE_BIND"
LONGEST_TIMEOUT: Final = timedelta(days=146 * 365)  # what longer ones mean; fits all clocks

_gate: StoreGate | None = None  # of this process
_gate_lock: Final = threading.Lock()


def open_store(
    host: str,
    port: int,
    *,
    serve: bool = False,
    timeout: timedelta = DEFAULT_TIMEOUT,
    key_file: str | None = None,
    bind: str | None = None,
    limits: Limits | None = None,
) -> Store:
    """Return the encrypted store at host:port, after it has answered once.

    serve starts its server, in a process of its own that ends with this store or this process, on
    the address that listening_address() says; port 0 takes a free one, which the store's ``port``
    tells. timeout is that of operations, and how long the server may take to
    appear. key_file None means SECUREFABRIC_KEY_FILE. limits bounds what the server holds.

    Raises ConfigError when key, host or port are unusable, StoreUnavailable when nobody answers,
    and AuthError when who answers does not hold the job key.
    """
    from .. import _native
    from ..errors import ConfigError, classify
    from ..options import Options
    from .client import Client, Status
    from .host import ServerProcess
    from .keys import curve_keys

    _native.check_torch_version()
    from .._C import Store

    timeout = min(timeout, LONGEST_TIMEOUT)
    keys = curve_keys(Options().key_file if key_file is None else key_file, serve=serve)
    address = resolve(host)
    server = None
    if serve:
        listening = listening_address(host, address, bind)
        try:
            server = ServerProcess(addresses=[listening], port=port, keys=keys, limits=limits)
        except OSError as error:
            raise ConfigError(
                f"cannot serve the store at {listening}:{port}: {error}; choose a free port and an "
                f"address of this host ({host} stands for {address} here)"
            ) from None
        port = server.port
        keys = keys.without_server()
    client = Client(
        address=address,
        port=port,
        keys=keys,
        connect_timeout_s=timeout.total_seconds(),
        server=server,
    )
    status, _, items = client.call("num_keys", int(timeout.total_seconds() * 1000), 0, [])
    if status != Status.OK:
        client.close()
        failure = RuntimeError(items[0].decode())
        raise classify(failure) or failure from None
    return Store(client=client, gate=_gate_of_process(), host=host, port=port, timeout=timeout)


def resolve(host: str) -> str:
    """Return the numeric address that a host name stands for; IPv4 first, as all ranks must agree.

    Raises ConfigError when there is none.
    """
    from ..errors import ConfigError

    try:
        found = socket.getaddrinfo(host, None, type=socket.SOCK_STREAM)
    except OSError as error:
        raise ConfigError(f"the store's host {host!r} has no address: {error}") from None
    addresses = [str(entry[4][0]) for entry in found]
    return next((address for address in addresses if ":" not in address), addresses[0])


def listening_address(host: str, address: str, bind: str | None = None) -> str:
    """Return the address that a server listens on, where host stands for address on its host.

    bind, or else BIND_VARIABLE, says it. Without them it is address, and no other reaches the
    store; but not a loopback address where host is a name, as of Debian's hosts for themselves:
    others know the name by another address, so the server listens on all.
    """
    chosen = bind or os.environ.get(BIND_VARIABLE)
    if chosen:
        return resolve(chosen)
    is_name = host.partition(".")[0].lower() != "localhost" and not _is_numeric(host)
    if is_name and ipaddress.ip_address(address.partition("%")[0]).is_loopback:
        return "::" if socket.has_dualstack_ipv6() else "0.0.0.0"  # noqa: S104  (see above)
    return address


def _is_numeric(host: str) -> bool:
    try:
        ipaddress.ip_address(host.partition("%")[0])
    except ValueError:
        return False
    return True


def close_all_at_exit() -> None:
    """Close what is open, before the interpreter ends; torch's threads may still hold stores.

    Registered before any store is opened, so that what users do at exit still finds its store.
    """
    if _gate is None:
        return
    _gate.close()
    client = sys.modules[f"{__name__}.client"]
    client.close_all()
    until = time.monotonic() + 2.0
    while _gate.calls_inside and time.monotonic() < until:
        time.sleep(0.002)  # gives them the GIL to leave


def _gate_of_process() -> StoreGate:
    global _gate
    from .._C import StoreGate

    with _gate_lock:
        if _gate is None:
            _gate = StoreGate()
        return _gate
