"""Who tries to join that should not, and what a hostile store can do: rows 19 to 28 and 40 of
the attack table in docs/SECURITY.md and 43, against live ranks with real keys and sockets."""

from __future__ import annotations

import dataclasses
import resource
from pathlib import Path
from typing import Any

import pytest
import torch
from certificate_factory import authority as other_authority
from certificate_factory import key_pem, leaf, pem
from fakes import ENGINE_FIELDS
from members import Member, check_all_reduce, errors_of, job
from torch._C._distributed_c10d import HashStore

from securefabric import _core, _fabric, authority
from securefabric.errors import (
    BadRank,
    CertificateMismatch,
    ConfigError,
    DuplicateRank,
    IdentityError,
)
from securefabric.identity import PskIdentity, read_key_text, write_key_file
from securefabric.roster import EntryBody, encode_entry
from securefabric.tuning import TuningRow, write_tuning

pytestmark = pytest.mark.usefixtures("clean_environment")

ENTRY = "securefabric/entry/{}"
# Points of order 1, 2, 4 and 8 on the curve and its twist, and their other encodings: what makes a
# shared secret of zeros whatever the other key is.
LOW_ORDER = [
    "00" * 32,
    "01" + "00" * 31,
    "e0eb7a7c3b41b8ae1656e3faf19fc46ada098deb9c32b1fd866205165f49b800",
    "5f9c95bca3508c24b1d0b1559c83ef5b04445cc4581c8e86d8224eddd09f1157",
    "ecffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "edffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
    "eeffffffffffffffffffffffffffffffffffffffffffffffffffffffffffff7f",
]


@pytest.fixture
def store() -> HashStore:
    return HashStore()


def member_identity(key_file: str, rank: int) -> PskIdentity:
    return PskIdentity(_core.JobKey(read_key_text(key_file)), rank)


def forged(member: Member, key_file: str, **changes: Any) -> bytes:
    """The entry of a member who lies in these fields."""
    own = member.fabric.roster.own
    of_engine = {name: changes.pop(name) for name in ENGINE_FIELDS if name in changes}
    engines = [dataclasses.replace(own.engines[0], **of_engine), *own.engines[1:]]
    body: EntryBody = dataclasses.replace(own, engines=engines, **changes)
    return encode_entry(member_identity(key_file, member.rank), body)


def put(store: Any, key: str, value: bytes) -> None:  # torch's stub knows only text
    store.set(key, value)


# 19: a peer with another job key


def test_row_19__a_stranger_to_the_key_is_named_on_every_rank(
    key_file: str, tmp_path: Path, store: HashStore
) -> None:
    other = str(tmp_path / "other.key")
    other_id = write_key_file(other)
    with job(
        Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=other)
    ) as members:
        for rank, error in enumerate(errors_of(*members)):
            assert error.startswith("AuthError: ")
            assert f"rank {1 - rank}" in error
            assert other_id in error
            assert "SECUREFABRIC_KEY_FILE" in error
        assert [member.fabric.native.stats()["packets_opened"] for member in members] == [0, 0]


# 20: the right key, another job


def test_row_20__another_job_id_is_named_on_every_rank(key_file: str, store: HashStore) -> None:
    with job(
        Member(0, 2, store, key_file=key_file, job_id="day"),
        Member(1, 2, store, key_file=key_file, job_id="night"),
    ) as members:
        for error in errors_of(*members):
            assert error.startswith("JobMismatch: ")
            assert "'day'" in error
            assert "'night'" in error


def test_row_20__two_jobs_on_one_host_with_one_key_do_not_meet(key_file: str) -> None:
    stores = [HashStore(), HashStore()]
    with job(
        *(
            Member(rank, 2, stores[number], key_file=key_file, job_id=f"job {number}")
            for number in (0, 1)
            for rank in (0, 1)
        )
    ) as members:
        for _ in range(5):
            works = [(member, *member.start(20_000)) for member in members]
            for _, work, tensor in works:
                work.wait()
                assert bool((tensor == 3).all())
        for member in members:
            drops: Any = member.fabric.native.stats()["drops"]
            assert drops["auth_failed"] == 0


