"""A store's client: asks, waits, and says clearly what keeps it from an answer.

Any thread may call. Each call under way has a connection of its own, taken from a pool, so a thread
that waits for a key does not keep others from setting it. A request is sent once: when its
connection breaks before the answer, the call fails, because nobody knows whether an add was done.
"""

from __future__ import annotations

import contextlib
import os
import threading
import time
import weakref
from collections.abc import Iterator, Sequence
from enum import IntEnum
from typing import Final

import zmq
from zmq.utils.monitor import recv_monitor_message

from .host import ServerProcess, running_servers
from .keys import CurveKeys
from .pieces import FRAME_BYTES_MAX, ReplyPieces, pieces
from .wire import (
    BUSY_S,
    SLICE_MS,
    Compared,
    Malformed,
    Op,
    Outcome,
    Reply,
    Request,
    decode_reply,
    encode_request,
)

__all__ = ["Client", "Status", "close_all"]

RECONNECT_MS: Final = 100  # between attempts to reach a server that is not there yet, at first
RECONNECT_MS_MAX: Final = 1_000
HANDSHAKE_MS: Final = 10_000
# Handshakes that fail before we believe that the other end does not hold our key. More than one:
# a port may change hands while a job starts.
HANDSHAKES_MAX: Final = 3
HEARTBEAT_MS: Final = 5_000
SILENCE_MS: Final = 15_000  # a connected server that has not been heard for so long is lost
REPLY_S: Final = SLICE_MS / 1000 + 30.0  # to any request; a server that lives but does not answer
POLL_MS_MAX: Final = 60_000  # of a longer wait at a time: poll takes 31 bits
_FOREVER_MS: Final = 10**12
RECOVERY_S: Final = 10.0  # to reach a server again that has answered before

_WATCHED: Final = (
    zmq.Event.CONNECTED
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.DISCONNECTED
    | zmq.Event.CLOSED
)


class Status(IntEnum):
    """How a call ended; native/torch/store.cc has the same numbers and makes exceptions of them."""

    OK = 0
    TIMEOUT = 1
    EMPTY = 2
    NETWORK = 3
    STORE = 4


Answer = tuple[int, int, list[bytes]]
"""Status, number, items; of a failure, the only item is its message."""


class _Failed(Exception):
    """A call that cannot be answered."""

    def __init__(self, status: Status, message: str) -> None:
        super().__init__(message)
        self.status = status


