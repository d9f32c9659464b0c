"""The native crypto as Python sees it, and against an independent packet protection in Python."""

from __future__ import annotations

import hashlib
import hmac
import os
import pickle
import random
from typing import Any

import pytest
import slow_aegis
from cryptography.hazmat.primitives.ciphers import aead

from securefabric import _core

KEY_HEX = bytes(range(32)).hex()
KEY_FILE = f"securefabric-job-key v1\nid: 0123456789abcdef\nsuite: aes-256-gcm\nkey: {KEY_HEX}\n"

# Suite: its AEAD elsewhere, and the bytes of its nonce.
AEADS: dict[str, tuple[Any, int]] = {
    "aes-256-gcm": (aead.AESGCM, 12),
    "chacha20-poly1305": (aead.ChaCha20Poly1305, 12),
    "aegis-256x2": (slow_aegis.Aegis256X2, 32),
}


def job_key(text: str = KEY_FILE) -> _core.JobKey:
    return _core.JobKey(bytearray(text.encode()))


def require_suite(name: str) -> None:
    refusal = {suite: refusal for suite, _, refusal in _core.suites()}[name]
    if refusal is not None:
        pytest.skip(refusal)


# JobKey


def test_job_key__wipes_its_text() -> None:
    text = bytearray(KEY_FILE.encode())
    key = _core.JobKey(text)
    assert text == bytes(len(KEY_FILE))
    assert (key.key_id, key.suite) == ("0123456789abcdef", "aes-256-gcm")


def test_job_key__wipes_a_text_that_it_refuses() -> None:
    text = bytearray(KEY_FILE.replace("key:", "kez:").encode())
    with pytest.raises(ValueError, match="line 4"):
        _core.JobKey(text)
    assert text == bytes(len(KEY_FILE))


def test_job_key__short_key_names_length_and_fix() -> None:
    with pytest.raises(ValueError, match=r"needs exactly 64.*securefabric keygen FILE"):
        job_key(KEY_FILE.replace(KEY_HEX, KEY_HEX[:16]))


def test_job_key__format_makes_a_key_file() -> None:
    entropy = bytearray(range(32))
    text = _core.JobKey.format("chacha20-poly1305", entropy)
    assert entropy == bytes(32)
    assert text.endswith(f"key: {KEY_HEX}\n".encode())
    assert _core.JobKey(text).suite == "chacha20-poly1305"


def test_job_key__never_shows_or_pickles_its_key() -> None:
    key = job_key()
    assert repr(key) == "JobKey(id=0123456789abcdef, suite=aes-256-gcm)"
    assert KEY_HEX[:8] not in str(key) + repr(vars(type(key)))
    with pytest.raises(TypeError):
        pickle.dumps(key)
    with pytest.raises(TypeError):
        _core.JobKey(KEY_FILE.encode())  # type: ignore[arg-type]


def test_job_key__evidence_verifies_only_for_its_message() -> None:
    evidence = job_key().evidence(b"entry")
    assert len(evidence) == 32
    assert job_key().verify_evidence(b"entry", evidence)
    assert not job_key().verify_evidence(b"other", evidence)
    other = job_key(KEY_FILE.replace("abcdef", "abcdee"))
    assert not other.verify_evidence(b"entry", evidence)


def test_job_key__the_store_has_keys_of_its_own() -> None:
    secrets = {role: bytes(job_key().store_secret(role)) for role in ("server", "client")}
    assert secrets["server"] != secrets["client"]
    assert {len(secret) for secret in secrets.values()} == {32}
    other = job_key(KEY_FILE.replace("abcdef", "abcdee"))
    assert bytes(other.store_secret("server")) not in secrets.values()
    for role, secret in secrets.items():
        assert job_key().store_public(role) == _core.x25519_public(secret)
    for call in (job_key().store_secret, job_key().store_public):
        with pytest.raises(ValueError, match="role is server or client"):
            call("broker")


# Status


def test_suites__name_provider_or_refusal() -> None:
    suites = _core.suites()
    assert [name for name, _, _ in suites] == ["aes-256-gcm", "aegis-256x2", "chacha20-poly1305"]
    assert ("chacha20-poly1305", "openssl", None) in suites
    assert all((provider is None) != (refusal is None) for _, provider, refusal in suites)


def test_providers__are_the_preferred_one_first() -> None:
    for suite, provider, refusal in _core.suites():
        names = _core.providers(suite)
        assert names[:1] == ([] if refusal else [provider])
    assert _core.providers("chacha20-poly1305") == ["openssl"]
    assert _core.provider_failures() == []
    with pytest.raises(ValueError, match="unknown cipher suite"):
        _core.providers("none")