# 21: two processes claim one rank


def test_row_21__the_second_process_of_a_rank_is_refused_and_both_are_named(
    key_file: str, store: HashStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    with job(
        Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=key_file)
    ) as members:
        # A process may replace its own entries, and all members of this test are one process.
        monkeypatch.setattr(_fabric, "_published", set())
        with pytest.raises(DuplicateRank) as raised:
            Member(1, 2, store, key_file=key_file)
        first = members[1].fabric.roster.own.addresses[0]
        assert first in str(raised.value)
        assert "claim rank 1: this one at 127.0.0.1:" in str(raised.value)
        check_all_reduce(*members)


def test_row_21__a_rank_outside_of_the_world_is_refused(key_file: str, store: HashStore) -> None:
    first, second = Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=key_file)
    with job(first, second):
        put(store, ENTRY.format(1), forged(second, key_file, rank=5))
        error = first.error()
        assert error.startswith("BadRank: ")
        assert "claims rank 5 of 2" in error


# 22: certificates; what is wrong with each kind is in test_certificates.py


def certified(folder: Path, **settings: Any) -> dict[str, Any]:
    return {
        "cert_file": str(folder / "rank-{rank}.pem"),
        "ca_file": str(folder / "ca.pem"),
        **settings,
    }


@pytest.fixture
def certificates(tmp_path: Path) -> Path:
    authority.init(str(tmp_path / "ca"))
    return authority.issue(str(tmp_path / "ca"), job="night", ranks=range(3))


def test_x509__ranks_need_no_job_key(certificates: Path, store: HashStore) -> None:
    settings = certified(certificates)
    with job(*(Member(rank, 3, store, **settings) for rank in range(3))) as members:
        check_all_reduce(*members, numel=100_000)
        assert {member.fabric.roster.own.job for member in members} == {"night"}
        assert all(member.fabric.roster.has_kem for member in members)


def test_x509__with_a_job_key_and_another_suite(
    certificates: Path, tmp_path: Path, store: HashStore
) -> None:
    key = str(tmp_path / "chacha.key")
    write_key_file(key, "chacha20-poly1305")
    settings = certified(certificates, key_file=key)
    with job(*(Member(rank, 2, store, **settings) for rank in range(2))) as members:
        check_all_reduce(*members)
        assert {member.fabric.suite for member in members} == {"chacha20-poly1305"}
        assert not any(member.fabric.roster.has_kem for member in members)


def test_x509__the_suite_is_a_setting_where_no_key_says_it(
    certificates: Path, key_file: str, store: HashStore
) -> None:
    settings = certified(certificates)
    with job(
        Member(0, 2, store, **settings, suite="chacha20-poly1305"), Member(1, 2, store, **settings)
    ) as members:
        for error in errors_of(*members):
            assert error.startswith("PolicyMismatch: ")
            assert "'chacha20-poly1305'" in error
    with pytest.raises(ConfigError, match="the job key says aes-256-gcm"):
        Member(0, 1, HashStore(), key_file=key_file, suite="chacha20-poly1305")


def test_row_22__a_certified_rank_that_speaks_for_another_is_named(
    tmp_path: Path, store: HashStore
) -> None:
    """Rank 2 puts what it can sign on rank 1's place: its own certificate is no help."""
    for rank in range(3):
        issued = leaf(rank)
        (tmp_path / f"rank-{rank}.pem").write_bytes(pem(issued[0]))
        (tmp_path / f"rank-{rank}.key").write_bytes(key_pem(issued[1]))
        (tmp_path / f"rank-{rank}.key").chmod(0o600)
    (tmp_path / "ca.pem").write_bytes(pem(other_authority()[0]))
    settings = certified(tmp_path)
    with job(*(Member(rank, 3, store, **settings) for rank in (0, 2))) as (first, second):
        liar = dataclasses.replace(second.fabric.roster.own, rank=1)
        entry = encode_entry(second.fabric.roster._identity, liar)
        put(store, ENTRY.format(1), entry)
        error = first.error()
        assert error.startswith("CertificateMismatch: rank 1 ")
        assert "rank/2" in error
    with pytest.raises(CertificateMismatch, match=r"rank 1 \(this rank\)"):
        Member(1, 3, HashStore(), **{**settings, "cert_file": str(tmp_path / "rank-2.pem")})