class _Connection:
    """One socket and its events. One thread at a time."""

    def __init__(self, context: zmq.Context[zmq.Socket[bytes]], endpoint: str, keys: CurveKeys):
        self.is_connected = False
        self.is_broken = False
        self._attempts = 0  # that found somebody listening, since one found nobody
        self._socket = context.socket(zmq.DEALER)
        self._monitor = self._socket.get_monitor_socket(_WATCHED)
        socket = self._socket
        socket.curve_serverkey = keys.server_public
        socket.curve_publickey = keys.client_public
        socket.curve_secretkey = keys.client_secret
        for option, value in (
            (zmq.LINGER, 0),
            (zmq.IPV6, int("[" in endpoint)),
            (zmq.MAXMSGSIZE, FRAME_BYTES_MAX),
            (zmq.SNDHWM, 0),  # a request goes out whole
            (zmq.HANDSHAKE_IVL, HANDSHAKE_MS),
            (zmq.HEARTBEAT_IVL, HEARTBEAT_MS),
            (zmq.HEARTBEAT_TIMEOUT, SILENCE_MS),
            (zmq.RECONNECT_IVL, RECONNECT_MS),
            (zmq.RECONNECT_IVL_MAX, RECONNECT_MS_MAX),
        ):
            socket.setsockopt(option, value)
        socket.connect(endpoint)

    def exchange(self, data: bytes, until: float, connect_until: float, wake: int) -> bytes | None:
        """Send a request; returns the reply, or None when the client was closed meanwhile.

        until and connect_until are instants of time.monotonic(). Raises _Failed.
        """
        self.is_broken = True  # until the reply is here
        for piece in pieces(data):
            self._socket.send(piece)
        parts = ReplyPieces()
        poller = zmq.Poller()
        for source in (self._socket, self._monitor, wake):
            poller.register(source, zmq.POLLIN)
        while True:
            wait_s = (until if self.is_connected else connect_until) - time.monotonic()
            ready = dict(poller.poll(min(max(0, int(wait_s * 1000) + 1), POLL_MS_MAX)))
            if self._socket in ready:
                reply = self._receive(parts)
                if reply is not None:
                    self.is_broken = False
                    return reply
                until = max(until, time.monotonic() + REPLY_S)
            if wake in ready:
                return None
            if self._monitor in ready:
                self._handle_events()
            elif not ready and wait_s <= 0:
                raise _Failed(Status.NETWORK, self._silence())

    def is_usable(self) -> bool:
        """Whether nothing has happened to it while nobody used it."""
        with contextlib.suppress(_Failed):
            self._handle_events()
            return not self.is_broken and self.is_connected
        return False

    def close(self) -> None:
        """Drop it at once."""
        with contextlib.suppress(zmq.ZMQError):
            self._socket.disable_monitor()
        self._monitor.close(linger=0)
        self._socket.close(linger=0)

    def _receive(self, parts: ReplyPieces) -> bytes | None:
        """Take what is there; returns the reply when it is whole. Raises _Failed."""
        try:
            while True:
                frames = self._socket.recv_multipart(zmq.DONTWAIT)
                reply = parts.take(frames[0] if len(frames) == 1 else b"")
                if reply is not None:
                    return reply
                if parts.pull_due is not None:
                    self._socket.send(parts.pull_due)
        except zmq.Again:
            return None
        except Malformed as error:
            raise _Failed(Status.NETWORK, _literal(f"StoreUnavailable: {error}")) from None

    def _handle_events(self) -> None:
        """Take note of what happened to the connection; raises _Failed when that is its end."""
        while True:
            try:
                event = recv_monitor_message(self._monitor, zmq.DONTWAIT)["event"]
            except zmq.Again:
                return
            if event == zmq.Event.HANDSHAKE_SUCCEEDED:
                self.is_connected = True
            elif event == zmq.Event.CONNECTED:
                self._attempts += 1
            elif event == zmq.Event.CLOSED:  # refused: whoever was there has gone
                self._attempts = 0
            elif self.is_connected:
                raise _Failed(Status.NETWORK, _GONE)
            elif event == zmq.Event.HANDSHAKE_FAILED_AUTH or self._attempts >= HANDSHAKES_MAX:
                # A server that says no in words: libzmq would not even try again.
                raise _Failed(Status.NETWORK, _STRANGER)

    def _silence(self) -> str:
        if self.is_connected:
            return _STALLED
        return _STRANGER if self._attempts > 0 else _ABSENT


_ABSENT: Final = (
    "StoreUnavailable: nobody answers for {store} (connection refused, or unreachable): has the "
    "process that hosts it (rank 0, or the launcher) started, and may this host connect to it?"
)
_GONE: Final = (
    "StoreUnavailable: the connection to {store} broke: is the process that hosts it (rank 0, or "
    "the launcher) still alive and reachable?"
)
_STALLED: Final = (
    "StoreUnavailable: {store} does not answer: is the process that hosts it stopped, or its host "
    "overloaded?"
)
_STRANGER: Final = (
    "AuthError: {store} does not complete a handshake under job key {key_id}: it belongs to "
    "another job key, or it is no store of securefabric (a plaintext TCPStore, another program). "
    "Give all ranks and launchers the same SECUREFABRIC_KEY_FILE, and look which program has "
    "that port"
)