@pytest.mark.parametrize("suite", list(AEADS))
def test_aead__every_provider_agrees_with_an_implementation_elsewhere(suite: str) -> None:
    require_suite(suite)
    cipher, nonce_bytes = AEADS[suite]
    draw = random.Random(suite)
    for size in (0, 1, 31, 32, 33, 127, 128, 129, 500, 1424):
        key, nonce, aad, data = (draw.randbytes(n) for n in (32, nonce_bytes, 16, size))
        sealed = cipher(key).encrypt(nonce, data, aad)
        for provider in _core.providers(suite):
            assert _core.aead_seal(suite, key, nonce, aad, data, provider) == sealed, provider
            assert _core.aead_open(suite, key, nonce, aad, sealed, provider) == data, provider
            assert _core.aead_open(suite, key, nonce, b"", sealed, provider) is None, provider
    with pytest.raises(ValueError, match="has no provider none"):
        _core.aead_seal(suite, key, nonce, aad, data, "none")


def test_aegis_256x2__agrees_with_libaegis() -> None:
    """Needs `pip install pyaegis==0.3.1`, which compiles for a minute: no part of the set-up."""
    libaegis = pytest.importorskip("pyaegis", reason="pyaegis is not installed").Aegis256X2(16)
    require_suite("aegis-256x2")
    draw = random.Random(5)
    for size in [*range(200), 1424, 8928, 65_000]:
        key, nonce, aad, data = (draw.randbytes(n) for n in (32, 32, draw.randrange(70), size))
        sealed = bytes(libaegis.encrypt(key, nonce, data, aad))
        for provider in _core.providers("aegis-256x2"):
            assert _core.aead_seal("aegis-256x2", key, nonce, aad, data, provider) == sealed
            assert _core.aead_open("aegis-256x2", key, nonce, aad, sealed, provider) == data


def test_exercise__seals_and_opens_with_every_provider() -> None:
    for suite, _, _ in _core.suites():
        for provider in _core.providers(suite):
            _core.exercise(suite, 1424, 10, opens=False, provider=provider)
            _core.exercise(suite, 1424, 10, opens=True, provider=provider)
    with pytest.raises(ValueError, match="packet_bytes"):
        _core.exercise("chacha20-poly1305", 1 << 20, 1)


def test_secret_memory_status__says_what_it_got() -> None:
    job_key()
    assert "locked in RAM" in _core.secret_memory_status()


def test_forked_child__is_true_only_in_a_child_that_could_repeat_nonces() -> None:
    job_key()
    assert not _core.forked_child()
    child = os.fork()
    if child == 0:
        os._exit(0 if _core.forked_child() else 1)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert not _core.forked_child()


# Packets, against PROTOCOL.md written a second time