# 23: the store changes, deletes or duplicates


@pytest.mark.parametrize("field", ["public_key", "addresses", "suite"])
def test_row_23__what_the_store_changes_is_found_out(
    field: str, key_file: str, store: HashStore
) -> None:
    def change(key: str, value: bytes) -> bytes:
        if key != ENTRY.format(1):
            return value
        own = members[1].fabric.roster.own
        before: Any = getattr(own.engines[0] if field in ENGINE_FIELDS else own, field)
        text = before[0].encode() if field == "addresses" else before
        text = text.encode() if isinstance(text, str) else text
        at = value.index(text) + len(text) - 1
        return value[:at] + bytes([value[at] ^ 1]) + value[at + 1 :]

    members = [Member(0, 2, store, key_file=key_file, alter=change)]
    members.append(Member(1, 2, store, key_file=key_file))
    with job(*members):
        error = members[0].error()
        assert error.startswith("AuthError: ")
        assert "rank 1" in error
        assert "altered" in error


def test_row_23__what_the_store_deletes_is_missed_by_name(key_file: str, store: HashStore) -> None:
    def hide(key: str, value: bytes) -> bytes | None:
        return None if key == ENTRY.format(1) else value

    with job(
        Member(0, 2, store, key_file=key_file, alter=hide, join_timeout_s=1.0),
        Member(1, 2, store, key_file=key_file),
    ) as (first, _):
        error = first.error()
        assert error.startswith("PeerLost: rank 1 ")
        assert "has published no roster entry" in error


def test_row_23__an_entry_on_two_places_is_refused(key_file: str, store: HashStore) -> None:
    def duplicate(key: str, value: bytes) -> bytes:
        if key != ENTRY.format(1):
            return value
        return bytes(store.get(ENTRY.format(2)))

    members = [Member(0, 3, store, key_file=key_file, alter=duplicate)]
    members += [Member(rank, 3, store, key_file=key_file) for rank in (1, 2)]
    with job(*members):
        error = members[0].error()
        assert error.startswith("BadRank: ")
        assert "entry for rank 1 claims rank 2" in error


# 24 and 25: split view, replay


def former_entry(key_file: str, rank: int) -> bytes:
    """A valid entry of an incarnation that is gone."""
    board = HashStore()
    if rank != 0:
        Member(0, 2, board, key_file=key_file).fabric.shutdown()
    former = Member(rank, 2, board, key_file=key_file)
    former.fabric.shutdown()
    return former.fabric.roster.own_entry


@pytest.mark.parametrize("everybody", [False, True])
def test_rows_24_and_25__an_entry_of_an_earlier_incarnation_never_confirms(
    everybody: bool, key_file: str, store: HashStore
) -> None:
    former = former_entry(key_file, 1)

    def replay(key: str, value: bytes) -> bytes:
        return former if key == ENTRY.format(1) else value

    first = Member(0, 2, store, key_file=key_file, alter=replay, join_timeout_s=1.5)
    second = Member(1, 2, store, key_file=key_file, join_timeout_s=1.5)
    if everybody:
        second.fabric.shutdown()
    with job(first, second):
        error = first.error()
        assert error.startswith("PeerLost: rank 1 ")
        assert "left over from an earlier run" in error
        boot = former_boot(former)
        assert f"boot {boot}" in error
        assert first.fabric.native.stats()["packets_opened"] == 0


def former_boot(entry: bytes) -> str:
    from securefabric.roster import decode_body, split_entry

    return decode_body(1, split_entry(1, entry).body).boot_id.hex()[:8]


# 26: bytes that want to be expensive

GIANTS = {
    "64 MB": bytes(64 << 20),
    "deep": b"\x81" * 16_000 + b"\0",
    "2^62 elements": b"\x9b\x40" + bytes(7),
    "indefinite": b"\x9f" * 16 + b"\xff" * 16,
    "duplicate keys": b"\xa2\x61a\1\x61a\2",
}