class Client:
    """Speaks with one server; shared by a store and its clones."""

    def __init__(
        self,
        *,
        address: str,
        port: int,
        keys: CurveKeys,
        connect_timeout_s: float,
        server: ServerProcess | None = None,
    ) -> None:
        self._connector = _Connector(address, port, keys, connect_timeout_s)
        self._server = server

    @property
    def server(self) -> ServerProcess | None:
        """The server's process, if this client started it."""
        return self._server

    def share(self) -> Client:
        """Return a client with the same connections that does not keep the server alive."""
        twin: Client = object.__new__(Client)
        twin._connector = self._connector
        twin._server = None
        return twin

    def call(self, operation: str, timeout_ms: int, number: int, items: Sequence[bytes]) -> Answer:
        """Do an operation of wire.Op, or "barrier"; for native/torch/store.cc."""
        try:
            if operation == "barrier":
                return self._barrier(timeout_ms, number, items[0])
            return self._ask(Op[operation.upper()], timeout_ms, number, list(items))
        except _Failed as failed:
            message = str(failed).format(
                store=self._connector.name, key_id=self._connector.keys.key_id
            )
            return failed.status, 0, [message.encode()]

    def counters(self) -> dict[str, int]:
        """Return what the server has counted; for tests and people who look for a cause."""
        status, _, items = self.call("counters", 10_000, 0, [])
        if status != Status.OK:
            raise RuntimeError(items[0].decode())
        return {
            name.decode(): int(count) for name, count in zip(items[::2], items[1::2], strict=True)
        }

    def close(self) -> None:
        """End calls that wait, drop the connections, and end the server if it is ours."""
        self._connector.close()
        if self._server is not None:
            self._server.close()

    def _ask(self, op: Op, timeout_ms: int, number: int, items: list[bytes]) -> Answer:
        # TCPStore waits for ever with a negative timeout, and not at all with zero.
        deadline = time.monotonic() + (timeout_ms if timeout_ms >= 0 else _FOREVER_MS) / 1000
        while True:
            left_ms = max(0, int((deadline - time.monotonic()) * 1000))
            reply = self._connector.exchange(op, min(left_ms, SLICE_MS), number, items, deadline)
            if reply.outcome == Outcome.OK:
                if op == Op.COMPARE_SET:
                    return Status.OK, 0, [_value_there(reply, items)]
                return Status.OK, reply.number, reply.items
            if reply.outcome == Outcome.EMPTY:
                raise _Failed(Status.EMPTY, f"queue is empty: {_shown(items)}")
            if reply.outcome not in (Outcome.PENDING, Outcome.BUSY):
                kind = "StoreLimit: " if reply.outcome == Outcome.LIMIT else ""
                text = reply.items[0].decode("utf-8", "replace") if reply.items else op.name.lower()
                raise _Failed(Status.STORE, _literal(f"{kind}{text}"))
            if time.monotonic() >= deadline:
                what = "barrier" if op == Op.BARRIER else "wait"
                if reply.outcome == Outcome.BUSY:
                    what = f"the store is busy: {what}"
                text = f"{what} timeout after {timeout_ms}ms, keys: {_shown(items)}"
                raise _Failed(Status.TIMEOUT, text)
            if reply.outcome == Outcome.BUSY:
                time.sleep(BUSY_S)

    def _barrier(self, timeout_ms: int, world_size: int, key: bytes) -> Answer:
        """As TCPStore: the key counts who has come; all may go when they are world_size."""
        self._ask(Op.ADD, timeout_ms, 1, [key])
        return self._ask(Op.BARRIER, timeout_ms, world_size, [key])