def expand(secret: bytes, label: str, context: bytes, length: int) -> bytes:
    name = b"sf1 " + label.encode()
    info = length.to_bytes(2, "big") + bytes([len(name)]) + name + bytes([len(context)]) + context
    output, block = b"", b""
    while len(output) < length:
        count = bytes([len(output) // 32 + 1])
        block = hmac.digest(secret, block + info + count, "sha256")
        output += block
    return output[:length]


def framed(entry: bytes) -> bytes:
    return len(entry).to_bytes(8, "big") + entry


def nonce_of(iv: bytes, path_id: int, number: int) -> bytes:
    counter = bytes(len(iv) - 12) + path_id.to_bytes(4, "big") + number.to_bytes(8, "big")
    return bytes(a ^ b for a, b in zip(iv, counter, strict=True))


class Packets:
    """One path in one direction, from its path secret."""

    def __init__(self, suite: str, secret: bytes, path_id: int, generation_bits: int) -> None:
        self.cipher, self.nonce_bytes = AEADS[suite]
        self.secret = secret
        self.path_id = path_id
        self.generation_bits = generation_bits

    def keys(self, number: int) -> tuple[bytes, bytes]:
        generation = (number >> self.generation_bits).to_bytes(8, "big")
        key = expand(self.secret, "key", generation, 32)
        return key, expand(self.secret, "iv", generation, self.nonce_bytes)

    def seal(self, number: int, aad: bytes, data: bytes) -> bytes:
        key, iv = self.keys(number)
        sealed: bytes = self.cipher(key).encrypt(nonce_of(iv, self.path_id, number), data, aad)
        return sealed

    def open(self, number: int, aad: bytes, sealed: bytes) -> bytes:
        key, iv = self.keys(number)
        data: bytes = self.cipher(key).decrypt(nonce_of(iv, self.path_id, number), sealed, aad)
        return data


@pytest.mark.parametrize("engine", [0, 3])
def test_link_secret__agrees_with_a_second_implementation(engine: int) -> None:
    alice, bob = bytes(range(32)), bytes(range(32, 64))
    entries = b"entry of the low rank", b"entry of the high rank"
    bound = framed(entries[0]) + framed(entries[1]) + engine.to_bytes(4, "big")
    salt = hashlib.sha256(b"sf1 link" + bound).digest()
    shared = _core.x25519_shared(alice, _core.x25519_public(bob))
    expected = hmac.digest(salt, shared + bytes(32), "sha256")
    low = _core.link_secret(alice, _core.x25519_public(bob), *entries, True, engine, bytes(32))
    public = _core.x25519_public(alice)
    high = _core.link_secret(bob, public, *entries[::-1], False, engine, bytes(32))
    assert low == high == expected


def test_path_secret__agrees_with_a_second_implementation() -> None:
    ranks = (2).to_bytes(4, "big") + (5).to_bytes(4, "big") + (1).to_bytes(4, "big")
    direction = expand(bytes(32), "dir", ranks, 32)
    expected = expand(direction, "path", (0x0103).to_bytes(2, "big"), 32)
    assert _core.path_secret(bytes(32), 2, 5, 1, 0x0103) == expected


@pytest.mark.parametrize("suite", list(AEADS))
def test_packets__of_the_core_open_elsewhere(suite: str) -> None:
    require_suite(suite)
    sealer = _core.PathSealer(suite, b"p" * 32, 0x0102, 3)
    elsewhere = Packets(suite, b"p" * 32, 0x0102, 3)
    for number in range(40):
        assert sealer.next_packet_number == number
        sealed = sealer.seal(b"header %d" % number, [b"a part, ", b"", b"and another"])
        assert elsewhere.open(number, b"header %d" % number, sealed) == b"a part, and another"


@pytest.mark.parametrize("suite", list(AEADS))
def test_packets__from_elsewhere_open_in_the_core(suite: str) -> None:
    require_suite(suite)
    elsewhere = Packets(suite, b"p" * 32, 0x0102, 3)
    opener = _core.PathOpener(suite, b"p" * 32, 0x0102, 3)
    order = random.Random(1)
    for first in range(0, 64, 8):
        numbers = list(range(first, first + 8))
        order.shuffle(numbers)
        for number in numbers:
            sealed = elsewhere.seal(number, b"header", b"data %d" % number)
            assert opener.open(number, b"Header", sealed) == ("auth_failed", None)
            assert opener.open(number, b"header", sealed) == ("ok", b"data %d" % number)
            assert opener.open(number, b"header", sealed) == ("replay_duplicate", None)
    assert opener.auth_failures == 64
    assert opener.open(0, b"header", b"") == ("stale_generation", None)
    assert opener.open(10_000, b"header", b"") == ("future_generation", None)
    assert opener.open(2**64 - 1, b"header", b"") == ("limit", None)


def test_packets__a_new_epoch_goes_on_counting() -> None:
    suite = "chacha20-poly1305"
    sealer = _core.PathSealer(suite, b"p" * 32, 0x0102, 3)
    opener = _core.PathOpener(suite, b"p" * 32, 0x0102, 3)
    before = [sealer.seal(b"header", [b"before"]) for _ in range(20)]
    sealer.begin_epoch(b"q" * 32)
    after = sealer.seal(b"header", [b"after"])
    assert Packets(suite, b"q" * 32, 0x0102, 3).open(20, b"header", after) == b"after"
    assert opener.open(20, b"header", after, epoch=1) == ("unknown_epoch", None)
    opener.install_epoch(1, b"q" * 32)
    assert opener.open(20, b"header", after, epoch=1) == ("ok", b"after")
    assert opener.open(19, b"header", before[19]) == ("ok", b"before")
    opener.install_epoch(0, b"r" * 32)  # two epochs later
    assert opener.open(18, b"header", before[18]) == ("auth_failed", None)


def test_path__arguments_are_checked() -> None:
    with pytest.raises(ValueError, match="path secret has 31 bytes"):
        _core.PathSealer("chacha20-poly1305", bytes(31), 0, 22)
    with pytest.raises(ValueError, match="generation_bits"):
        _core.PathOpener("chacha20-poly1305", bytes(32), 0, 0)
    with pytest.raises(ValueError, match="unknown cipher suite"):
        _core.PathSealer("none", bytes(32), 0, 22)
    with pytest.raises(ValueError, match="key has 16 bytes"):
        _core.aead_seal("chacha20-poly1305", bytes(16), bytes(12), b"", b"")
