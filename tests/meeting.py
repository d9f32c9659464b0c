"""The core as rank 0, a second implementation of its protocol as rank 1."""

from __future__ import annotations

import os
import select
import time
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

from second_implementation import GENERATION_BITS, SECONDS_MAX, Group, Job, Peer, label

from securefabric import _C, _core
from securefabric.identity import PskIdentity
from securefabric.roster import EngineEntry, EntryBody, Roster, policy_digest


class Meeting:
    """A fabric and its backend as rank 0, and the peer, introduced to each other."""

    def __init__(self, suite: str, key_text: bytes | None, epoch_age_s: float) -> None:
        text = bytearray(key_text or _core.JobKey.format(suite, bytearray(os.urandom(32))))
        self.key_text = bytes(text)
        lines = dict(line.split(": ") for line in text.decode().splitlines()[1:])
        key = bytes.fromhex(lines["key"])
        job = Job(suite, bytes.fromhex(lines["id"]), key)
        assert job.key_id == label(key, "key id", b"", 8)
        self.peer = Peer(job)
        identity = PskIdentity(_core.JobKey(bytearray(text)), 0)
        self.fabric = _C.Fabric(
            rank=0,
            world_size=2,
            local_world_size=2,
            suite=suite,
            job_key_text=text,
            engines=1,
            addresses=["127.0.0.1"],
            interfaces="",
            sockets_per_interface=2,
            port_first=0,
            port_last=0,
            paths_per_peer=2,
            join_timeout_s=SECONDS_MAX,
            death_timeout_s=SECONDS_MAX,
            heartbeat_s=1.0,
            epoch_age_s=epoch_age_s,
            epoch_bytes=1 << 40,
            gso=True,
            gro=True,
            spin="never",
            eager_connect=False,
            generation_bits=GENERATION_BITS,
            tuning=[],
            resolve=lambda _board, rank, _is_needed: self.roster.verify(rank, self.peer.entry),
        )
        ((public_key, spi_base, addresses),) = self.fabric.engines
        engine = EngineEntry(public_key=public_key, spi_base=spi_base, addresses=addresses)
        body = EntryBody(
            version=1,
            job="second implementation",
            rank=0,
            world_size=2,
            boot_id=self.fabric.boot_id,
            engines=[engine],
            max_datagram=self.fabric.max_datagram,
            suite=suite,
            kem_key=b"",
            policy=policy_digest(
                identity="psk", suite=suite, generation_bits=GENERATION_BITS, has_kem=False
            ),
        )
        self.roster = Roster(identity, body)
        self.fabric.set_entry(self.roster.own_entry)
        identity_text = "the group of both"  # by an agreement of the two alone
        self.group = Group.of(identity_text)
        self.backend: Any = _C.Backend(
            fabric=self.fabric,
            group_rank=0,
            group_size=2,
            group_name="world",
            identity=identity_text,
            global_ranks=[0, 1],
            options=_C.Options(timedelta(seconds=SECONDS_MAX)),
        )
        self.peer.meet(engine, self.roster.own_entry)


@contextmanager
def meeting_with(
    suite: str, key_text: bytes | None = None, epoch_age_s: float = 3600.0
) -> Iterator[Meeting]:
    """A meeting that ends."""
    made = Meeting(suite, key_text, epoch_age_s)
    try:
        yield made
    finally:
        made.peer.socket.close()
        made.fabric.shutdown()


def open_paths(meeting: Meeting) -> None:
    peer = meeting.peer
    peer.confirm()  # makes the fabric look us up (§3.4); this one is dropped
    until = time.monotonic() + SECONDS_MAX
    while len(peer.active) < 2 and time.monotonic() < until:
        peer.confirm()
        for _ in range(20):
            if select.select([peer.socket], [], [], 0.005)[0]:
                peer.take(peer.socket.recv(65_535))
    assert peer.active == {0, 1}
