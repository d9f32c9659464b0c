"""What users and networks do wrong: a clear error that names cause and rank, within a bound."""

from __future__ import annotations

import functools
import os
import random
import signal
import socket
import time
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from ranks import await_meeting, join, meet, run_ranks

import securefabric
from securefabric.errors import ForkError
from securefabric.identity import write_key_file


def _all_reduce_once(_rank: int) -> float:
    join()
    tensor = torch.ones(4)
    dist.all_reduce(tensor)
    dist.destroy_process_group()
    return float(tensor[0])


def test_without_a_key__says_how_to_make_one() -> None:
    outcomes = run_ranks(_all_reduce_once, 1, key_file="", timeout_s=60)
    assert outcomes[0].error is not None
    assert "ConfigError" in outcomes[0].error
    assert "securefabric keygen" in outcomes[0].error


def test_key_file_that_others_may_read__is_refused(key_file: str) -> None:
    Path(key_file).chmod(0o644)
    outcomes = run_ranks(_all_reduce_once, 1, key_file=key_file)
    assert outcomes[0].error is not None
    assert "chmod 600" in outcomes[0].error


def test_rank_with_another_key__is_named_on_every_rank(key_file: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other.key")
    write_key_file(other)
    outcomes = run_ranks(
        _all_reduce_once,
        2,
        key_file=key_file,
        environment=lambda rank: {"SECUREFABRIC_KEY_FILE": other} if rank == 1 else {},
    )
    for rank, outcome in enumerate(outcomes):
        assert outcome.error is not None
        assert "AuthError" in outcome.error
        assert f"rank {1 - rank}" in outcome.error
        assert "key" in outcome.error


def test_rank_that_never_joins__is_named_with_the_wait(key_file: str) -> None:
    outcomes = run_ranks(
        _all_reduce_once,
        3,
        key_file=key_file,
        environment={"SECUREFABRIC_JOIN_TIMEOUT_S": "3"},
        absent=frozenset({2}),
    )
    for outcome in outcomes[:2]:
        assert outcome.error is not None, outcome
        assert "rank 2" in outcome.error
        assert "did not join" in outcome.error


def _run_pair(rank: int, left: str, right: str, rounds: int = 3) -> None:
    join()
    two = [torch.ones(4) for _ in range(2)]
    calls: dict[str, Any] = {
        "reduce_0": lambda: dist.reduce(torch.ones(4), dst=0),
        "reduce_1": lambda: dist.reduce(torch.ones(4), dst=1),
        "gather_0": lambda: dist.gather(torch.ones(4), two if rank == 0 else None, dst=0),
        "gather_1": lambda: dist.gather(torch.ones(4), two if rank == 1 else None, dst=1),
        "scatter_0": lambda: dist.scatter(torch.ones(4), two if rank == 0 else None, src=0),
        "scatter_1": lambda: dist.scatter(torch.ones(4), two if rank == 1 else None, src=1),
        "large_broadcast_0": lambda: dist.broadcast(torch.ones(1 << 20), src=0),
        "large_broadcast_1": lambda: dist.broadcast(torch.ones(1 << 20), src=1),
        "all_to_all": lambda: dist.all_to_all_single(torch.ones(4), torch.ones(4)),
        "all_to_all_f64": lambda: dist.all_to_all_single(
            torch.ones(4, dtype=torch.float64), torch.ones(4, dtype=torch.float64)
        ),
        "all_reduce_4": lambda: dist.all_reduce(torch.ones(4)),
        "all_reduce_5": lambda: dist.all_reduce(torch.ones(5)),
        "all_reduce_f64": lambda: dist.all_reduce(torch.ones(4, dtype=torch.float64)),
        "all_reduce_max": lambda: dist.all_reduce(torch.ones(4), op=dist.ReduceOp.MAX),
        "all_reduce_big": lambda: dist.all_reduce(torch.ones(1 << 20)),
        "broadcast_0": lambda: dist.broadcast(torch.ones(4), src=0),
        "broadcast_1": lambda: dist.broadcast(torch.ones(4), src=1),
        "barrier": lambda: dist.barrier(),
        "send_4": lambda: dist.send(torch.ones(4), 1),
        "recv_5": lambda: dist.recv(torch.ones(5), 0),
    }
    calls[(left, right)[rank]]()
    # A rank whose part was over before the other's began learns of it with its next call.
    for _ in range(rounds):
        dist.barrier()


@pytest.mark.parametrize(
    ("left", "right", "words"),
    [
        ("all_reduce_4", "all_reduce_5", ["all_reduce(float32 x 4", "all_reduce(float32 x 5"]),
        ("all_reduce_4", "all_reduce_f64", ["float32 x 4", "float64 x 4"]),
        ("all_reduce_4", "all_reduce_max", ["SUM", "MAX"]),
        ("all_reduce_4", "all_reduce_big", ["float32 x 4", "float32 x 1048576"]),
        ("all_reduce_4", "barrier", ["all_reduce", "barrier"]),
        ("broadcast_0", "broadcast_1", ["root 0", "root 1"]),
        ("broadcast_1", "broadcast_0", ["root 0", "root 1"]),
        ("reduce_0", "reduce_1", ["root 0", "root 1"]),
        ("reduce_1", "reduce_0", ["root 0", "root 1"]),
        ("gather_0", "gather_1", ["root 0", "root 1"]),
        ("gather_1", "gather_0", ["root 0", "root 1"]),
        ("scatter_0", "scatter_1", ["root 0", "root 1"]),
        ("scatter_1", "scatter_0", ["root 0", "root 1"]),
        ("all_to_all", "all_to_all_f64", ["all_to_all(float32)", "all_to_all(float64)"]),
        ("send_4", "recv_5", ["16 bytes", "20"]),
    ],
)
def test_ranks_that_disagree__are_both_named(
    key_file: str, left: str, right: str, words: list[str]
) -> None:
    outcomes = run_ranks(_run_pair, 2, left, right, key_file=key_file)
    for outcome in outcomes:
        assert outcome.error is not None, outcomes
        assert "OperationMismatch" in outcome.error
        assert "rank 0" in outcome.error
        assert "rank 1" in outcome.error
        for word in words:
            assert word in outcome.error, (word, outcome.error)


@pytest.mark.parametrize(
    ("left", "right"),
    [
        ("broadcast_1", "broadcast_0"),
        ("reduce_0", "reduce_1"),
        ("gather_0", "gather_1"),
        ("scatter_1", "scatter_0"),
        ("large_broadcast_0", "large_broadcast_1"),
        ("large_broadcast_1", "large_broadcast_0"),
    ],
)
def test_roots_that_differ__end_the_call_itself_where_anybody_waits_in_it(
    key_file: str, left: str, right: str
) -> None:
    for outcome in run_ranks(_run_pair, 2, left, right, 0, key_file=key_file):
        assert outcome.error is not None
        assert "OperationMismatch" in outcome.error
        assert "root 0" in outcome.error
        assert "root 1" in outcome.error


def _leave_by_an_error(rank: int) -> None:
    join()
    dist.barrier()
    if rank == 1:
        raise RuntimeError("the disk is full")
    dist.all_reduce(torch.ones(4))


def test_rank_whose_program_raises__the_others_are_sent_to_its_log(key_file: str) -> None:
    outcomes = run_ranks(_leave_by_an_error, 2, key_file=key_file)
    assert outcomes[0].error is not None, outcomes
    assert "PeerLost: rank 1" in outcomes[0].error
    assert "has left the job" in outcomes[0].error
    assert outcomes[0].error.endswith("its own log says why")


def _loop_until_failure(rank: int, victim: int, ready: str, numel: int) -> tuple[str, float]:
    join()
    tensor = torch.ones(numel)
    dist.all_reduce(tensor)
    if rank == victim:
        Path(ready).touch()
    started = time.monotonic()
    try:
        while time.monotonic() - started < 60:
            started_call = time.monotonic()
            dist.all_reduce(tensor)
    except dist.DistBackendError as error:
        waited = time.monotonic() - started_call
        try:
            dist.all_reduce(tensor)
        except dist.DistBackendError:
            return str(error), waited
    return "no error", 0.0


@pytest.mark.parametrize(
    ("how", "engines"), [(signal.SIGKILL, 1), (signal.SIGSTOP, 1), (signal.SIGKILL, 2)]
)
def test_lost_peer__every_survivor_learns_who(
    key_file: str, tmp_path: Path, how: int, engines: int
) -> None:
    ready = tmp_path / "ready"
    victim = 1

    def strike(processes: dict[int, Any]) -> None:
        until = time.monotonic() + 60
        while not ready.exists() and time.monotonic() < until:
            time.sleep(0.01)
        os.kill(processes[victim].pid, how)

    outcomes = run_ranks(
        _loop_until_failure,
        3,
        victim,
        str(ready),
        1 << 16 if engines == 1 else 1 << 19,  # elements; these are enough for two engines
        key_file=key_file,
        environment={
            "SECUREFABRIC_DEATH_TIMEOUT_S": "3",
            "SECUREFABRIC_HEARTBEAT_S": "0.5",
            "SECUREFABRIC_ENGINES": str(engines),
        },
        meanwhile=strike,
        timeout_s=40,
    )
    for rank in (0, 2):
        assert outcomes[rank].error is None, outcomes[rank]
        message, waited = outcomes[rank].value
        assert "PeerLost" in message
        assert "rank 1" in message
        assert "all_reduce" in message
        assert waited < 15


def _operation_timeout(rank: int) -> str:
    join(timeout_s=2)
    if rank == 1:
        time.sleep(6)
        return ""
    started = time.monotonic()
    with pytest.raises(dist.DistBackendError) as raised:
        dist.all_reduce(torch.ones(4))
    assert time.monotonic() - started < 4
    return str(raised.value)


def test_timeout__names_the_rank_that_did_not_start(key_file: str) -> None:
    outcomes = run_ranks(_operation_timeout, 2, key_file=key_file)
    assert outcomes[0].error is None, outcomes
    message = outcomes[0].value
    assert "OperationTimeout" in message
    assert " Timed out " in message
    assert "rank 1" in message
    assert "has not started this operation" in message


def _links_of_this_rank(_rank: int, *, expects: bool) -> int:
    join()
    until = time.monotonic() + 30
    while expects and securefabric.stats().peers == 0 and time.monotonic() < until:
        time.sleep(0.01)
    peers = securefabric.stats().peers
    meet("looked", 2)
    await_meeting("looked", 2)
    dist.destroy_process_group()
    return peers


@pytest.mark.parametrize("is_eager", [False, True])
def test_eager_connect__links_before_the_first_call(key_file: str, is_eager: bool) -> None:
    outcomes = run_ranks(
        functools.partial(_links_of_this_rank, expects=is_eager),
        2,
        key_file=key_file,
        environment={"SECUREFABRIC_EAGER_CONNECT": str(int(is_eager))},
    )
    for outcome in outcomes:
        assert outcome.error is None, outcome.details
        assert outcome.value == int(is_eager)


def _monitored_barrier(rank: int, absent: int, *, wait_all_ranks: bool) -> str:
    join()
    dist.all_reduce(torch.ones(4))
    group: Any = dist.group.WORLD
    if rank >= absent:
        await_meeting("done", absent)  # absent, not gone: that would be another error
        return "absent"
    meet("ready", absent)
    started = time.monotonic()
    with pytest.raises(RuntimeError) as raised:
        group.monitored_barrier(timedelta(seconds=5), wait_all_ranks=wait_all_ranks)
    assert time.monotonic() - started < 30
    with pytest.raises(RuntimeError):
        dist.all_reduce(torch.ones(4))
    meet("done", absent)
    return str(raised.value)


@pytest.mark.parametrize(
    ("absent", "wait_all_ranks", "words"),
    [
        (2, False, "[Rank 0]: Rank 2 failed to pass monitoredBarrier in 5000 ms"),
        (2, True, "[Rank 0]: Ranks 2, 3 failed to pass monitoredBarrier in 5000 ms"),
        (1, True, "[Rank 0]: Ranks 1, 2, 3 failed to pass monitoredBarrier in 5000 ms"),
    ],
)
def test_monitored_barrier__names_the_missing_ranks(
    key_file: str, absent: int, wait_all_ranks: bool, words: str
) -> None:
    outcomes = run_ranks(
        functools.partial(_monitored_barrier, wait_all_ranks=wait_all_ranks),
        4,
        absent,
        key_file=key_file,
    )
    for outcome in outcomes:
        assert outcome.error is None, outcome
    assert words in outcomes[0].value
    for rank in range(1, absent):
        assert (
            f"Rank {rank} successfully reached monitoredBarrier, but received errors while waiting "
            "for send/recv from rank 0. Please check rank 0 logs for faulty rank."
        ) in outcomes[rank].value


def _monitored_barrier_without_time(_rank: int) -> str:
    join()
    group: Any = dist.group.WORLD
    with pytest.raises(RuntimeError) as raised:
        group.monitored_barrier(timedelta(seconds=0))
    return str(raised.value)


def test_monitored_barrier__without_time_for_anybody(key_file: str) -> None:
    outcome = run_ranks(
        _monitored_barrier_without_time, 2, key_file=key_file, absent=frozenset({1})
    )[0]
    assert outcome.error is None, outcome
    assert "Rank 0 timed out in monitoredBarrier after 0 ms." in outcome.value
    assert "No ranks successfully processed in monitoredBarrier." in outcome.value


def _wait_with_a_timeout_of_its_own(rank: int) -> tuple[str, float]:
    join()
    tensor = torch.ones(4)
    dist.all_reduce(tensor)
    if rank == 1:
        with pytest.raises(RuntimeError):  # the group has ended on rank 0
            dist.recv(tensor, 0)
        return "", 0.0
    work = dist.all_reduce(tensor, async_op=True)
    assert work is not None
    started = time.monotonic()
    with pytest.raises(RuntimeError) as raised:
        work.wait(timedelta(seconds=1))
    waited = time.monotonic() - started
    assert not work.is_success()
    return str(raised.value), waited


def test_wait__with_a_timeout_of_its_own(key_file: str) -> None:
    outcomes = run_ranks(_wait_with_a_timeout_of_its_own, 2, key_file=key_file)
    for outcome in outcomes:
        assert outcome.error is None, outcomes
    message, waited = outcomes[0].value
    assert " of process group '0' on rank 0 Timed out after 1000 ms" in message
    assert waited >= 1.0


def _fork_and_use(_rank: int) -> str:
    join()
    tensor = torch.ones(1 << 19)  # made here: torch's own threads do not survive fork()
    dist.all_reduce(tensor)
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        try:
            assert securefabric.summary() == ""
            with pytest.raises(ForkError):
                securefabric.stats()
            dist.all_reduce(tensor)
            text = "no error"
        except BaseException as error:
            text = f"{type(error).__name__}: {error}"
        os.write(writer, text.encode())
        os._exit(0)
    os.close(writer)
    with os.fdopen(reader) as pipe:
        text = pipe.read()
    os.waitpid(child, 0)
    dist.all_reduce(tensor)
    dist.destroy_process_group()
    return text


@pytest.mark.parametrize("engines", [1, 2])
def test_forked_child__may_not_use_the_keys(key_file: str, engines: int) -> None:
    environment = {"SECUREFABRIC_ENGINES": str(engines)}
    for outcome in run_ranks(_fork_and_use, 2, key_file=key_file, environment=environment):
        assert outcome.error is None, outcome
        assert "ForkError" in outcome.value
        assert "fork" in outcome.value


def _reduce_under_fire(rank: int, ports: str) -> tuple[bool, int, int]:
    join()
    tensor = torch.ones(1 << 18)
    dist.all_reduce(tensor)
    from securefabric._fabric import current_fabric

    fabric = current_fabric()
    assert fabric is not None
    own = Path(ports) / str(rank)
    own.with_suffix(".tmp").write_text(" ".join(fabric.roster.own.addresses))
    own.with_suffix(".tmp").rename(own)
    exact = True
    until = time.monotonic() + 4
    rounds = 0
    going = torch.ones(1)
    while going.item():
        tensor = torch.arange(1 << 18, dtype=torch.float32)
        dist.all_reduce(tensor)
        exact = exact and bool((tensor == 2 * torch.arange(1 << 18, dtype=torch.float32)).all())
        rounds += 1
        going = torch.tensor([1.0 if time.monotonic() < until else 0.0])
        dist.all_reduce(going, op=dist.ReduceOp.MIN)
    drops = sum(securefabric.stats().drops.values())
    dist.destroy_process_group()
    return exact, rounds, drops


def test_random_datagrams__are_dropped_counted_and_never_answered(
    key_file: str, tmp_path: Path
) -> None:
    """Junk at every data port while collectives run: exact results, not one reply."""
    ports = tmp_path / "ports"
    ports.mkdir()
    thrown = 0
    replies = 0

    def throw(processes: dict[int, Any]) -> None:
        nonlocal thrown, replies
        until = time.monotonic() + 60
        while len(list(ports.glob("[01]"))) < 2 and time.monotonic() < until:
            time.sleep(0.01)
        targets = []
        for file in ports.glob("[01]"):
            for text in file.read_text().split():
                host, _, port = text.rpartition(":")
                targets.append((host, int(port)))
        randomness = random.Random(1)
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as attacker:
            attacker.bind(("127.0.0.1", 0))
            attacker.setblocking(False)
            stop = time.monotonic() + 3
            while time.monotonic() < stop and thrown < 50_000:
                junk = randomness.randbytes(randomness.choice([0, 1, 15, 16, 47, 48, 100, 1400]))
                if thrown % 3 == 0 and len(junk) > 16:
                    junk = b"\x11\x00" + junk[2:]  # a plausible start
                attacker.sendto(junk, targets[thrown % len(targets)])
                thrown += 1
                try:
                    attacker.recv(65536)
                    replies += 1
                except BlockingIOError:
                    pass

    outcomes = run_ranks(_reduce_under_fire, 2, str(ports), key_file=key_file, meanwhile=throw)
    assert replies == 0
    assert thrown > 1000
    for outcome in outcomes:
        assert outcome.error is None, outcome
        exact, rounds, drops = outcome.value
        assert exact
        assert rounds > 1
        assert drops > 100
    assert sum(outcome.value[2] for outcome in outcomes) <= thrown + 100
