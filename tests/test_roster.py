from __future__ import annotations

import dataclasses
from collections.abc import Callable

import cbor2
import pytest
from fakes import ENGINE_FIELDS, KEY_ID, FakeCredential, make_body, make_engine
from hypothesis import given
from hypothesis import strategies as st

from securefabric.errors import (
    AuthError,
    BadRank,
    ConfigError,
    DuplicateRank,
    IdentityError,
    JobMismatch,
    MalformedEntry,
    PolicyMismatch,
)
from securefabric.roster import (
    ENTRY_BYTES_MAX,
    EngineEntry,
    EntryBody,
    PeerEntry,
    Roster,
    decode_body,
    encode_body,
    encode_entry,
    policy_digest,
    split_entry,
)

KEY = FakeCredential()


def roster_of(rank: int = 0) -> Roster:
    return Roster(KEY, make_body(rank))


def canonical(value: object) -> bytes:
    return cbor2.dumps(value, canonical=True)


def sealed_map(fields: dict[str, object]) -> bytes:
    """An entry whose body is any map, with evidence that verifies."""
    encoded = canonical(fields)
    evidence = KEY.evidence(b"sf1 roster entry\0" + encoded)
    return canonical(["psk", KEY.key_id, encoded, evidence])


def entry_with(changes: dict[str, object]) -> bytes:
    """What rank 1, a holder of the key, publishes when it changes these fields."""
    fields = dataclasses.asdict(make_body(1))
    for name, value in changes.items():
        (fields["engines"][0] if name in ENGINE_FIELDS else fields)[name] = value
    return sealed_map(fields)


def engines_of(count: int, **changes: object) -> list[dict[str, object]]:
    return [dataclasses.asdict(make_engine(1, number, **changes)) for number in range(count)]


# policy_digest


def test_policy_digest__differs_with_every_part() -> None:
    digests = {
        policy_digest(
            identity=identity, suite=suite, generation_bits=bits, has_kem=has_kem, tuning=tuning
        )
        for identity in ("psk", "x509")
        for suite in ("aes-256-gcm", "aegis-256x2")
        for bits in (6, 22)
        for has_kem in (False, True)
        for tuning in (b"", bytes(32))
    }
    assert len(digests) == 32


# Roster.verify


def test_verify__accepts_a_peer_and_keeps_its_bytes() -> None:
    entry = encode_entry(KEY, make_body(1))
    peer = roster_of().verify(1, entry)
    body = make_body(1)
    assert peer.entry_bytes == entry
    assert {
        name: getattr(peer, name) for name in ("rank", "boot_id", "engines", "max_datagram")
    } == {name: getattr(body, name) for name in ("rank", "boot_id", "engines", "max_datagram")}


def test_verify__accepts_the_same_entry_again_and_a_restarted_peer() -> None:
    roster = roster_of()
    roster.verify(1, encode_entry(KEY, make_body(1)))
    roster.verify(1, encode_entry(KEY, make_body(1)))
    restarted = make_body(1, boot_id=b"n" * 16, public_key=b"p" * 32)
    assert roster.verify(1, encode_entry(KEY, restarted)).boot_id == b"n" * 16


