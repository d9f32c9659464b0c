"""Who should not reach a store, and members that break its protocol or vanish."""

from __future__ import annotations

import contextlib
import os
import pickle
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import zmq

from securefabric.store import server as server_module
from securefabric.store import table as table_module
from securefabric.store.client import Client, Status
from securefabric.store.host import ServerProcess
from securefabric.store.keys import CurveKeys
from securefabric.store.pieces import FRAME_BYTES_MAX, WINDOW_BYTES, ReplyPieces, pieces
from securefabric.store.table import Limits
from securefabric.store.wire import (
    VALUE_BYTES_MAX,
    Op,
    Outcome,
    Reply,
    Request,
    decode_reply,
    encode_reply,
    encode_request,
)

SECONDS_MAX = 30.0


def make_keys(key_id: str = "00112233445566ff") -> CurveKeys:
    server_public, server_secret = zmq.curve_keypair()
    client_public, client_secret = zmq.curve_keypair()
    return CurveKeys(
        key_id=key_id,
        server_public=server_public,
        server_secret=server_secret,
        client_public=client_public,
        client_secret=client_secret,
    )


KEYS = make_keys()


class Job:
    """A server with a member that looks after it."""

    def __init__(self, **limits: int) -> None:
        self.server = ServerProcess(
            addresses=["127.0.0.1"], port=0, keys=KEYS, limits=Limits(**limits)
        )
        self.endpoint = f"tcp://127.0.0.1:{self.server.port}"
        self.member = self.client()
        assert self.member.call("set", 10_000, 0, [b"secret", b"value"])[0] == Status.OK

    def client(self, keys: CurveKeys = KEYS) -> Client:
        return Client(
            address="127.0.0.1", port=self.server.port, keys=keys, connect_timeout_s=SECONDS_MAX
        )

    def counts(self, name: str) -> int:
        return self.member.counters().get(name, 0)

    def reaches(self, name: str, least: int) -> None:
        wait_until(lambda: self.counts(name) >= least, f"{name} to reach {least}")

    def is_well(self) -> None:
        assert self.member.call("get", 10_000, 0, [b"secret"]) == (Status.OK, 0, [b"value"])


def wait_until(condition: Callable[[], bool], what: str) -> None:
    until = time.monotonic() + SECONDS_MAX
    while not condition():
        assert time.monotonic() < until, f"waited for {what}"
        time.sleep(0.01)


@pytest.fixture
def job() -> Iterator[Job]:
    job = Job()
    yield job
    job.member.close()
    job.server.close()


@pytest.fixture
def context() -> Iterator[zmq.Context[Any]]:
    context = zmq.Context()
    yield context
    context.destroy(linger=0)


def dealer(context: zmq.Context[Any], keys: CurveKeys | None = KEYS) -> Any:
    """A socket of somebody who writes his own client."""
    peer = context.socket(zmq.DEALER)
    peer.linger = 0
    peer.rcvtimeo = int(SECONDS_MAX * 1000)
    if keys is not None:
        peer.curve_serverkey = keys.server_public
        peer.curve_publickey = keys.client_public
        peer.curve_secretkey = keys.client_secret
    return peer


def tell(peer: Any, message: bytes) -> None:
    for piece in pieces(message):
        peer.send(piece)


def heard(peer: Any) -> Reply:
    """A short reply."""
    whole = ReplyPieces().take(peer.recv())
    assert whole is not None
    return decode_reply(whole)


def resident_bytes(pid: int) -> int:
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


# Strangers


def test_stranger__without_curve_is_refused_and_never_answered(
    job: Job, context: zmq.Context[Any]
) -> None:
    peer = dealer(context, None)
    peer.connect(job.endpoint)
    tell(peer, encode_request(Request(Op.GET, 1, 0, 0, [b"secret"])))
    # Both ends see that they speak different mechanisms; the counter depends on who hangs up first.
    refusals = ("refused_protocol", "refused_handshake")
    wait_until(lambda: sum(map(job.counts, refusals)) >= 1, "the server to refuse it")
    with pytest.raises(zmq.Again):
        peer.recv(zmq.DONTWAIT)
    job.is_well()


def test_stranger__who_knows_the_servers_key_but_not_the_clients(job: Job) -> None:
    public, secret = zmq.curve_keypair()
    half = CurveKeys(
        key_id="half",
        server_public=KEYS.server_public,
        server_secret=b"",
        client_public=public,
        client_secret=secret,
    )
    client = job.client(half)
    status, _, (message,) = client.call("get", 30_000, 0, [b"secret"])
    assert status == Status.NETWORK
    assert message.startswith(b"AuthError: the store at 127.0.0.1:")
    wait_until(lambda: job.counts("refused_key") >= 1, "the server to count it")
    client.close()
    job.is_well()