@pytest.mark.parametrize("kind", GIANTS)
def test_row_26__hostile_encodings_are_malformed_and_cost_little(
    kind: str, key_file: str, store: HashStore
) -> None:
    def give(key: str, value: bytes) -> bytes:
        return GIANTS[kind] if key == ENTRY.format(1) else value

    with job(
        Member(0, 2, store, key_file=key_file, alter=give), Member(1, 2, store, key_file=key_file)
    ) as (first, _):
        before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        error = first.error()
        grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
        assert error.startswith("MalformedEntry: ")
        assert "rank 1" in error
        assert grown < 200 << 10, f"{grown} KB more"


# 27: keys that make a secret that anybody knows


@pytest.mark.parametrize("point", LOW_ORDER)
@pytest.mark.parametrize("top_bit", [0, 0x80])
def test_row_27__a_member_with_a_key_of_low_order_is_refused(
    point: str, top_bit: int, key_file: str
) -> None:
    key = bytearray.fromhex(point)
    key[31] |= top_bit
    own = _core.x25519_public(bytes(range(32)))
    with pytest.raises(_core.CoreError, match="low order"):
        _core.x25519_shared(bytes(range(32)), bytes(key))
    with pytest.raises(_core.CoreError, match="mirrored back"):
        _core.x25519_shared(bytes(range(32)), own)


@pytest.mark.parametrize(
    ("key", "kind", "hint"),
    [
        (bytes.fromhex(LOW_ORDER[2]), "AuthError", "low order"),
        (bytes(32), "MalformedEntry", "public_key is out of range"),
        (None, "DuplicateRank", "of rank 0"),
    ],
)
def test_row_27__live(
    key: bytes | None, kind: str, hint: str, key_file: str, store: HashStore
) -> None:
    first, second = Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=key_file)
    with job(first, second):
        public = first.fabric.roster.own.engines[0].public_key if key is None else key
        put(store, ENTRY.format(1), forged(second, key_file, public_key=public))
        error = first.error()
        assert error.startswith(f"{kind}: ")
        assert "rank 1" in error
        assert hint in error


# 43: a member copies from another's entry


@pytest.mark.parametrize("name", ["boot_id", "public_key"])
def test_row_43__who_copies_is_named_and_whom_he_copied_works(
    name: str, key_file: str, store: HashStore
) -> None:
    members = [
        Member(rank, 3, store, key_file=key_file, join_timeout_s=2.0 if rank == 0 else 30.0)
        for rank in range(3)
    ]
    with job(*members) as (first, copier, honest):
        own = honest.fabric.roster.own
        copied = getattr(own.engines[0] if name in ENGINE_FIELDS else own, name)
        put(store, ENTRY.format(1), forged(copier, key_file, **{name: copied}))
        for rank in (1, 2):  # the copy is read first
            assert first.fabric.resolve(first.joined.board, rank) is not None
        tensor = torch.zeros(4)
        receive = first.backend.recv([tensor], 2, 7)
        honest.backend.send([torch.ones(4)], 0, 7).wait()
        receive.wait()
        assert bool((tensor == 1).all())
        assert first.error().startswith("PeerLost: rank 1 ")


# 28: another policy


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"test_generation_bits": 10}, "SECUREFABRIC_TEST_GENERATION_BITS"),
        ({"post_quantum": True}, "SECUREFABRIC_POST_QUANTUM"),
    ],
)
def test_row_28__another_policy_is_named_on_every_rank(
    settings: dict[str, Any], hint: str, key_file: str, store: HashStore
) -> None:
    with job(
        Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=key_file, **settings)
    ) as members:
        for rank, error in enumerate(errors_of(*members)):
            assert error.startswith("PolicyMismatch: ")
            assert f"rank {1 - rank}" in error
            assert hint in error
        assert [member.fabric.native.stats()["packets_opened"] for member in members] == [0, 0]