@pytest.mark.parametrize(
    ("changes", "kind", "hint"),
    [
        ({"version": 2}, PolicyMismatch, "protocol version 2"),
        ({"version": 2, "news": 1}, PolicyMismatch, "protocol version 2"),
        ({"version": True}, MalformedEntry, "version"),
        ({"version": "1"}, MalformedEntry, "version"),
        ({"job": "other"}, JobMismatch, "'other'.*'default'"),
        ({"job": ""}, MalformedEntry, "job"),
        ({"job": "x" * 65}, MalformedEntry, "job"),
        ({"job": "a\x1b[2J"}, MalformedEntry, "job"),
        ({"job": b"default"}, MalformedEntry, "job"),
        ({"rank": 2}, BadRank, "entry for rank 1 claims rank 2 of 4"),
        ({"rank": 4}, BadRank, "claims rank 4 of 4"),
        ({"rank": -1}, MalformedEntry, "rank"),
        ({"rank": 1 << 64}, MalformedEntry, "rank"),
        ({"rank": 1.0}, MalformedEntry, "rank"),
        ({"world_size": 8}, JobMismatch, "world of 8.*one of 4"),
        ({"world_size": 1}, BadRank, "claims rank 1 of 1"),
        ({"world_size": 0}, MalformedEntry, "world_size"),
        ({"boot_id": bytes(16)}, MalformedEntry, "boot_id"),
        ({"boot_id": b"b" * 15}, MalformedEntry, "boot_id"),
        ({"boot_id": "b" * 16}, MalformedEntry, "boot_id"),
        ({"public_key": bytes(32)}, MalformedEntry, "public_key"),
        ({"public_key": b"p" * 33}, MalformedEntry, "public_key"),
        ({"spi_base": 1 << 32}, MalformedEntry, "spi_base"),
        ({"spi_base": -1}, MalformedEntry, "spi_base"),
        ({"addresses": []}, MalformedEntry, "addresses"),
        ({"addresses": ["10.0.0.1:4000"] * 2}, MalformedEntry, "addresses"),
        ({"addresses": [f"10.0.{i}.1:1" for i in range(129)]}, MalformedEntry, "addresses"),
        ({"addresses": ["10.0.0.1"]}, MalformedEntry, "addresses"),
        ({"addresses": ["10.0.0.1:0"]}, MalformedEntry, "addresses"),
        ({"addresses": ["10.0.0.1:04"]}, MalformedEntry, "addresses"),
        ({"addresses": ["10.0.0.1:65536"]}, MalformedEntry, "addresses"),
        ({"addresses": ["0.0.0.0:4000"]}, MalformedEntry, "addresses"),
        ({"addresses": ["224.0.0.1:4000"]}, MalformedEntry, "addresses"),
        ({"addresses": ["host:4000"]}, MalformedEntry, "addresses"),
        ({"addresses": ["fd00::1:4000"]}, MalformedEntry, "addresses"),
        ({"addresses": ["[FD00::1]:4000"]}, MalformedEntry, "addresses"),
        ({"addresses": "10.0.0.1:4000"}, MalformedEntry, "addresses"),
        ({"engines": []}, MalformedEntry, "engines is out of range"),
        ({"engines": {}}, MalformedEntry, "engines is out of range"),
        ({"engines": [{}] * 17}, MalformedEntry, "engines is out of range"),
        ({"engines": [b"engine"]}, MalformedEntry, "one of its engines is not a map"),
        ({"engines": [{}]}, MalformedEntry, "one of its engines has other fields"),
        ({"engines": engines_of(2)}, PolicyMismatch, "runs 2 engines.*1; set SECUREFABRIC_ENGINES"),
        (
            {"engines": engines_of(2, public_key=b"p" * 32)},
            MalformedEntry,
            "public keys are not",
        ),
        ({"engines": engines_of(2, addresses=["10.0.0.1:1"])}, MalformedEntry, "addresses are not"),
        ({"addresses": [7]}, MalformedEntry, "addresses"),
        ({"max_datagram": 1199}, MalformedEntry, "max_datagram"),
        ({"max_datagram": 65_508}, MalformedEntry, "max_datagram"),
        ({"suite": "none"}, PolicyMismatch, "suite 'none'.*'aes-256-gcm'"),
        ({"suite": ""}, MalformedEntry, "suite"),
        ({"policy": b"q" * 32}, PolicyMismatch, "packet policy"),
        ({"policy": b"q" * 31}, MalformedEntry, "policy"),
        ({"kem_key": b"k" * 1184}, MalformedEntry, "kem_key is not what its policy says"),
        ({"kem_key": b"k" * 1183}, MalformedEntry, "kem_key is out of range"),
        ({"extra": 1}, MalformedEntry, "other fields"),
    ],
)
def test_verify__every_changed_field_has_its_error(
    changes: dict[str, object], kind: type[IdentityError], hint: str
) -> None:
    with pytest.raises(kind, match=hint) as info:
        roster_of().verify(1, entry_with(changes))
    assert "rank 1" in str(info.value)


FIELDS = sorted({field.name for field in dataclasses.fields(EntryBody)} | ENGINE_FIELDS)


@pytest.mark.parametrize("name", FIELDS)
def test_verify__a_missing_field_is_malformed(name: str) -> None:
    fields = dataclasses.asdict(make_body(1))
    del (fields["engines"][0] if name in ENGINE_FIELDS else fields)[name]
    with pytest.raises(MalformedEntry, match="other fields"):
        roster_of().verify(1, sealed_map(fields))


def test_verify__another_job_key_is_named() -> None:
    stranger = FakeCredential(key=b"z" * 32, key_id="f" * 16)
    with pytest.raises(AuthError, match=f"rank 1 joined with job key {'f' * 16}.*{KEY_ID}.*same"):
        roster_of().verify(1, encode_entry(stranger, make_body(1)))


def test_verify__a_store_that_alters_anything_is_found_out() -> None:
    entry = bytearray(encode_entry(KEY, make_body(1)))
    roster = roster_of()
    for position in range(len(entry)):
        for bit in range(8):
            entry[position] ^= 1 << bit
            # A changed key id alone proves nothing and matters nowhere; all else is an error.
            if not is_only_hint_changed(bytes(entry)):
                with pytest.raises((AuthError, MalformedEntry, PolicyMismatch)):
                    roster.verify(1, bytes(entry))
            entry[position] ^= 1 << bit


