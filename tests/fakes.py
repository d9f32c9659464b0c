"""Stand-ins for the native core: what Python asks of it, without sockets and keys."""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
from collections.abc import Callable
from datetime import timedelta
from typing import Any

from torch._C._distributed_c10d import Store

from securefabric._core import JobKey
from securefabric.identity import PskIdentity
from securefabric.roster import EngineEntry, EntryBody, PeerEntry, policy_digest

SUITE = "aes-256-gcm"
KEY_ID = "00112233445566ff"
ENGINE_FIELDS = frozenset(field.name for field in dataclasses.fields(EngineEntry))


@dataclasses.dataclass(frozen=True)
class FakeCredential:
    """``_core.JobKey``: proves membership with an HMAC in Python."""

    key: bytes = b"k" * 32
    key_id: str = KEY_ID
    suite: str = SUITE
    mode: str = "psk"

    def evidence(self, message: bytes) -> bytes:
        return hmac.digest(self.key, message, "sha256")

    def verify_evidence(self, message: bytes, evidence: bytes) -> bool:
        return hmac.compare_digest(self.evidence(message), evidence)

    def check_evidence(self, rank: int, key_id: str, message: bytes, evidence: bytes) -> None:
        job_key: Any = self
        PskIdentity(job_key, 0).check_evidence(rank, key_id, message, evidence)


def make_engine(rank: int = 0, number: int = 0, **changes: object) -> EngineEntry:
    """A valid engine; no two are alike where they must differ."""
    engine = EngineEntry(
        public_key=hashlib.sha256(b"public %d %d" % (rank, number)).digest(),
        spi_base=1 << 20,
        addresses=[f"10.0.{number}.{rank + 1}:4000", f"[fd00::{number + 1}:{rank + 1}]:4001"],
    )
    return dataclasses.replace(engine, **changes)  # type: ignore[arg-type]


def make_body(rank: int = 0, **changes: object) -> EntryBody:
    """A valid body with one engine, whose fields may be changed as well.

    Two ranks' bodies differ where they must.
    """
    of_engine = {name: changes.pop(name) for name in ENGINE_FIELDS if name in changes}
    body = EntryBody(
        version=1,
        job="default",
        rank=rank,
        world_size=4,
        boot_id=hashlib.sha256(b"boot %d" % rank).digest()[:16],
        engines=[make_engine(rank, **of_engine)],
        max_datagram=8960,
        suite=SUITE,
        kem_key=b"",
        policy=policy_digest(identity="psk", suite=SUITE, generation_bits=22, has_kem=False),
    )
    return dataclasses.replace(body, **changes)  # type: ignore[arg-type]


class FakeFabric:
    """``_C.Fabric`` without a network."""

    made: int = 0

    def __init__(
        self, *, rank: int, suite: str, job_key_text: bytearray, **settings: object
    ) -> None:
        FakeFabric.made += 1
        self.settings = settings
        self.rank = rank
        self.suite = suite
        assert not job_key_text or JobKey(job_key_text).suite == suite
        self.boot_id = hashlib.sha256(b"boot %d" % FakeFabric.made).digest()[:16]
        public_key = hashlib.sha256(b"public %d" % FakeFabric.made).digest()
        self.engines = [(public_key, 4096, [f"127.0.0.1:{4000 + FakeFabric.made}"])]
        self.max_datagram = 8960
        self.entry = b""
        self.shutdowns = 0
        self.counted: dict[str, object] = {}

    def resolve(self, board: str, rank: int) -> PeerEntry | None:
        call = self.settings["resolve"]
        assert isinstance(call, Callable)  # type: ignore[arg-type]
        found: PeerEntry | None = call(board, rank)  # type: ignore[operator]
        return found

    def set_entry(self, own_entry: bytes) -> None:
        self.entry = own_entry

    def stats(self) -> dict[str, object]:
        return self.counted

    def shutdown(self) -> None:
        self.shutdowns += 1


class FakeBackend:
    """``_C.Backend``: keeps what it was given."""

    def __init__(self, **given: object) -> None:
        self.given = given


@dataclasses.dataclass
class FakeRequest:
    """torch's ``_DistributedBackendOptions``."""

    store: Store
    group_rank: int = 0
    group_size: int = 1
    timeout: timedelta | float = 1800.0
    group_id: str = "0"
    global_ranks_in_group: list[int] = dataclasses.field(default_factory=list)
