"""The native core behind torch: the whole of what Python uses of it, in one place."""

from collections.abc import Callable
from datetime import timedelta

from torch._C._distributed_c10d import Backend as _C10dBackend
from torch._C._distributed_c10d import ErrorType
from torch._C._distributed_c10d import Store as _C10dStore

from .roster import PeerEntry
from .store.client import Client as StoreClient

class Options(_C10dBackend.Options):
    """What ``Backend.options`` returns; it can be copied, as ``split_group`` does."""

    def __init__(self, timeout: timedelta = ..., presented_name: str = ...) -> None: ...
    test_stages_host_tensors: bool
    test_stripe_bytes: int
    def __copy__(self) -> Options: ...
    def __deepcopy__(self, memo: dict[int, object]) -> Options: ...

class Fabric:
    """Sockets, keys, peers and engines of this process."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        local_world_size: int,
        suite: str,
        job_key_text: bytearray,
        engines: int,
        addresses: list[str],
        interfaces: str,
        sockets_per_interface: int,
        port_first: int,
        port_last: int,
        paths_per_peer: int,
        join_timeout_s: float,
        death_timeout_s: float,
        heartbeat_s: float,
        epoch_age_s: float,
        epoch_bytes: int,
        gso: bool,
        gro: bool,
        spin: str,
        eager_connect: bool,
        generation_bits: int,
        tuning: list[tuple[str, int, int, int]],
        resolve: Callable[[str, int, bool], PeerEntry | None],
    ) -> None: ...
    def set_tuning(self, tuning: list[tuple[str, int, int, int]]) -> None:
        """Plan by these rows from now on: operation, ranks, small_bytes, segments_per_chunk.

        Only while no operation is being started, and on all ranks. Raises DistBackendError for a
        row that is out of range.
        """
    @property
    def boot_id(self) -> bytes: ...
    @property
    def engines(self) -> list[tuple[bytes, int, list[str]]]:
        """Public key, SPI base and addresses of each."""
    @property
    def max_datagram(self) -> int: ...
    @property
    def suite(self) -> str: ...
    def set_entry(self, own_entry: bytes) -> None: ...
    def stats(self) -> dict[str, int | bool | dict[str, int]]: ...
    def paths(self) -> list[dict[str, int | float | str]]: ...
    def shutdown(self) -> None: ...

class Backend(_C10dBackend):
    """One process group."""

    def __init__(
        self,
        *,
        fabric: Fabric,
        group_rank: int,
        group_size: int,
        group_name: str,
        identity: str,
        global_ranks: list[int],
        options: Options,
        board: str = "",
        keeper: object = None,
    ) -> None:
        """identity and board: see JoinedGroup; keeper is held until ``shutdown`` or the end."""
    @property
    def options(self) -> Options: ...
    def _set_default_timeout(self, timeout: timedelta) -> None: ...
    def get_error(self) -> ErrorType: ...
    def perform_nocolor_split(self, device: object) -> None: ...
    @staticmethod
    def create_device(*given: object, **named: object) -> object: ...
    @staticmethod
    def create_default_device(*given: object, **named: object) -> object: ...

class StoreGate:
    """Stands between the stores of a process and its end."""

    def close(self) -> None:
        """Make every later call of a store fail without touching Python."""
    @property
    def calls_inside(self) -> int:
        """How many threads are in, or about to enter, Python on a store's behalf."""

class Store(_C10dStore):
    """A c10d store that forwards to a client in Python; see store/client.py."""

    def __init__(
        self, *, client: StoreClient, gate: StoreGate, host: str, port: int, timeout: timedelta
    ) -> None: ...
    @property
    def host(self) -> str: ...
    @property
    def port(self) -> int: ...
    @property
    def client(self) -> StoreClient: ...

def store_prefix(store: _C10dStore) -> str:
    """Return what the prefixes of nested prefix stores put before a key together."""

def select_interfaces(grammar: str) -> list[tuple[str, str, int]]:
    """Return (name, address, mtu) of what SECUREFABRIC_SOCKET_IFNAME=grammar chooses."""