def is_only_hint_changed(entry: bytes) -> bool:
    try:
        split = split_entry(1, entry)
    except MalformedEntry:
        return False
    honest = split_entry(1, encode_entry(KEY, make_body(1)))
    return dataclasses.replace(split, key_id=honest.key_id) == honest


def test_verify__another_identity_mode_is_a_policy_mismatch() -> None:
    parts = cbor2.loads(encode_entry(KEY, make_body(1)))
    with pytest.raises(PolicyMismatch, match=r"rank 1 .* by 'x509', this rank \(rank 0\) by 'psk'"):
        roster_of().verify(1, canonical(["x509", *parts[1:]]))


def field_of(body: EntryBody | PeerEntry, name: str) -> object:
    return getattr(body.engines[0] if name in ENGINE_FIELDS else body, name)


@pytest.mark.parametrize("name", ["boot_id", "public_key"])
def test_verify__what_a_member_copies_from_another_does_not_hurt_that_one(name: str) -> None:
    copied = make_body(1, **{name: field_of(make_body(2), name)})
    for order in ((1, 2), (2, 1)):
        roster = roster_of()
        entries = {1: encode_entry(KEY, copied), 2: encode_entry(KEY, make_body(2))}
        peers = {rank: roster.verify(rank, entries[rank]) for rank in order}
        assert field_of(peers[1], name) == field_of(peers[2], name)
        assert peers[1].entry_bytes != peers[2].entry_bytes, "so their links have other keys"


@pytest.mark.parametrize("name", ["boot_id", "public_key"])
def test_verify__own_key_mirrored_back_is_refused(name: str) -> None:
    mirrored = make_body(1, **{name: field_of(make_body(0), name)})
    with pytest.raises(DuplicateRank, match=r"of rank 0.*the process of rank 1 has copied it"):
        roster_of(0).verify(1, encode_entry(KEY, mirrored))


def test_verify__several_engines_and_no_key_of_them_twice() -> None:
    ours, theirs = ([make_engine(rank, number) for number in range(3)] for rank in (0, 1))
    roster = Roster(KEY, make_body(0, engines=ours))
    peer = roster.verify(1, encode_entry(KEY, make_body(1, engines=theirs)))
    assert peer.engines == theirs
    engines = [make_engine(2, number) for number in range(2)] + [ours[2]]
    with pytest.raises(DuplicateRank, match=r"rank 2 .* key of rank 0"):
        roster.verify(2, encode_entry(KEY, make_body(2, engines=engines)))


# Roster.check_not_replaced


def test_check_not_replaced__own_entry_is_fine() -> None:
    roster = roster_of(2)
    roster.check_not_replaced(roster.own_entry)


def test_check_not_replaced__finds_out_who_copied_the_boot_id_as_well() -> None:
    roster = roster_of(2)
    other = make_body(2, public_key=b"n" * 32)
    assert other.boot_id == roster.own.boot_id
    with pytest.raises(DuplicateRank, match="claim rank 2"):
        roster.check_not_replaced(encode_entry(KEY, other))


def test_check_not_replaced__names_both_processes() -> None:
    other = make_body(2, boot_id=b"n" * 16, addresses=["10.9.9.9:9"])
    with pytest.raises(DuplicateRank, match=r"claim rank 2.*10\.0\.0\.3:4000.*10\.9\.9\.9:9"):
        roster_of(2).check_not_replaced(encode_entry(KEY, other))


# encode_entry, split_entry, decode_body


def test_encode_entry__too_many_sockets_names_the_setting() -> None:
    class Verbose(FakeCredential):
        def evidence(self, message: bytes) -> bytes:
            return bytes(12_000)

    body = make_body(0, addresses=[f"[fd00:{'1111:' * 6}{i:x}]:40000" for i in range(1, 129)])
    with pytest.raises(ConfigError, match=r"SECUREFABRIC_SOCKET_IFNAME.*SECUREFABRIC_CERT_FILE"):
        encode_entry(Verbose(), body)