def test_stranger__of_another_job_is_told_which_key_it_holds(job: Job) -> None:
    client = job.client(make_keys("fedcba9876543210"))
    status, _, (message,) = client.call("get", 30_000, 0, [b"secret"])
    assert status == Status.NETWORK
    assert b"under job key fedcba9876543210" in message
    assert b"the same SECUREFABRIC_KEY_FILE" in message
    client.close()
    job.is_well()


def test_stranger__bytes_that_are_no_zmtp(job: Job) -> None:
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15)
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        pickle.dumps({"a": 1}),
        os.urandom(4096),
        greeting,
        greeting + bytes(32) + b"\x04\xff" + os.urandom(253),
        greeting + bytes(32) + b"\x06" + b"\xff" * 8,  # a command of 2^64 - 1 bytes
        b"",
    ):
        with socket.create_connection(("127.0.0.1", job.server.port)) as stranger:
            try:
                stranger.sendall(data)
                stranger.shutdown(socket.SHUT_WR)
                stranger.settimeout(SECONDS_MAX)
                # libzmq sends its greeting and nothing else, as to anybody who connects.
                answered = b"".join(iter(lambda: stranger.recv(1 << 16), b""))
            except OSError:
                answered = b""
            assert len(answered) <= 64
    job.is_well()


@contextlib.contextmanager
def serving() -> Iterator[server_module.Server]:
    """A server in a thread of this process."""
    settings = server_module.Settings(
        addresses=["127.0.0.1"],
        port=0,
        server_secret=KEYS.server_secret.decode(),
        client_public=KEYS.client_public.decode(),
    )
    server = server_module.Server(settings)
    end, stop = os.pipe()
    thread = threading.Thread(target=server.run, args=(end,))
    thread.start()
    try:
        yield server
    finally:
        os.close(stop)
        thread.join(SECONDS_MAX)
        server.close()
        os.close(end)


def test_stranger__a_silent_connection_is_closed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server_module, "HANDSHAKE_MS", 50)
    with (
        serving() as server,
        socket.create_connection(("127.0.0.1", server.port)) as stranger,
    ):
        stranger.settimeout(SECONDS_MAX)
        while stranger.recv(1 << 16):
            pass  # until the server closes


def test_strangers__a_crowd_costs_a_line_and_no_member_notices(
    capfd: pytest.CaptureFixture[str],
) -> None:
    job = Job()  # here, not a fixture: what a process started earlier writes is not seen
    for _ in range(300):
        with socket.create_connection(("127.0.0.1", job.server.port)) as stranger:
            stranger.sendall(b"\xff" + bytes(8) + b"\x7f\x03\x00NULL" + bytes(48))
    job.reaches("refused_protocol", 300)
    job.is_well()
    job.member.close()
    job.server.close()
    said = capfd.readouterr().err
    assert len(said.splitlines()) <= 3
    assert "refused connections" in said
    assert "another key file" in said


def test_strangers__cost_kilobytes_before_they_have_proven_themselves(job: Job) -> None:
    """A long first command is refused by its length; a short one is all that is buffered."""
    greeting = b"\xff" + bytes(8) + b"\x7f\x03\x00CURVE" + bytes(15) + b"\0" + bytes(31)
    before = resident_bytes(job.server.pid)
    strangers = []
    for length in (63 << 20, FRAME_BYTES_MAX) * 32:
        stranger = socket.create_connection(("127.0.0.1", job.server.port))
        stranger.settimeout(SECONDS_MAX)
        strangers.append(stranger)
        with contextlib.suppress(OSError):  # it hangs up on the long ones
            stranger.sendall(greeting + b"\x06" + length.to_bytes(8, "big"))
            stranger.sendall(bytes(min(length, 2 << 20) - 1))
            if length > FRAME_BYTES_MAX:
                assert stranger.recv(1 << 16) == b"" or stranger.recv(1 << 16) == b""
    job.is_well()
    assert resident_bytes(job.server.pid) - before < len(strangers) * 256 << 10
    for stranger in strangers:
        stranger.close()
    job.is_well()


def test_strangers__who_fill_all_connections_keep_no_member_that_is_there() -> None:
    crowded = Job(connections=32)
    address = ("127.0.0.1", crowded.server.port)
    strangers = [socket.create_connection(address) for _ in range(32 + server_module.OWN_FILES)]
    crowded.reaches("accept_failed", 1)
    crowded.is_well()  # over the connection that it has
    for stranger in strangers:
        stranger.close()
    newcomer = crowded.client()
    assert newcomer.call("get", 30_000, 0, [b"secret"])[0] == Status.OK
    newcomer.close()
    crowded.member.close()
    crowded.server.close()


# Members that ask for too much