def test_row_28__other_tuning_rows_are_named_on_every_rank(
    key_file: str, store: HashStore, tmp_path: Path
) -> None:
    tuning_file = str(tmp_path / "tuning.json")
    write_tuning(tuning_file, [TuningRow("all_reduce", 2, 1)], "a test")
    with job(
        Member(0, 2, store, key_file=key_file),
        Member(1, 2, store, key_file=key_file, tuning_file=tuning_file),
    ) as members:
        for rank, error in enumerate(errors_of(*members)):
            assert error.startswith("PolicyMismatch: ")
            assert f"rank {1 - rank}" in error
            assert "SECUREFABRIC_TUNING_FILE" in error


@pytest.mark.parametrize(
    ("changes", "hint"),
    [({"suite": "none"}, "suite 'none'"), ({"version": 2}, "protocol version 2")],
)
def test_row_28__null_cipher_and_other_versions_are_refused(
    changes: dict[str, object], hint: str, key_file: str, store: HashStore
) -> None:
    first, second = Member(0, 2, store, key_file=key_file), Member(1, 2, store, key_file=key_file)
    with job(first, second):
        put(store, ENTRY.format(1), forged(second, key_file, **changes))
        error = first.error()
        assert error.startswith("PolicyMismatch: ")
        assert hint in error
        assert first.fabric.native.stats()["packets_sealed"] == 0


def test_row_28__psk_and_x509_refuse_each_other_by_name(
    certificates: Path, key_file: str, store: HashStore
) -> None:
    with job(
        Member(0, 2, store, key_file=key_file, job_id="night"),
        Member(1, 2, store, **certified(certificates)),
    ) as members:
        for rank, error in enumerate(errors_of(*members)):
            assert error.startswith("PolicyMismatch: ")
            assert f"rank {1 - rank} proves its identity by" in error
            assert "'psk'" in error
            assert "'x509'" in error


# The post-quantum hybrid, live


@pytest.mark.parametrize("sender", [0, 1])
def test_post_quantum__a_message_that_nobody_waits_for_yet_links_both_ways(
    sender: int, key_file: str, store: HashStore
) -> None:
    """Only the sender wants the link; the higher rank has to knock for it."""
    import torch

    with job(
        *(Member(rank, 2, store, key_file=key_file, post_quantum=True) for rank in (0, 1))
    ) as members:
        source = torch.arange(50.0)
        sent = members[sender].backend.send([source], 1 - sender, 0)
        target = torch.zeros(50)
        received = members[1 - sender].backend.recv_anysource([target], 0)
        sent.wait()
        received.wait()
        assert torch.equal(target, source)
        check_all_reduce(*members)


def test_post_quantum__a_record_that_the_store_replaces_never_links(
    key_file: str, store: HashStore
) -> None:
    def replace(key: str, value: bytes) -> bytes:
        return value[:-1] + bytes([value[-1] ^ 1]) if "/kem/" in key else value

    with job(
        Member(0, 2, store, key_file=key_file, post_quantum=True, join_timeout_s=1.0),
        Member(1, 2, store, key_file=key_file, post_quantum=True, alter=replace),
    ) as members:
        first_work = members[0].start()[0]
        error = members[1].error()
        assert error.startswith("AuthError: ")
        assert "rank 0" in error
        with pytest.raises(RuntimeError, match="rank 1"):
            first_work.wait()


# 40: key files; the other cases are in test_identity.py


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (lambda path: path.chmod(0o644), "mode 0644.*chmod 600"),
        (lambda path: path.unlink(), "does not exist.*securefabric keygen"),
        (
            lambda path: path.write_text(path.read_text().replace(path.read_text()[-50:-1], "")),
            "key has .* digits and needs exactly 64.*securefabric keygen",
        ),
    ],
)
def test_row_40__a_key_file_that_is_no_good_stops_the_start(
    damage: Any, hint: str, key_file: str
) -> None:
    damage(Path(key_file))
    with pytest.raises(ConfigError, match=hint):
        Member(0, 1, HashStore(), key_file=key_file)


def test_errors__of_this_table_are_identity_errors() -> None:
    for kind in (BadRank, DuplicateRank, CertificateMismatch):
        assert issubclass(kind, IdentityError)
