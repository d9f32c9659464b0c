from __future__ import annotations

import contextlib
import socket
import struct

import pytest
from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey
from fakes import FakeCredential, make_body
from torch._C._distributed_c10d import HashStore

from securefabric import _board, _cbor
from securefabric._board import Board
from securefabric.errors import AuthError, MalformedEntry, PolicyMismatch
from securefabric.hybrid import CIPHERTEXT_BYTES, PUBLIC_KEY_BYTES, HybridKeys, knock
from securefabric.roster import Roster, encode_entry, policy_digest

KEY = FakeCredential()
POLICY = policy_digest(identity="psk", suite=KEY.suite, generation_bits=22, has_kem=True)
RECORD = "securefabric/kem/0/1"
REQUEST = "securefabric/kem-request/0/1"


def roster_of(rank: int, **changes: object) -> Roster:
    hybrid = HybridKeys(KEY)
    body = make_body(rank, kem_key=hybrid.public_key, policy=POLICY, **changes)
    return Roster(KEY, body, hybrid)


class Pair:
    """Ranks 0 and 1 and their store."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.knocks: list[dict[str, object]] = []
        monkeypatch.setattr(_board, "knock", lambda **to: self.knocks.append(to))
        self.store = HashStore()
        self.rosters = [roster_of(0), roster_of(1)]
        self.boards = [Board(self.store, roster, 5.0) for roster in self.rosters]
        for board in self.boards:
            board.publish(former_entries=frozenset())


@pytest.fixture
def pair(monkeypatch: pytest.MonkeyPatch) -> Pair:
    return Pair(monkeypatch)


def test_look_up__both_ends_share_a_secret_that_is_new_each_time(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    secrets = set()
    for _ in range(2):
        pair = Pair(monkeypatch)
        low = pair.boards[0].look_up(1)
        high = pair.boards[1].look_up(0)
        assert low is not None
        assert high is not None
        assert low.kem_secret == high.kem_secret
        assert len(low.kem_secret) == 32
        secrets.add(bytes(low.kem_secret))
        assert repr(bytes(low.kem_secret))[2:-1] not in repr(low)
    assert len(secrets) == 2


def test_look_up__the_higher_rank_knocks_until_the_lower_one_has_encapsulated(pair: Pair) -> None:
    assert pair.boards[1].look_up(0) is None
    own = pair.rosters[0].own.engines[0]
    assert pair.knocks == [{"own_rank": 1, "spi_base": own.spi_base, "addresses": own.addresses}]
    assert pair.boards[0].look_up(1) is not None
    assert pair.boards[1].look_up(0) is not None
    assert len(pair.knocks) == 1


def test_look_up__the_lower_rank_gives_its_secret_once_and_the_record_stays(pair: Pair) -> None:
    assert pair.boards[0].look_up(1) is not None
    record = pair.store.get(RECORD)
    pair.store.delete_key(RECORD)
    assert pair.boards[0].look_up(1) is None
    assert pair.store.get(RECORD) == record


def test_look_up__a_hint_alone_writes_nothing_and_sends_nothing(pair: Pair) -> None:
    """A datagram made each rank look, and anybody can send one."""
    before = pair.store.num_keys()
    assert pair.boards[0].look_up(1, is_needed=False) is None
    assert pair.boards[1].look_up(0, is_needed=False) is None
    assert pair.store.num_keys() == before
    assert pair.knocks == []
    assert pair.boards[0].look_up(1) is not None, "the secret was not given away"


def test_look_up__a_lower_rank_that_is_hinted_answers_who_proves_that_it_asks(pair: Pair) -> None:
    assert pair.boards[1].look_up(0) is None
    low = pair.boards[0].look_up(1, is_needed=False)
    high = pair.boards[1].look_up(0)
    assert low is not None
    assert high is not None
    assert low.kem_secret == high.kem_secret


def test_look_up__a_higher_rank_that_is_hinted_takes_the_record_that_is_there(pair: Pair) -> None:
    low = pair.boards[0].look_up(1)
    high = pair.boards[1].look_up(0, is_needed=False)
    assert low is not None
    assert high is not None
    assert low.kem_secret == high.kem_secret


def test_look_up__a_request_of_another_incarnation_or_hand_is_none(pair: Pair) -> None:
    assert pair.boards[1].look_up(0) is None
    honest = bytes(pair.store.get(REQUEST))
    own = pair.rosters[0].own_entry
    later = roster_of(0, boot_id=b"n" * 16)
    pair.store.set("securefabric/entry/0", later.own_entry)  # type: ignore[arg-type]
    assert Board(pair.store, later, 5.0).look_up(1, is_needed=False) is None
    pair.store.set("securefabric/entry/0", own)  # type: ignore[arg-type]
    request = bytearray(honest)
    for position in range(0, len(request), 3):
        request[position] ^= 1
        pair.store.set(REQUEST, bytes(request))  # type: ignore[arg-type]
        if not is_only_hint_changed(bytes(request), honest):
            with contextlib.suppress(AuthError, MalformedEntry):
                assert pair.boards[0].look_up(1, is_needed=False) is None
        request[position] ^= 1
    assert not pair.store.check([RECORD])


def test_look_up__a_record_of_another_incarnation_is_none(pair: Pair) -> None:
    assert pair.boards[0].look_up(1) is not None
    restarted = roster_of(1, boot_id=b"n" * 16, public_key=b"p" * 32)
    board = Board(pair.store, restarted, 5.0)
    pair.store.set("securefabric/entry/1", restarted.own_entry)  # type: ignore[arg-type]
    assert board.look_up(0) is None
    assert pair.boards[0].look_up(1) is not None
    assert board.look_up(0) is not None


def test_look_up__a_record_that_the_store_altered_is_refused(pair: Pair) -> None:
    pair.boards[0].look_up(1)
    honest = bytes(pair.store.get(RECORD))
    record = bytearray(honest)
    for position in range(0, len(record), 7):
        record[position] ^= 1
        pair.store.set(RECORD, bytes(record))  # type: ignore[arg-type]
        # A changed digest is a record of somebody else's, a changed key id proves nothing.
        if not is_only_hint_changed(bytes(record), honest):
            with contextlib.suppress(AuthError, MalformedEntry):
                assert pair.boards[1].look_up(0) is None
        record[position] ^= 1


def is_only_hint_changed(record: bytes, honest: bytes) -> bool:
    try:
        parts = _cbor.decode(record)
    except ValueError:
        return False
    assert isinstance(parts, list)
    parts[-2] = KEY.key_id
    return _cbor.encode(parts) == honest


@pytest.mark.parametrize(
    "record",
    [
        b"",
        bytes(20_000),
        b"\x81" * 4000,
        _cbor.encode([b"", b"", "", b""]),
        _cbor.encode([bytes(64), bytes(CIPHERTEXT_BYTES), "\x1b[2J", b""]),
        _cbor.encode([bytes(64), bytes(CIPHERTEXT_BYTES), "0" * 17, b""]),
        _cbor.encode([bytes(64), bytes(CIPHERTEXT_BYTES + 1), "", b""]),
        _cbor.encode({"a": 1}),
    ],
)
def test_decapsulate__hostile_bytes_are_malformed(record: bytes) -> None:
    with pytest.raises(MalformedEntry, match="ML-KEM record of rank 0"):
        HybridKeys(KEY).decapsulate(0, b"own", b"peer", record)


def test_decapsulate__a_member_cannot_swap_the_ciphertext_of_another_link(pair: Pair) -> None:
    """The store puts rank 0's record for rank 2 on rank 1's place."""
    third = roster_of(2)
    pair.store.set("securefabric/entry/2", third.own_entry)  # type: ignore[arg-type]
    pair.boards[0].look_up(2)
    pair.store.set(RECORD, pair.store.get("securefabric/kem/0/2"))  # type: ignore[arg-type]
    assert pair.boards[1].look_up(0) is None


def test_policy__ranks_with_and_without_refuse_each_other() -> None:
    without = Roster(KEY, make_body(0))
    with pytest.raises(PolicyMismatch, match=r"rank 1 .*SECUREFABRIC_POST_QUANTUM"):
        without.verify(1, roster_of(1).own_entry)
    with pytest.raises(PolicyMismatch, match="rank 0"):
        roster_of(1).verify(0, without.own_entry)
    lies = encode_entry(KEY, make_body(1, policy=POLICY))
    with pytest.raises(MalformedEntry, match="kem_key"):
        roster_of(0).verify(1, lies)


def test_sizes__are_those_of_ml_kem_768() -> None:
    public = MLKEM768PrivateKey.generate().public_key()
    assert len(public.public_bytes_raw()) == PUBLIC_KEY_BYTES
    assert len(public.encapsulate()[1]) == CIPHERTEXT_BYTES


def test_knock__is_a_datagram_that_can_only_be_dropped() -> None:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as peer:
        peer.bind(("127.0.0.1", 0))
        peer.settimeout(20)
        port = peer.getsockname()[1]
        knock(own_rank=3, spi_base=2**32 - 1, addresses=["[fd00::1]:9", f"127.0.0.1:{port}"])
        datagram = peer.recv(2048)
    start, flags, path_id, spi, number = struct.unpack_from("!BBHIQ", datagram)
    assert (start, flags, path_id, spi, number) == (0x11, 0, 1, 2, 2**64 - 1)
    assert len(datagram) == 32