class _Connector:
    """The pool of connections to one server."""

    def __init__(self, address: str, port: int, keys: CurveKeys, connect_timeout_s: float) -> None:
        host = f"[{address}]" if ":" in address else address
        self.name = f"the store at {host}:{port}"
        self.keys = keys
        self._endpoint = f"tcp://{host}:{port}"
        self._connect_timeout_s = connect_timeout_s
        self._pid = os.getpid()
        self._lock = threading.Lock()  # of the following
        self._is_closed = False
        self._has_answered = False
        self._next_id = 1
        self._idle: list[_Connection] = []
        self._in_use = 0
        self._context: zmq.Context[zmq.Socket[bytes]] = zmq.Context()
        self._wake = os.eventfd(0, os.EFD_CLOEXEC | os.EFD_NONBLOCK)
        self._finalizer = weakref.finalize(
            self, _drop, self._idle, self._context, self._wake, os.getpid()
        )
        self._finalizer.atexit = False  # close_all() does it, at the right moment
        _connectors.add(self)

    def exchange(
        self, op: Op, wait_ms: int, number: int, items: list[bytes], deadline: float
    ) -> Reply:
        """Ask once. Raises _Failed."""
        with self._lock:
            request_id = self._next_id
            self._next_id += 1
        try:
            data = encode_request(Request(op, request_id, wait_ms, number, items))
        except Malformed as error:
            raise _Failed(Status.STORE, _literal(f"StoreLimit: {error}")) from None
        now = time.monotonic()
        if self._has_answered:
            connect_until = now + RECOVERY_S
        else:
            connect_until = max(deadline, now + self._connect_timeout_s)
        with self._connection() as connection:
            answer = connection.exchange(
                data, max(now, deadline) + REPLY_S, connect_until, self._wake
            )
            if answer is None:
                raise _Failed(Status.NETWORK, "StoreUnavailable: this process has closed {store}")
            reply = self._decoded(answer, request_id)
        self._has_answered = True
        return reply

    def close(self) -> None:
        """Make calls end, wait for them for a moment, and drop the connections."""
        if os.getpid() != self._pid or not self._finalizer.alive:
            return
        with self._lock:
            self._is_closed = True
        os.eventfd_write(self._wake, 1)
        until = time.monotonic() + 2.0
        while self._in_use and time.monotonic() < until:
            time.sleep(0.002)
        if not self._in_use:
            self._finalizer()

    def _decoded(self, answer: bytes, request_id: int) -> Reply:
        try:
            reply = decode_reply(answer)
        except Malformed as error:
            raise _Failed(Status.NETWORK, _literal(f"StoreUnavailable: {error}")) from None
        if reply.id != request_id:
            raise _Failed(Status.NETWORK, "StoreUnavailable: {store} answered another request")
        return reply

    @contextlib.contextmanager
    def _connection(self) -> Iterator[_Connection]:
        """Lend a connection. One whose exchange did not end well is not kept, nor are idle ones.

        They lead to the same server, and a request that is sent to one that is lost has to fail.
        """
        if os.getpid() != self._pid:
            raise _Failed(
                Status.NETWORK,
                f"ForkError: this process was forked from process {self._pid}, whose connections "
                "to {store} it cannot use. Start it with multiprocessing's 'spawn', or let it join "
                "by itself",
            )
        with self._lock:
            if self._is_closed:
                raise _Failed(Status.NETWORK, "StoreUnavailable: this process has closed {store}")
            self._in_use += 1
        connection: _Connection | None = None
        try:
            connection = self._take_idle() or _Connection(self._context, self._endpoint, self.keys)
            yield connection
        finally:
            with self._lock:
                if connection is not None and not connection.is_broken and not self._is_closed:
                    self._idle.append(connection)
                    lost = []
                else:
                    lost = [*self._idle, *([] if connection is None else [connection])]
                    self._idle.clear()
            for each in lost:
                each.close()
            with self._lock:
                self._in_use -= 1

    def _take_idle(self) -> _Connection | None:
        while True:
            with self._lock:
                if not self._idle:
                    return None
                connection = self._idle.pop()
            if connection.is_usable():
                return connection
            connection.close()


def _value_there(reply: Reply, items: list[bytes]) -> bytes:
    """Return what TCPStore's compare_set returns; without a key, what the caller expected."""
    _, expected, desired = items
    if reply.number == Compared.DIFFERENT and len(reply.items) == 1:
        return reply.items[0]
    return desired if reply.number == Compared.EQUAL else expected


def _drop(
    idle: list[_Connection], context: zmq.Context[zmq.Socket[bytes]], wake: int, owner: int
) -> None:
    if os.getpid() != owner:
        return
    os.close(wake)
    for connection in idle:
        connection.close()
    idle.clear()
    context.destroy(linger=0)


def _shown(keys: list[bytes]) -> str:
    """Return the first keys of a request, for a message."""
    names = [key[:80].decode("utf-8", "replace") for key in keys[:4]]
    more = f" and {len(keys) - 4} more" if len(keys) > 4 else ""
    return _literal(", ".join(names) + more)


def _literal(text: str) -> str:
    """Protect text from str.format, which puts the server's name into messages."""
    return text.replace("{", "{{").replace("}", "}}")


_connectors: Final[weakref.WeakSet[_Connector]] = weakref.WeakSet()


def close_all() -> None:
    """Close all clients of this process and the servers that it hosts, before it ends."""
    for connector in list(_connectors):
        connector.close()
    for server in list(running_servers):
        server.close()
