"""``torchrun --rdzv-backend=securefabric --rdzv-endpoint=host:port``: elastic jobs, encrypted.

torch's own DynamicRendezvousHandler decides who takes part, as with ``--rdzv-backend=c10d``; here
are what it keeps its state in and what the workers meet in, both encrypted stores. torch pickles
that state and unpickles what it reads back. Here it crosses the network as JSON with fixed fields,
and is pickled and unpickled only between two functions of one process: bytes from the network never
reach pickle.
"""

from __future__ import annotations

import json
import os
import pickle
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Any, Final

from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousHandler,
    RendezvousInfo,
    RendezvousParameters,
    RendezvousStateError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import (
    DynamicRendezvousHandler,
    RendezvousBackend,
    RendezvousTimeout,
    Token,
    _NodeDesc,
    _RendezvousState,
)
from torch.distributed.elastic.rendezvous.utils import (
    _matches_machine_hostname,
    parse_rendezvous_endpoint,
)

from .errors import ConfigError, SecureFabricError
from .rendezvous import AGENT, STORE_VARIABLE
from .store import open_store

if TYPE_CHECKING:
    from . import _C

__all__ = ["EncryptedRendezvousBackend", "decode_state", "encode_state", "get_handler"]

DEFAULT_PORT: Final = 29400  # c10d's
_EMPTY: Final = b"no state yet"
_FIELDS: Final = {
    "round",
    "complete",
    "deadline",
    "closed",
    "participants",
    "wait_list",
    "redundancy_list",
    "last_heartbeats",
}


def get_handler() -> Callable[[RendezvousParameters], RendezvousHandler]:
    """Return what makes a handler of torchrun's parameters; entry point ``torchrun.handlers``."""
    return create_handler


def create_handler(params: RendezvousParameters) -> RendezvousHandler:
    """Return the handler of an agent. Raises ConfigError when the endpoint or key is unusable.

    Configuration (``--rdzv-conf``) as of the c10d backend: is_host, read_timeout, and the handler's
    timeouts.
    """
    store = _open_endpoint(params)
    backend = EncryptedRendezvousBackend(store, params.run_id)
    os.environ[STORE_VARIABLE] = AGENT  # for the workers; they inherit it
    timeouts = (
        _seconds(params, f"{name}_timeout") for name in ("join", "last_call", "close", "heartbeat")
    )
    handler: RendezvousHandler = _Handler.from_backend(
        params.run_id,
        store,
        backend,
        params.min_nodes,
        params.max_nodes,
        params.local_addr,
        RendezvousTimeout(*timeouts),
        keep_alive_interval=params.get_as_int("keep_alive_interval", 5) or 5,
        keep_alive_max_attempt=params.get_as_int("keep_alive_max_attempt", 3) or 3,
    )
    return handler


class _Handler(DynamicRendezvousHandler):
    """torch's handler; the workers of each round meet in an encrypted store of their own."""

    @property
    def use_agent_store(self) -> bool:
        """Workers are clients of the store that their agents have made."""
        return True

    def next_rendezvous(self) -> RendezvousInfo:
        """Join the next round. Its store is new: no worker meets keys of former incarnations."""
        self._bootstrap_store_info = None
        self._shared_tcp_store_server = None
        return super().next_rendezvous()

    def _create_tcp_store_server(self, master_addr: str, master_port: int) -> _C.Store:
        return open_store(master_addr, master_port, serve=True)


class EncryptedRendezvousBackend(RendezvousBackend):
    """Keeps the state of a rendezvous in an encrypted store."""

    def __init__(self, store: _C.Store, run_id: str) -> None:
        if not run_id:
            raise ConfigError("torchrun needs a run id: --rdzv-id")
        self._store = store
        self._key = f"torch.rendezvous.{run_id}"
        self._compare_set(b"", _EMPTY)

    @property
    def name(self) -> str:
        """The name that torchrun's --rdzv-backend has."""
        return "securefabric"

    def get_state(self) -> tuple[bytes, Token] | None:
        """Return the pickled state, made here, and the bytes that the store holds as its token."""
        try:
            stored = bytes(self._store.get(self._key))
        except RuntimeError as error:
            raise _connection_error(error) from error
        return _as_torch_wants(stored)

    def set_state(
        self, state: bytes, token: Token | None = None
    ) -> tuple[bytes, Token, bool] | None:
        """Replace the state that has this token; returns what is there now and whether it is ours.

        `state` comes from torch in this process.
        """
        if token is not None and not isinstance(token, bytes):
            current = self.get_state()
            return None if current is None else (*current, False)
        own = encode_state(pickle.loads(state))  # noqa: S301  (pickled by our caller, see above)
        stored = self._compare_set(token or _EMPTY, own)
        answer = _as_torch_wants(stored)
        return None if answer is None else (*answer, stored == own)

    def _compare_set(self, expected: bytes, desired: bytes) -> bytes:
        try:
            # torch says str, but takes any bytes.
            store: Any = self._store
            return bytes(store.compare_set(self._key, expected, desired))
        except RuntimeError as error:
            raise _connection_error(error) from error


