"""Where the secrets of a live job lie, and that none is left when its fabric is gone.

The parent reads a rank's memory through /proc/<pid>/mem. The kernel marks the arenas of secret
memory for it (wiped on fork, left out of core dumps), so every secret that the rank holds, expanded
keys included, can be taken from there and looked for in all the rest, without any hook.
"""

from __future__ import annotations

import gc
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.distributed as dist
from ranks import join, run_ranks
from zmq.utils import z85

from securefabric.identity import suite_provider, suite_refusal, write_key_file
from securefabric.store import open_store
from securefabric.store.keys import curve_keys

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not Path("/proc/self/smaps").exists(), reason="needs Linux' /proc"),
]

DEADLINE_S = 60.0
PIECE_BYTES = 16


@dataclass(frozen=True)
class Mapping:
    start: int
    end: int
    is_writable: bool
    flags: frozenset[str]

    @property
    def is_arena(self) -> bool:
        return {"wf", "dd"} <= self.flags


def mappings_of(pid: int) -> Iterator[Mapping]:
    header = re.compile(r"^([0-9a-f]+)-([0-9a-f]+) (\S{4}) \S+ \S+ \S+\s*(.*)$")
    start = end = 0
    is_writable = False
    for line in Path(f"/proc/{pid}/smaps").read_text().splitlines():
        found = header.match(line)
        if found:
            start, end = int(found[1], 16), int(found[2], 16)
            is_writable = found[3].startswith("rw") and not found[4].startswith("/dev/")
        elif line.startswith("VmFlags:"):
            yield Mapping(start, end, is_writable, frozenset(line.split()[1:]))


def read(pid: int, mapping: Mapping) -> bytes:
    with Path(f"/proc/{pid}/mem").open("rb", buffering=0) as memory:
        memory.seek(mapping.start)
        try:
            return memory.read(mapping.end - mapping.start)
        except OSError:  # pages that nobody ever touched, or that belong to a device
            return b""


def secrets_of(pid: int) -> set[bytes]:
    """Every random-looking 16 bytes in the arenas."""
    found = set()
    for mapping in mappings_of(pid):
        if mapping.is_arena:
            memory = read(pid, mapping)
            pieces = (memory[at : at + PIECE_BYTES] for at in range(0, len(memory), PIECE_BYTES))
            found |= {piece for piece in pieces if len(set(piece)) >= 12}
    return found


def found_outside(pid: int, secrets: set[bytes]) -> set[bytes]:
    """Those of the secrets that lie, aligned to 4 bytes, anywhere but in the arenas."""
    starts = np.array(sorted({int.from_bytes(s[:8], "little") for s in secrets}), dtype=np.uint64)
    found = set()
    for mapping in mappings_of(pid):
        if mapping.is_arena or not mapping.is_writable:
            continue
        memory = read(pid, mapping)
        for shift in (0, 4):
            words = np.frombuffer(memory, np.uint64, (len(memory) - shift) // 8, shift)
            places = np.searchsorted(starts, words)
            hits = starts[np.minimum(places, len(starts) - 1)] == words
            for word in np.flatnonzero(hits):
                at = shift + 8 * int(word)
                found |= {memory[at : at + PIECE_BYTES]} & secrets
    return found


def wait_for(path: Path) -> None:
    until = time.monotonic() + DEADLINE_S
    while not path.exists():
        assert time.monotonic() < until, f"{path.name} did not come"
        time.sleep(0.01)


def hold_secrets(rank: int, folder: str, canary: str) -> int:
    """Be a rank that exchanges data, then one without a fabric; stand still after each."""
    from securefabric import _fabric

    left_behind = bytes.fromhex(canary)  # what a careless program does with a key
    join()
    tensor = torch.full((1_000_000,), float(rank + 1))
    dist.all_reduce(tensor)
    dist.all_reduce(torch.ones(3))
    (Path(folder) / f"alive{rank}").touch()
    wait_for(Path(folder) / "scanned_alive")
    dist.destroy_process_group()
    assert _fabric._current is not None
    _fabric._current.shutdown()
    _fabric._current = None
    gc.collect()
    (Path(folder) / f"gone{rank}").touch()
    wait_for(Path(folder) / "scanned_gone")
    return int(tensor[0]) + 0 * len(left_behind)


@pytest.mark.parametrize("suite", ["aes-256-gcm", "aegis-256x2"])
def test_secrets__lie_in_locked_memory_alone_and_are_gone_with_the_fabric(
    suite: str, tmp_path: Path
) -> None:
    provider = suite_provider(suite)
    if provider in ("", "openssl"):
        pytest.skip(f"{suite} has no kernel of ours on this CPU: {suite_refusal(suite)}")
    key_file = str(tmp_path / "job.key")
    write_key_file(key_file, suite)
    canary = os.urandom(PIECE_BYTES)
    scans: dict[str, Any] = {}

    def scan(processes: dict[int, Any]) -> None:
        pid = processes[0].pid
        try:
            for rank in processes:
                wait_for(tmp_path / f"alive{rank}")
            scans["secrets"] = secrets_of(pid)
            scans["alive"] = found_outside(pid, scans["secrets"] | {canary})
            (tmp_path / "scanned_alive").touch()
            for rank in processes:
                wait_for(tmp_path / f"gone{rank}")
            scans["left"] = secrets_of(pid)
            scans["gone"] = found_outside(pid, scans["secrets"] | {canary})
        finally:
            (tmp_path / "scanned_alive").touch()
            (tmp_path / "scanned_gone").touch()

    arguments = (str(tmp_path), canary.hex())
    outcomes = run_ranks(hold_secrets, 2, *arguments, key_file=key_file, meanwhile=scan)
    assert [outcome.value for outcome in outcomes] == [3, 3], outcomes
    # Job secrets, X25519 key, and for each path that was used two generations' secrets and keys.
    assert len(scans["secrets"]) > 20
    assert scans["alive"] == {canary}, "secrets outside of secret memory while the job runs"
    assert scans["left"] == set(), "secrets that nobody wiped"
    assert scans["gone"] == {canary}, "copies of secrets that nobody wiped"


CLIENT = """
import sys, torch
from securefabric.store import open_store
store = open_store("127.0.0.1", int(sys.argv[1]), key_file=sys.argv[2])
store.set("a", "b")
print("connected", flush=True)
input()
"""


def test_secrets__a_stores_client_never_has_the_servers(tmp_path: Path) -> None:
    key_file = str(tmp_path / "job.key")
    write_key_file(key_file, "aes-256-gcm")
    server: Any = open_store("127.0.0.1", 0, serve=True, key_file=key_file)
    command = [sys.executable, "-c", CLIENT, str(server.port), key_file]
    with subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as client:
        assert client.stdin is not None
        assert client.stdout is not None
        assert client.stdout.readline() == "connected\n"
        keys = curve_keys(key_file, serve=True)
        counts = dict.fromkeys((keys.server_secret, keys.client_secret), 0)
        for mapping in mappings_of(client.pid):
            if mapping.is_writable and not mapping.is_arena:
                memory = read(client.pid, mapping)
                for secret in counts:
                    counts[secret] += memory.count(secret) + memory.count(z85.decode(secret))
        client.stdin.write("end\n")
        client.stdin.flush()
    assert counts[keys.server_secret] == 0
    assert counts[keys.client_secret] > 0  # so the search finds what is there
    server.client.close()