def test_member__a_reply_of_gigabytes_is_refused_before_it_is_made(job: Job) -> None:
    job.member.call("set", 10_000, 0, [b"large", bytes(VALUE_BYTES_MAX)])
    before = resident_bytes(job.server.pid)
    status, _, (message,) = job.member.call("multi_get", 10_000, 0, [b"large"] * 100_000)
    assert status == Status.STORE
    assert b"StoreLimit: a message has 838,861,200,018 bytes, at most 67,108,864" in message
    assert resident_bytes(job.server.pid) - before < VALUE_BYTES_MAX
    job.is_well()


def test_member__a_request_that_fails_ends_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    """When memory runs out in the midst of it, and in the midst of its reply."""
    monkeypatch.setitem(table_module._SERVE, Op.LIST_KEYS, _runs_out_of_memory)
    monkeypatch.setattr(server_module, "encode_reply", _fails_for_popped)
    with serving() as server:
        client = Client(address="127.0.0.1", port=server.port, keys=KEYS, connect_timeout_s=30)
        assert client.call("queue_push", 10_000, 0, [b"q", b"popped"])[0] == Status.OK
        for operation, items in (("list_keys", []), ("queue_pop", [b"q"])):
            status, _, (message,) = client.call(operation, 10_000, 1, items)
            assert status == Status.STORE
            assert message == b"the store's server failed at this request: MemoryError"
        assert client.call("queue_len", 10_000, 0, [b"q"])[1] == 1
        assert client.counters()["failed"] == 2
        client.close()


def test_members__who_do_not_read_are_bounded_together(context: zmq.Context[Any]) -> None:
    """What is made for them waits in one account; who finds it full is told to ask again."""
    job = Job(moving_bytes=3 * VALUE_BYTES_MAX)
    job.member.call("set", 10_000, 0, [b"large", bytes(VALUE_BYTES_MAX)])
    peers = [dealer(context) for _ in range(8)]
    outcomes = []
    for peer in peers:
        peer.connect(job.endpoint)
        tell(peer, encode_request(Request(Op.GET, 1, 0, 0, [b"large"])))
        outcomes.append(peer.recv()[8:][1])  # the first piece; nobody pulls more
    assert outcomes == [Outcome.OK] * 2 + [Outcome.BUSY] * 6
    half = encode_request(Request(Op.SET, 2, 0, 0, [b"k", bytes(VALUE_BYTES_MAX)]))
    for piece in pieces(half, 0, 600):
        peers[7].send(piece)
    assert heard(peers[7]) == Reply(Outcome.BUSY, 2)
    for peer in peers:
        tell(peer, encode_request(Request(Op.NUM_KEYS, 3)))  # what they had is dropped
    job.reaches("unanswered", 2)
    assert job.member.call("get", 30_000, 0, [b"large"])[2] == [bytes(VALUE_BYTES_MAX)]
    job.member.close()
    job.server.close()


