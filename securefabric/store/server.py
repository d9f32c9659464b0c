"""The store's server: a process of its own, so that it answers while its parent is busy.

    python -m securefabric.store.server      started by host.py, never by hand

It reads its settings, with the keys, from one line of standard input, tells its port in one line
of standard output, and serves until standard input ends or the parent is gone. It imports neither
torch nor the native core. libzmq refuses strangers before a byte of theirs is looked at; what is
refused is counted by cause and told on standard error, one line in LOG_PAUSE_S at most. What goes
wrong with one request, be it that memory runs out, ends that request and no other.
"""

from __future__ import annotations

import contextlib
import json
import os
import resource
import signal
import sys
import time
from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any, Final

import zmq
from zmq.utils import z85  # both here: while all descriptors are taken, nothing can be imported
from zmq.utils.monitor import recv_monitor_message

from .pieces import FRAME_BYTES_MAX, WINDOW_BYTES, WINDOW_PIECES, NoRoom, Traffic, is_pull, pieces
from .table import Answer, Limits, Table
from .wire import (
    MESSAGE_BYTES_MAX,
    Malformed,
    Op,
    Outcome,
    Reply,
    Request,
    decode_request,
    encode_reply,
    reply_bytes,
)

__all__ = ["Server", "Settings", "main"]

ZAP_ENDPOINT: Final = "inproc://zeromq.zap.01"  # RFC 27; libzmq looks for it under this name
ZAP_DOMAIN: Final = b"securefabric"
HANDSHAKE_MS: Final = 10_000  # a connection that has not proven itself by then is closed
HEARTBEAT_MS: Final = 5_000
SILENCE_MS: Final = 20_000  # a member that has not been heard for so long is gone
FLUSH_MS: Final = 2_000  # at the end, for replies that are still on their way
LOG_PAUSE_S: Final = 10.0
PARENT_CHECK_S: Final = 1.0
BATCH: Final = 256  # messages between looks at handshakes and timers
BACKLOG: Final = 1024  # connections that a whole cluster may open at once
# Frames that libzmq holds for a client. libzmq counts in halves, so one that reads as it should
# never meets the first.
SEND_FRAMES: Final = 4 * WINDOW_PIECES
RECEIVE_FRAMES: Final = 8
OWN_FILES: Final = 64  # descriptors beside those of connections

_REFUSALS: Final = {
    zmq.Event.HANDSHAKE_FAILED_AUTH: "refused_key",
    zmq.Event.HANDSHAKE_FAILED_PROTOCOL: "refused_protocol",
    zmq.Event.HANDSHAKE_FAILED_NO_DETAIL: "refused_handshake",
    zmq.Event.ACCEPT_FAILED: "accept_failed",
}
_WATCHED: Final = (
    zmq.Event.HANDSHAKE_FAILED_AUTH
    | zmq.Event.HANDSHAKE_FAILED_PROTOCOL
    | zmq.Event.HANDSHAKE_FAILED_NO_DETAIL
    | zmq.Event.HANDSHAKE_SUCCEEDED
    | zmq.Event.ACCEPT_FAILED
)


@dataclass(frozen=True, kw_only=True)
class Settings:
    """What the parent hands over."""

    addresses: list[str]
    """Numeric addresses of this host; the server listens on these and no others."""
    port: int
    """The same on all addresses; 0: the kernel picks one."""
    server_secret: str = field(repr=False)
    client_public: str
    limits: Limits = field(default_factory=Limits)

    def to_json(self) -> str:
        """Return one line without line breaks."""
        return json.dumps(asdict(self))

    @classmethod
    def from_json(cls, text: str) -> Settings:
        """Return what to_json() was called on."""
        fields: dict[str, Any] = json.loads(text)
        return cls(**{**fields, "limits": Limits(**fields["limits"])})


