"""Published test vectors against the native primitives.

SECUREFABRIC_VECTORS names a folder with the JSON files of C2SP/wycheproof (testvectors_v1, stored
as wycheproof-<name>.json) and of the CFRG AEGIS draft (cfrg-<name>.json). The files are not part
of this tree; without the folder every test here is skipped with that reason.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import slow_aegis

from securefabric import _core

Vector = dict[str, Any]


def load(name: str) -> Any:
    """Return the parsed file, or skip the test and say what is missing."""
    folder = os.environ.get("SECUREFABRIC_VECTORS")
    if not folder:
        pytest.skip("SECUREFABRIC_VECTORS is unset: no folder with published test vectors")
    path = Path(folder) / f"{name}.json"
    if not path.exists():
        pytest.skip(f"{path} does not exist")
    return json.loads(path.read_text())


def wycheproof(name: str, **group: int) -> list[Vector]:
    """Return the vectors of all groups that have the given attributes."""
    groups = load(f"wycheproof-{name}")["testGroups"]
    vectors = [
        vector
        for candidate in groups
        if all(candidate[key] == value for key, value in group.items())
        for vector in candidate["tests"]
    ]
    assert vectors, f"no vectors in {name} for {group}"
    return vectors


def require_suite(name: str) -> None:
    refusal = {suite: refusal for suite, _, refusal in _core.suites()}[name]
    if refusal is not None:
        pytest.skip(refusal)


def check_aead(suite: str, vector: Vector, provider: str = "") -> None:
    key, nonce, aad, data, ciphertext, tag = (
        bytes.fromhex(vector[field]) for field in ("key", "iv", "aad", "msg", "ct", "tag")
    )
    sealed = ciphertext + tag
    label = f"{suite} by {provider}, tcId {vector['tcId']}: {vector['comment']}"
    opened = _core.aead_open(suite, key, nonce, aad, sealed, provider)
    if vector["result"] == "valid":
        assert opened == data, label
        assert _core.aead_seal(suite, key, nonce, aad, data, provider) == sealed, label
    else:
        assert opened is None, label


@pytest.mark.parametrize(
    ("suite", "name", "count"),
    [
        ("aes-256-gcm", "aes_gcm", 66),
        ("chacha20-poly1305", "chacha20_poly1305", 316),
    ],
)
def test_aead__wycheproof(suite: str, name: str, count: int) -> None:
    vectors = wycheproof(name, keySize=256, ivSize=96, tagSize=128)
    require_suite(suite)
    assert len(vectors) >= count
    for provider in _core.providers(suite):
        for vector in vectors:
            check_aead(suite, vector, provider)


@pytest.mark.parametrize("suite", ["aes-256-gcm", "chacha20-poly1305"])
def test_aead__nonces_of_other_sizes_are_refused(suite: str) -> None:
    name = suite.replace("aes-256-gcm", "aes_gcm").replace("-", "_")
    vectors = [v for v in wycheproof(name, keySize=256) if len(v["iv"]) != 24]
    require_suite(suite)
    assert vectors
    for vector in vectors:
        with pytest.raises(ValueError, match="nonce has"):
            check_aead(suite, vector)


def test_aead__aegis_256x2_cfrg() -> None:
    vectors = [v for v in load("cfrg-aegis-256x2") if "Test Vector" in v["name"] and "ct" in v]
    require_suite("aegis-256x2")
    assert vectors
    for vector in vectors:
        key, nonce, aad, data, ciphertext, tag = (
            bytes.fromhex(vector[field]) for field in ("key", "nonce", "ad", "msg", "ct", "tag128")
        )
        sealed = ciphertext + tag
        assert slow_aegis.seal(key, nonce, aad, data) == sealed, vector["name"]
        for provider in _core.providers("aegis-256x2"):
            args = "aegis-256x2", key, nonce, aad
            assert _core.aead_seal(*args, data, provider) == sealed, vector["name"]
            assert _core.aead_open(*args, sealed, provider) == data, vector["name"]
            forged = bytes([sealed[0] ^ 1]) + sealed[1:]
            assert _core.aead_open(*args, forged, provider) is None, vector["name"]


def test_hkdf__wycheproof() -> None:
    for vector in wycheproof("hkdf_sha256"):
        key, salt, info = (bytes.fromhex(vector[field]) for field in ("ikm", "salt", "info"))
        if vector["result"] == "valid":
            expected = bytes.fromhex(vector["okm"])
            assert _core.hkdf(salt, key, info, vector["size"]) == expected, vector["tcId"]
        else:
            with pytest.raises(ValueError, match="length"):
                _core.hkdf(salt, key, info, vector["size"])


def test_x25519__wycheproof() -> None:
    refused = 0
    for vector in wycheproof("x25519"):
        private, public = bytes.fromhex(vector["private"]), bytes.fromhex(vector["public"])
        if "ZeroSharedSecret" in vector["flags"]:
            refused += 1
            with pytest.raises(_core.CoreError, match="low order") as caught:
                _core.x25519_shared(private, public)
            assert caught.value.code == "auth"
        else:
            shared = bytes.fromhex(vector["shared"])
            assert _core.x25519_shared(private, public) == shared, vector["tcId"]
    assert refused > 0


# What Python takes from `cryptography`.


def test_ed25519__wycheproof() -> None:
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    for group in load("wycheproof-ed25519")["testGroups"]:
        key = Ed25519PublicKey.from_public_bytes(bytes.fromhex(group["publicKey"]["pk"]))
        for vector in group["tests"]:
            signature, message = bytes.fromhex(vector["sig"]), bytes.fromhex(vector["msg"])
            if vector["result"] == "valid":
                key.verify(signature, message)
            else:
                with pytest.raises(InvalidSignature):
                    key.verify(signature, message)


def test_mlkem_768__wycheproof() -> None:
    from cryptography.hazmat.primitives.asymmetric.mlkem import MLKEM768PrivateKey

    checked = 0
    for vector in wycheproof("mlkem_768"):
        seed, ciphertext = bytes.fromhex(vector["seed"]), bytes.fromhex(vector["c"])
        if vector["result"] != "valid":
            with pytest.raises(ValueError):  # noqa: PT011  # a size, or an impossible encapsulation
                MLKEM768PrivateKey.from_seed_bytes(seed).decapsulate(ciphertext)
            continue
        key = MLKEM768PrivateKey.from_seed_bytes(seed)
        assert key.public_key().public_bytes_raw() == bytes.fromhex(vector["ek"]), vector["tcId"]
        assert key.decapsulate(ciphertext) == bytes.fromhex(vector["K"]), vector["tcId"]
        checked += 1
    assert checked > 100