def test_members__find_room_when_others_are_done(job: Job) -> None:
    crowded = Job(moving_bytes=VALUE_BYTES_MAX + WINDOW_BYTES)
    value = os.urandom(VALUE_BYTES_MAX)
    clients = [crowded.client() for _ in range(4)]
    answers: list[Any] = []

    def work(n: int) -> None:
        answers.append(clients[n].call("set", 60_000, 0, [b"%d" % n, value])[0])
        answers.append(clients[n].call("get", 60_000, 0, [b"%d" % n]) == (Status.OK, 0, [value]))

    threads = [threading.Thread(target=work, args=(n,)) for n in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sorted(answers) == [Status.OK] * 4 + [True] * 4
    for client in (*clients, crowded.member):
        client.close()
    crowded.server.close()


def _runs_out_of_memory(*_: object) -> Reply:
    raise MemoryError


def _fails_for_popped(reply: Reply) -> bytes:
    if reply.items == [b"popped"]:
        raise MemoryError
    return encode_reply(reply)


# Members that break the protocol


def test_member__malformed_messages_are_counted_and_answered(
    job: Job, context: zmq.Context[Any]
) -> None:
    peer = dealer(context)
    peer.connect(job.endpoint)
    for data in (b"\x01", pickle.dumps(os.getcwd), b"\x09" + bytes(21), bytes(5000)):
        tell(peer, data)
        assert heard(peer).outcome == Outcome.INVALID
    total_17, cut_off = (b"\0\0\0\x11\0\0\0\0", b"\0\0\0\x05\0\0\0\x01")
    for frame in (b"", total_17, b"\xff" * 9, cut_off + b"12345", total_17 + b"x" * 18):
        peer.send(frame)
        assert heard(peer).outcome == Outcome.INVALID
    peer.send_multipart([b"one", b"two"])
    assert b"a message of 2 frames" in heard(peer).items[0]
    assert job.counts("malformed") == 10
    for frame in (cut_off + b"1234", bytes(4), b"\xff" * 4):  # pieces and pulls of nothing
        peer.send(frame)
    tell(peer, encode_request(Request(Op.NUM_KEYS, 7)))
    assert heard(peer).id == 7
    job.is_well()


def test_member__a_pickle_is_kept_as_it_is_and_never_opened(job: Job, tmp_path: Path) -> None:
    mark = tmp_path / "opened"
    trap = pickle.dumps(_Trap(str(mark)))
    assert job.member.call("set", 10_000, 0, [b"trap", trap])[0] == Status.OK
    assert job.member.call("get", 10_000, 0, [b"trap"])[2] == [trap]
    assert not mark.exists()
    assert "pickle" not in (Path(server_module.__file__).parent / "server.py").read_text()


class _Trap:
    def __init__(self, path: str) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return (open, (self.path, "w"))


def test_member__a_frame_beyond_the_bound_ends_its_connection(
    job: Job, context: zmq.Context[Any]
) -> None:
    peer = dealer(context)
    events = peer.get_monitor_socket(zmq.Event.DISCONNECTED)
    peer.connect(job.endpoint)
    peer.send(bytes(FRAME_BYTES_MAX + 1))
    assert events.poll(SECONDS_MAX * 1000)
    job.is_well()


# Members that vanish


def test_member__vanishes_while_it_waits(job: Job) -> None:
    """Its wait ends with its slice; a value popped for it stays in the queue."""
    keys = (KEYS.server_public, KEYS.client_public, KEYS.client_secret)
    command = [sys.executable, "-c", _WAITS, str(job.server.port), *map(bytes.decode, keys)]
    with subprocess.Popen(command) as gone:
        job.reaches("waiting", 1)
        gone.kill()
    wait_until(lambda: job.counts("waiting") == 0, "the wait to be forgotten")
    assert job.member.call("queue_push", 10_000, 0, [b"queue", b"v"])[0] == Status.OK
    assert job.member.call("queue_pop", 10_000, 1, [b"queue"]) == (Status.OK, 0, [b"v"])


_WAITS = """
import sys
from securefabric.store.client import Client
from securefabric.store.keys import CurveKeys
port, server_public, client_public, client_secret = sys.argv[1:]
keys = CurveKeys(key_id="", server_public=server_public.encode(), server_secret=b"",
                 client_public=client_public.encode(), client_secret=client_secret.encode())
client = Client(address="127.0.0.1", port=int(port), keys=keys, connect_timeout_s=30)
client.call("queue_pop", 1_000_000, 1, [b"queue"])
"""


def test_members__256_meet_and_count_exactly(job: Job, context: zmq.Context[Any]) -> None:
    """256 connections at once: all count, all wait, one opens, all read the same value."""
    peers = [dealer(context) for _ in range(256)]
    for peer in peers:
        peer.connect(job.endpoint)
        tell(peer, encode_request(Request(Op.ADD, 1, 0, 1, [b"members"])))
    assert sorted(heard(peer).number for peer in peers) == list(range(1, 257))
    for peer in peers:
        tell(peer, encode_request(Request(Op.GET, 2, 5_000, 0, [b"door"])))
    job.reaches("waiting", 256)
    for peer in peers[::2]:  # half of them vanish
        peer.close()
    assert job.member.call("set", 10_000, 0, [b"door", b"open"])[0] == Status.OK
    for peer in peers[1::2]:
        reply = heard(peer)
        if reply.outcome == Outcome.PENDING:  # a slice had passed
            tell(peer, encode_request(Request(Op.GET, 3, 5_000, 0, [b"door"])))
            reply = heard(peer)
        assert reply.items == [b"open"]
    job.is_well()


def test_member__a_stopped_server_is_an_error_within_a_bound(
    job: Job, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("securefabric.store.client.REPLY_S", 0.3)
    os.kill(job.server.pid, signal.SIGSTOP)
    try:
        status, _, (message,) = job.member.call("wait", 100, 0, [b"never"])
    finally:
        os.kill(job.server.pid, signal.SIGCONT)
    assert status == Status.NETWORK
    assert b"does not answer: is the process that hosts it stopped" in message
    job.is_well()


# Secrets


def test_keys__are_in_no_repr_and_in_no_command_line(job: Job) -> None:
    secrets = (KEYS.server_secret.decode(), KEYS.client_secret.decode())
    command = Path(f"/proc/{job.server.pid}/cmdline").read_text()
    environment = Path(f"/proc/{job.server.pid}/environ").read_text()
    settings = server_module.Settings(
        addresses=[], port=0, server_secret=secrets[0], client_public="", limits=Limits()
    )
    for text in (repr(KEYS), repr(settings), repr(job.member), command, environment):
        assert not any(secret in text for secret in secrets)