def encode_state(state: _RendezvousState) -> bytes:
    """Return a rendezvous state as canonical JSON; equal states give equal bytes."""
    present = set(vars(state))
    if present != _FIELDS:
        raise RendezvousStateError(
            f"this torch's rendezvous state has other fields ({sorted(present ^ _FIELDS)}) than "
            "this securefabric knows; use --rdzv-backend=c10d or another version"
        )
    document = {
        "round": state.round,
        "complete": state.complete,
        "deadline": None if state.deadline is None else state.deadline.isoformat(),
        "closed": state.closed,
        "participants": sorted(
            [*_fields_of(node), rank] for node, rank in state.participants.items()
        ),
        "wait_list": sorted(map(_fields_of, state.wait_list)),
        "redundancy_list": sorted(map(_fields_of, state.redundancy_list)),
        "last_heartbeats": sorted(
            [*_fields_of(node), when.isoformat()] for node, when in state.last_heartbeats.items()
        ),
    }
    return json.dumps(document, sort_keys=True).encode()


def decode_state(data: bytes) -> _RendezvousState:
    """Return the state that encode_state() wrote; raises RendezvousStateError for anything else."""
    try:
        document = json.loads(data)
        if not isinstance(document, dict) or set(document) != _FIELDS:
            raise ValueError("not the fields of a state")
        state = _RendezvousState()
        state.round = _typed(document["round"], int)
        state.complete = _typed(document["complete"], bool)
        state.closed = _typed(document["closed"], bool)
        deadline = document["deadline"]
        state.deadline = None if deadline is None else _instant(deadline)
        state.participants = {_node(*n): _typed(rank, int) for *n, rank in document["participants"]}
        state.wait_list = {_node(*fields) for fields in document["wait_list"]}
        state.redundancy_list = {_node(*fields) for fields in document["redundancy_list"]}
        state.last_heartbeats = {_node(*n): _instant(w) for *n, w in document["last_heartbeats"]}
    except (ValueError, TypeError, RecursionError) as error:
        raise RendezvousStateError(f"the store holds no rendezvous state: {error}") from error
    return state


def _as_torch_wants(stored: bytes) -> tuple[bytes, Token] | None:
    if stored == _EMPTY:
        return None
    return pickle.dumps(decode_state(stored)), stored


def _fields_of(node: _NodeDesc) -> list[str | int]:
    return [node.addr, node.pid, node.local_id]


def _node(addr: object, pid: object, local_id: object) -> _NodeDesc:
    return _NodeDesc(_typed(addr, str), _typed(pid, int), _typed(local_id, int))


def _instant(text: object) -> datetime:
    instant = datetime.fromisoformat(_typed(text, str))
    if instant.tzinfo is None:
        raise ValueError("a time without its zone")
    return instant


def _typed(value: object, kind: type[Any]) -> Any:
    if type(value) is not kind:
        raise TypeError(f"{type(value).__name__} where {kind.__name__} belongs")
    return value


def _open_endpoint(params: RendezvousParameters) -> _C.Store:
    """Serve the store at the endpoint when that is this host, else connect to it."""
    if not params.endpoint:
        raise ConfigError(
            "--rdzv-backend=securefabric needs --rdzv-endpoint=host:port, the same on all hosts "
            "(localhost:0 for a job on this host alone)"
        )
    host, port = parse_rendezvous_endpoint(params.endpoint, default_port=DEFAULT_PORT)
    timeout = timedelta(seconds=params.get_as_int("read_timeout", 60) or 60)
    told = params.get_as_bool("is_host")
    is_host = _matches_machine_hostname(host) if told is None else told
    try:
        if is_host:
            try:
                return open_store(host, port, serve=True, timeout=timeout)
            except ConfigError as error:
                # Another agent of this host may serve already; that is only a guess of ours.
                if told is not None or "in use" not in str(error):
                    raise
        return open_store(host, port, timeout=timeout)
    except ConfigError:
        raise
    except SecureFabricError as error:
        raise _connection_error(error) from error


def _seconds(params: RendezvousParameters, name: str) -> timedelta | None:
    seconds = params.get_as_int(name)
    return None if seconds is None else timedelta(seconds=seconds)


def _connection_error(error: Exception) -> RendezvousConnectionError:
    return RendezvousConnectionError(f"the encrypted store of the rendezvous failed: {error}")