ENTRY = encode_entry(KEY, make_body(1))
HOSTILE: dict[str, bytes] = {
    "empty": b"",
    "too_large": b"\x84" + bytes(ENTRY_BYTES_MAX),
    "truncated": ENTRY[:-1],
    "trailing": ENTRY + b"\0",
    "array_of_2^62": b"\x9b\x40" + bytes(7),
    "map_of_2^32": b"\xbb\0\0\0\1\0\0\0\0",
    "string_of_2^40": b"\x5b\0\0\1\0\0\0\0\0",
    "deep": b"\x81" * 4000 + b"\0",
    "deep_maps": b"\xa1\0" * 2000 + b"\0",
    "indefinite": b"\x9f" + ENTRY[1:] + b"\xff",
    "long_form_of_a_length": b"\x98\x04" + ENTRY[1:],
    "duplicate_keys": b"\xa2\x61a\1\x61a\2",
    "tagged": b"\xd9\xd9\xf7" + ENTRY,
    "shared_reference_to_itself": b"\xd8\x1c\x84\xd8\x1d\0\x60\x40\x40",
    "regular_expression": b"\xd8\x23\x63a+a",
    "bad_utf8": b"\x84\x61\xff\x60\x40\x40",
    "map": canonical({"psk": 1}),
    "three_parts": canonical(["psk", KEY_ID, b"body"]),
    "wrong_types": canonical(["psk", KEY_ID, "body", b"evidence"]),
    "nasty_mode": canonical(["psk\x1b[2J", KEY_ID, b"", b""]),
    "nasty_key_id": canonical(["psk", "\x1b[2J" + KEY_ID[4:], b"", b""]),
    "unknown_mode": canonical(["none", KEY_ID, b"", b""]),
    "long_key_id": canonical(["psk", KEY_ID * 2, b"", b""]),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_split_entry__hostile_bytes_are_malformed(name: str) -> None:
    with pytest.raises(MalformedEntry, match="entry for rank 1"):
        split_entry(1, HOSTILE[name])


@pytest.mark.parametrize("name", HOSTILE)
def test_decode_body__hostile_bytes_under_valid_evidence_are_malformed(name: str) -> None:
    with pytest.raises(MalformedEntry, match="entry for rank 1"):
        decode_body(1, HOSTILE[name][:ENTRY_BYTES_MAX])


@given(st.binary(max_size=200))
def test_verify__random_bytes_are_malformed(data: bytes) -> None:
    with pytest.raises(MalformedEntry):
        roster_of().verify(1, data)


cbor_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text() | st.binary(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=8,
)


@given(cbor_values)
def test_split_entry__any_cbor_is_split_or_malformed(value: object) -> None:
    with pytest.raises(MalformedEntry):
        split_entry(1, canonical(value)[: ENTRY_BYTES_MAX + 1])


@given(st.sampled_from(FIELDS), cbor_values)
def test_verify__any_value_in_any_field_is_refused_or_in_range(name: str, value: object) -> None:
    try:
        peer = roster_of().verify(1, entry_with({name: value}))
    except IdentityError:
        return
    assert field_of(peer, name) == value
    assert name in ("spi_base", "max_datagram") or value == field_of(make_body(1), name)


def are_apart(made: list[EngineEntry]) -> bool:
    every = [value for engine in made for value in (engine.public_key, *engine.addresses)]
    return len(set(every)) == len(every)


def in_range(least: int, most: int) -> st.SearchStrategy[int]:
    return st.integers(min_value=least, max_value=most)


def no_zeros(size: int) -> st.SearchStrategy[bytes]:
    return st.binary(min_size=size, max_size=size).filter(any)


def joined(
    address: st.SearchStrategy[str], form: Callable[[str, int], str]
) -> st.SearchStrategy[str]:
    return st.builds(form, address, in_range(1, 65535))


addresses = joined(
    st.ip_addresses(v=4).filter(lambda ip: not (ip.is_unspecified or ip.is_multicast)).map(str),
    lambda ip, port: f"{ip}:{port}",
) | joined(
    st.ip_addresses(v=6).filter(lambda ip: not (ip.is_unspecified or ip.is_multicast)).map(str),
    lambda ip, port: f"[{ip}]:{port}",
)
engines = st.builds(
    EngineEntry,
    public_key=no_zeros(32),
    spi_base=in_range(0, (1 << 32) - 1),
    addresses=st.lists(addresses, min_size=1, max_size=16, unique=True),
)
bodies = st.builds(
    EntryBody,
    version=st.just(1),
    job=st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=64),
    rank=in_range(0, (1 << 20) - 1),
    world_size=in_range(1, 1 << 20),
    boot_id=no_zeros(16),
    engines=st.lists(engines, min_size=1, max_size=4).filter(are_apart),
    max_datagram=in_range(1200, 65_507),
    suite=st.sampled_from(["aes-256-gcm", "aegis-256x2", "chacha20-poly1305"]),
    kem_key=st.sampled_from([b"", b"k" * 1184]),
    policy=no_zeros(32),
)


@given(bodies)
def test_encode_body__round_trip(body: EntryBody) -> None:
    assert decode_body(body.rank, encode_body(body)) == body


@given(bodies)
def test_encode_entry__round_trip_and_one_form(body: EntryBody) -> None:
    entry = encode_entry(KEY, body)
    split = split_entry(body.rank, entry)
    assert split.body == encode_body(body)
    assert entry == encode_entry(KEY, decode_body(body.rank, split.body))
