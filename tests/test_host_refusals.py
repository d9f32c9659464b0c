"""What a host refuses, or has too much of: a rank goes on without it, or says it by name."""

from __future__ import annotations

import ctypes
import errno
import os
import platform
import socket
import struct
import subprocess

import pytest
import torch
import torch.distributed as dist
from ranks import join, run_ranks
from testbed.namespaces import Bed, why_not

pytestmark = pytest.mark.usefixtures("clean_environment")

SHORT = {"SECUREFABRIC_JOIN_TIMEOUT_S": "10"}
# Of x86-64.
SYSTEM_CALLS = {"recvmmsg": 299, "timerfd_settime": 286, "epoll_create1": 291}


def _reduce(_rank: int) -> float:
    join()
    tensor = torch.ones(1000)
    dist.all_reduce(tensor)
    dist.destroy_process_group()
    return float(tensor[0])


# Forked children


def _datagram_sockets() -> int:
    count = 0
    for name in os.listdir("/proc/self/fd"):
        try:
            with socket.socket(fileno=os.dup(int(name))) as one:
                count += one.type == socket.SOCK_DGRAM
        except OSError:
            continue  # no socket, or the listing's own descriptor
    return count


def _fork_a_worker(_rank: int) -> tuple[int, int]:
    join()
    before = _datagram_sockets()
    reader, writer = os.pipe()
    if os.fork() == 0:
        os.write(writer, bytes([_datagram_sockets()]))
        os._exit(0)
    in_child = os.read(reader, 1)[0]
    os.wait()
    tensor = torch.ones(1000)
    dist.all_reduce(tensor)  # the parent goes on
    dist.destroy_process_group()
    return before, in_child


def test_forked_worker__holds_no_port_of_its_rank(key_file: str) -> None:
    for outcome in run_ranks(_fork_a_worker, 2, key_file=key_file):
        assert outcome.error is None, outcome
        before, in_child = outcome.value
        assert before >= 3
        assert in_child == 0


# Calls that a sandbox forbids


class _Filter(ctypes.Structure):
    _fields_ = (("length", ctypes.c_ushort), ("program", ctypes.c_void_p))


def _forbid(call: int) -> None:
    """Let the kernel answer EPERM to a system call of this process, by seccomp."""
    instructions = [
        (0x20, 0, 0, 0),  # load the call's number
        (0x15, 0, 1, call),
        (0x06, 0, 0, 0x00050000 | errno.EPERM),
        (0x06, 0, 0, 0x7FFF0000),
    ]
    program = ctypes.create_string_buffer(b"".join(struct.pack("HBBI", *i) for i in instructions))
    chosen = _Filter(len(instructions), ctypes.addressof(program))
    libc = ctypes.CDLL(None, use_errno=True)
    assert libc.prctl(38, 1, 0, 0, 0) == 0
    assert libc.prctl(22, 2, ctypes.byref(chosen), 0, 0) == 0, os.strerror(ctypes.get_errno())


def _reduce_in_sandbox(rank: int, call: int) -> float:
    if rank == 0:
        _forbid(call)
    return _reduce(rank)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="the numbers are of x86-64")
@pytest.mark.parametrize("name", SYSTEM_CALLS)
def test_forbidden_call__is_named_at_once(key_file: str, name: str) -> None:
    outcome = run_ranks(
        _reduce_in_sandbox, 2, SYSTEM_CALLS[name], key_file=key_file, environment=SHORT
    )[0]
    assert outcome.error is not None
    assert f"{name}: Operation not permitted" in outcome.error, outcome
    assert "sandbox" in outcome.error
    assert "firewall" not in outcome.error


# Interfaces


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
def test_many_addresses__are_more_than_an_entry_holds(key_file: str) -> None:
    with Bed(2, 1) as bed:
        lines = "".join(f"addr add 10.88.0.{i}/32 dev e0\n" for i in range(1, 61))
        subprocess.run(
            ["ip", "-n", bed.hosts[1].namespace, "-batch", "-"], input=lines, text=True, check=True
        )
        for outcome in run_ranks(_reduce, 2, key_file=key_file, bed=bed):
            assert outcome.error is None, outcome
            assert outcome.value == 2.0


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
@pytest.mark.parametrize("local", [0, 1])
def test_localhost_on_one_rank__says_nothing_of_the_others(key_file: str, local: int) -> None:
    """Both ranks on two hosts with rank 0's as localhost there; or both on one, with two names."""
    with Bed(2 - local, 1) as bed:
        environment = {"SECUREFABRIC_SOCKET_IFNAME": "", "LOCAL_WORLD_SIZE": ""}
        for outcome in run_ranks(
            _reduce,
            2,
            key_file=key_file,
            environment=lambda rank: {
                **environment,
                **({"MASTER_ADDR": "127.0.0.1"} if rank == local else {}),
            },
            bed=bed,
        ):
            assert outcome.error is None, outcome
            assert outcome.value == 2.0


@pytest.mark.skipif(bool(why_not()), reason=why_not() or "")
def test_small_mtu__is_named_on_both_ranks(key_file: str) -> None:
    with Bed(2, 1) as bed:
        subprocess.run(
            ["ip", "-n", bed.hosts[1].namespace, "link", "set", "e0", "mtu", "1000"], check=True
        )
        for outcome in run_ranks(_reduce, 2, key_file=key_file, environment=SHORT, bed=bed):
            assert outcome.error is not None
            assert "ConfigError: " in outcome.error, outcome
            assert "(MTU 1000, 1228 needed)" in outcome.error