class Server:
    """Sockets around a Table. One thread only."""

    def __init__(self, settings: Settings) -> None:
        self.counters: Counter[str] = Counter()
        self._settings = settings
        self._table = Table(settings.limits)
        self._traffic = Traffic(settings.limits.moving_bytes)
        self._told: Counter[str] = Counter()
        self._tell_at = 0.0
        self._context = zmq.Context()
        self._zap = self._context.socket(zmq.REP)
        self._zap.bind(ZAP_ENDPOINT)
        self._router = self._context.socket(zmq.ROUTER)
        self._monitor = self._router.get_monitor_socket(_WATCHED)
        self._secure()
        self.port = self._bind()

    def run(self, stop: int) -> None:
        """Serve until the descriptor `stop` is readable or at its end, or the parent is gone."""
        parent = os.getppid()
        poller = zmq.Poller()
        for source in (self._zap, self._router, self._monitor, stop):
            poller.register(source, zmq.POLLIN)
        while os.getppid() == parent:
            ready = dict(poller.poll(self._poll_ms()))
            if stop in ready:
                break
            if self._zap in ready:
                self._answer_zap()
            if self._router in ready:
                self._serve_batch()
            if self._monitor in ready:
                self._count_events()
            now = time.monotonic()
            self._send(self._table.expire(now))
            for answer in self._traffic.expire(now):
                self._lose(answer)
            self._tell()

    def close(self) -> None:
        """Flush what was answered, for FLUSH_MS at most, and free the port."""
        self._router.disable_monitor()
        self._monitor.close(linger=0)
        self._router.close(linger=FLUSH_MS)
        self._zap.close(linger=0)
        self._context.term()

    def _secure(self) -> None:
        router = self._router
        router.curve_server = True
        router.curve_secretkey = self._settings.server_secret.encode()
        router.zap_domain = ZAP_DOMAIN
        router.setsockopt(zmq.ZAP_ENFORCE_DOMAIN, 1)
        router.setsockopt(zmq.ROUTER_MANDATORY, 1)  # an error, not silence, for who is gone
        router.setsockopt(zmq.MAXMSGSIZE, FRAME_BYTES_MAX)
        router.setsockopt(zmq.SNDHWM, SEND_FRAMES)
        router.setsockopt(zmq.RCVHWM, RECEIVE_FRAMES)
        router.setsockopt(zmq.HANDSHAKE_IVL, HANDSHAKE_MS)
        router.setsockopt(zmq.HEARTBEAT_IVL, HEARTBEAT_MS)
        router.setsockopt(zmq.HEARTBEAT_TIMEOUT, SILENCE_MS)
        router.setsockopt(zmq.TCP_MAXRT, SILENCE_MS)
        router.setsockopt(zmq.BACKLOG, BACKLOG)
        # Only where it is needed: with it, an IPv4 address is served by an IPv6 socket.
        router.setsockopt(zmq.IPV6, int(any(":" in a for a in self._settings.addresses)))

    def _bind(self) -> int:
        port = self._settings.port
        for address in self._settings.addresses:
            host = f"[{address}]" if ":" in address else address
            self._router.bind(f"tcp://{host}:{port or '*'}")
            bound = self._router.getsockopt_string(zmq.LAST_ENDPOINT)
            port = int(bound.rpartition(":")[2])
        return port

    def _poll_ms(self) -> int:
        deadline = self._table.next_deadline()
        wait_s = PARENT_CHECK_S
        if deadline is not None:
            wait_s = min(wait_s, max(0.0, deadline - time.monotonic()))
        return int(wait_s * 1000) + 1

    def _answer_zap(self) -> None:
        """Admit the job's client key, under CURVE, in our domain; refuse everything else."""
        frames = self._zap.recv_multipart()
        version, request_id, domain, _, _, mechanism, *credentials = [*frames, *[b""] * 7][:7]
        allowed = self._client_key()
        is_member = (
            version == b"1.0"
            and domain == ZAP_DOMAIN
            and mechanism == b"CURVE"
            and credentials == [allowed]
        )
        status, text = (b"200", b"OK") if is_member else (b"400", b"not a key of this job")
        self._zap.send_multipart([b"1.0", request_id, status, text, b"", b""])

    def _client_key(self) -> bytes:
        return z85.decode(self._settings.client_public.encode())

    def _serve_batch(self) -> None:
        now = time.monotonic()
        for _ in range(BATCH):
            try:
                client, *frames = self._router.recv_multipart(zmq.DONTWAIT)
            except zmq.Again:
                return
            if len(frames) == 1 and is_pull(frames[0]):
                self._send_more(client, frames[0], now)
            else:
                self._send(self._serve(client, frames, now))

    def _serve(self, client: bytes, frames: list[bytes], now: float) -> list[Answer]:
        request_id = 0
        try:
            if len(frames) != 1:
                raise Malformed(f"a message of {len(frames)} frames")
            data = self._traffic.receive(client, frames[0], now)
            if data is None:
                return []
            self.counters["requests"] += 1
            request_id = _id_of(data)
            self._lose(self._traffic.drop_reply(client))  # it wants something else by now
            request = decode_request(data)
            if request.op == Op.COUNTERS:
                return [Answer(client, self._counted(request))]
            return self._table.handle(client, request, now)
        except Malformed as error:
            self.counters["malformed"] += 1
            return [Answer(client, Reply(Outcome.INVALID, request_id, 0, [str(error).encode()]))]
        except Exception as error:  # whatever it is, the others must be served
            return [Answer(client, self._refusal(request_id, error))]

    def _refusal(self, request_id: int, error: Exception) -> Reply:
        """Return the reply to a request of which nothing came."""
        if isinstance(error, NoRoom):
            self.counters["busy"] += 1
            return Reply(Outcome.BUSY, request_id or _id_of(error.head))
        if isinstance(error, Malformed):  # more keys or values than a message may have
            return Reply(Outcome.LIMIT, request_id, 0, [str(error).encode()])
        self.counters["failed"] += 1
        why = f"the store's server failed at this request: {type(error).__name__}"
        return Reply(Outcome.INVALID, request_id, 0, [why.encode()])

    def _counted(self, request: Request) -> Reply:
        counted = {**self.counters, "waiting": self._table.waiting}
        items = [text.encode() for name, count in counted.items() for text in (name, str(count))]
        return Reply(Outcome.OK, request.id, 0, items)

    def _send(self, answers: list[Answer]) -> None:
        while answers:
            answer = answers.pop(0)
            try:
                frames = self._frames(answer)
            except Exception as error:  # as in _serve
                answers += self._table.put_back(answer)
                answer = Answer(answer.client, self._refusal(answer.reply.id, error))
                frames = list(pieces(encode_reply(answer.reply)))
            if not self._send_frames(answer.client, frames):
                self.counters["unanswered"] += 1
                self._traffic.drop_reply(answer.client)
                answers += self._table.put_back(answer)

    def _frames(self, answer: Answer) -> list[bytes]:
        """Return what of a reply is sent now; raises before a reply is made that is too long."""
        reply = answer.reply
        size = reply_bytes(reply)
        if size <= WINDOW_BYTES:
            return list(pieces(encode_reply(reply)))
        if size <= MESSAGE_BYTES_MAX and not self._traffic.has_room(size):
            raise NoRoom(b"")
        return self._traffic.hold(answer, encode_reply(reply), time.monotonic())

    def _send_more(self, client: bytes, frame: bytes, now: float) -> None:
        """Send the next pieces of a reply to a client that pulls them."""
        if not self._send_frames(client, self._traffic.pull(client, frame, now)):
            self._lose(self._traffic.drop_reply(client))

    def _send_frames(self, client: bytes, frames: list[bytes]) -> bool:
        """Whether they were sent, because the client is there and reads."""
        for frame in frames:
            try:
                self._router.send_multipart([client, frame], zmq.DONTWAIT)
            except zmq.ZMQError:  # EHOSTUNREACH: it is gone; EAGAIN: it does not read
                return False
        return True

    def _lose(self, answer: Answer | None) -> None:
        """Take note that a client does not want the rest of an answer."""
        if answer is not None:
            self.counters["unanswered"] += 1
            self._send(self._table.put_back(answer))

    def _count_events(self) -> None:
        for _ in range(BATCH):
            try:
                event = zmq.Event(recv_monitor_message(self._monitor, zmq.DONTWAIT)["event"])
            except zmq.Again:
                return
            self.counters[_REFUSALS.get(event, "admitted")] += 1

    def _tell(self) -> None:
        """Report refusals, as a sum, if there are new ones and the pause is over."""
        refused = Counter({name: self.counters[name] for name in _REFUSALS.values()})
        news = refused - self._told
        if not news or time.monotonic() < self._tell_at:
            return
        self._tell_at = time.monotonic() + LOG_PAUSE_S
        self._told = refused
        causes = ", ".join(f"{count} {name}" for name, count in sorted(news.items()))
        sys.stderr.write(
            f"securefabric store on {self._settings.addresses[0]}:{self.port}: refused connections "
            f"({causes}): they do not hold this job's key. Does a rank use another key file, or is "
            "another program (a plaintext TCPStore, a port scan) pointed at this port?\n"
        )
        sys.stderr.flush()


def _id_of(data: bytes) -> int:
    """Return the id of a request that is otherwise malformed, as far as it has one."""
    return int.from_bytes(data[2:10], "big") if len(data) >= 10 else 0


def _bound_connections(most: int) -> None:
    """Let the kernel refuse more connections; the usual limit of descriptors is 1024."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = most + OWN_FILES
    if hard != resource.RLIM_INFINITY:
        wanted = min(wanted, hard)
    with contextlib.suppress(ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


def main() -> None:
    """Read the settings, serve, end with the parent."""
    # The launcher's signals to the process group are the parent's affair: it may need the store to
    # save its state. It ends us by closing our input, or by ending.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    settings = Settings.from_json(sys.stdin.buffer.readline().decode())
    _bound_connections(settings.limits.connections)
    try:
        server = Server(settings)
    except (zmq.ZMQError, ValueError) as error:
        sys.stdout.write(json.dumps({"error": str(error)}) + "\n")
        return
    sys.stdout.write(json.dumps({"port": server.port}) + "\n")
    sys.stdout.flush()
    server.run(sys.stdin.fileno())
    server.close()


if __name__ == "__main__":
    main()
