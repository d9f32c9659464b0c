from __future__ import annotations

import warnings
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from certificate_factory import (
    DOMAIN,
    JOB,
    Issued,
    Liar,
    authority,
    bundle,
    certificate,
    identity,
    key_pem,
    leaf,
    pem,
)
from cryptography import x509
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID as Purpose
from fakes import FakeCredential, make_body

from securefabric import _cbor, _core
from securefabric.certificates import CHAIN_LENGTH_MAX, CertificateIdentity, name_of_rank
from securefabric.errors import (
    AuthError,
    CertificateError,
    CertificateExpired,
    CertificateMismatch,
    CertificateUntrusted,
    ConfigError,
    IdentityError,
    MalformedEntry,
    PolicyMismatch,
)
from securefabric.options import Options
from securefabric.roster import Roster, encode_entry, policy_digest

pytestmark = pytest.mark.usefixtures("clean_environment")

POLICY = policy_digest(identity="x509", suite="aes-256-gcm", generation_bits=22, has_kem=False)


def body(rank: int, **changes: object) -> Any:
    return make_body(rank, **{"job": JOB, "policy": POLICY, **changes})


def roster_of(folder: Path, rank: int = 0) -> Roster:
    return Roster(identity(folder, rank), body(rank))


def intermediate(**changes: Any) -> Issued:
    settings = {"issuer": authority(), "is_ca": True, "common_name": "team CA", **changes}
    return certificate(**settings)


def purposes(*purposes: x509.ObjectIdentifier) -> x509.ExtendedKeyUsage:
    return x509.ExtendedKeyUsage(purposes)


# check_evidence, through Roster.verify


def test_verify__accepts_the_rank_that_the_certificate_names(tmp_path: Path) -> None:
    peer = roster_of(tmp_path).verify(1, encode_entry(identity(tmp_path, 1), body(1)))
    assert peer.rank == 1


@pytest.mark.parametrize("curve", [ec.SECP256R1(), ec.SECP384R1(), ec.SECP521R1()])
def test_verify__accepts_every_curve_that_is_listed(
    tmp_path: Path, curve: ec.EllipticCurve
) -> None:
    issued = leaf(1, key=ec.generate_private_key(curve))
    roster_of(tmp_path).verify(1, encode_entry(Liar(issued), body(1)))


def test_verify__accepts_a_chain_with_intermediates(tmp_path: Path) -> None:
    team = intermediate()
    issued = leaf(1, issuer=team)
    roster = roster_of(tmp_path)
    roster.verify(1, encode_entry(Liar(issued, chain=(team[0],)), body(1)))
    with pytest.raises(CertificateUntrusted, match=r"rank 1 .*no CA of .*ca.pem"):
        roster.verify(1, encode_entry(Liar(issued), body(1)))


@pytest.mark.parametrize(
    "usage",
    [
        purposes(Purpose.SERVER_AUTH, Purpose.CLIENT_AUTH),
        purposes(Purpose.ANY_EXTENDED_KEY_USAGE),
    ],
)
def test_verify__a_purpose_that_includes_clients_is_accepted_on_leaf_and_ca(
    usage: x509.ExtendedKeyUsage, tmp_path: Path
) -> None:
    team = intermediate(more=(usage,))
    liar = Liar(leaf(1, issuer=team, more=(usage,)), chain=(team[0],))
    roster_of(tmp_path).verify(1, encode_entry(liar, body(1)))


LEAVES: dict[str, tuple[dict[str, Any], type[IdentityError], str]] = {
    "of another rank": (
        {"uris": (name_of_rank(DOMAIN, JOB, 2),)},
        CertificateMismatch,
        "certificate of 'spiffe://tests/job/default/rank/2', but has to be .*rank/1'",
    ),
    "of another job": (
        {"uris": (name_of_rank(DOMAIN, "other", 1),)},
        CertificateMismatch,
        "job/other/rank/1",
    ),
    "of another domain": (
        {"uris": (name_of_rank("elsewhere", JOB, 1),)},
        CertificateMismatch,
        "spiffe://elsewhere",
    ),
    "whose name has a tail": (
        {"uris": (name_of_rank(DOMAIN, JOB, 1) + "/x",)},
        CertificateMismatch,
        "rank/1/x",
    ),
    "whose name is in another form": (
        {"uris": (name_of_rank(DOMAIN, JOB, 1).replace("rank/1", "rank/01"),)},
        CertificateMismatch,
        "rank/01",
    ),
    "with two names": (
        {"uris": (name_of_rank(DOMAIN, JOB, 1), name_of_rank(DOMAIN, JOB, 2))},
        CertificateMismatch,
        "2 URIs",
    ),
    "without a name": ({"uris": (), "common_name": "rank 1"}, CertificateMismatch, "0 URIs"),
    "expired": (
        {"starts": timedelta(hours=-2), "ends": timedelta(seconds=-5)},
        CertificateExpired,
        "rank 1 .* expired at .*renew",
    ),
    "not yet valid": (
        {"starts": timedelta(minutes=30)},
        CertificateExpired,
        "not valid before .*clocks",
    ),
    "of another CA": (
        {"issuer": authority("other CA")},
        CertificateUntrusted,
        "no CA of .*SECUREFABRIC_CA_FILE",
    ),
    "of a CA with the same name": (
        {"issuer": certificate(issuer=None, is_ca=True, common_name="job CA")},
        CertificateUntrusted,
        "no CA of",
    ),
    "self-signed": (
        {"issuer": None, "common_name": "rank 1"},
        CertificateUntrusted,
        "no CA of",
    ),
    "issued by a leaf": ({"issuer": leaf(1, common_name="leaf")}, CertificateUntrusted, "no CA of"),
    "of a CA": ({"is_ca": True}, CertificateError, "a CA's own"),
    "that may issue": (
        {"usage": frozenset({"digital_signature", "key_cert_sign"})},
        CertificateError,
        "may issue certificates",
    ),
    "that may not sign": (
        {"usage": frozenset({"key_encipherment"})},
        CertificateError,
        "lacks digitalSignature",
    ),
    "without a usage": ({"usage": frozenset()}, CertificateError, "lacks digitalSignature"),
    "to sign code": (
        {"more": (purposes(Purpose.CODE_SIGNING, Purpose.SERVER_AUTH),)},
        CertificateError,
        "extended key usage lacks clientAuth",
    ),
    "with an Ed25519 key": (
        {"key": ed25519.Ed25519PrivateKey.generate()},
        CertificateError,
        "not ECDSA",
    ),
    "with a weak curve": (
        {"key": ec.generate_private_key(ec.SECP224R1())},
        CertificateError,
        "not ECDSA on P-256",
    ),
}


class _AnyKey:
    """Signs with nothing: the certificate is refused before its signature matters."""

    curve = ec.SECP256R1()

    def sign(self, *_: object) -> bytes:
        return bytes(70)


@pytest.mark.parametrize("kind", LEAVES)
def test_verify__a_certificate_has_its_error(kind: str, tmp_path: Path) -> None:
    changes, error, hint = LEAVES[kind]
    issued = leaf(1, **changes)
    is_listed = isinstance(issued[1], ec.EllipticCurvePrivateKey)
    is_listed = is_listed and issued[1].curve.name != "secp224r1"
    liar = Liar(issued if is_listed else (issued[0], _AnyKey()))
    with pytest.raises(error, match=hint) as info:
        roster_of(tmp_path).verify(1, encode_entry(liar, body(1)))
    assert type(info.value) is error
    assert "rank 1" in str(info.value)


@pytest.mark.parametrize(
    "changes",
    [
        {"usage": frozenset({"digital_signature"})},
        {"ends": timedelta(seconds=-5), "starts": timedelta(hours=-2)},
        {"is_ca": False, "usage": frozenset({"key_cert_sign"})},
    ],
)
def test_verify__an_intermediate_must_be_a_ca_that_is_valid(
    changes: dict[str, Any], tmp_path: Path
) -> None:
    team = intermediate(**changes)
    liar = Liar(leaf(1, issuer=team), chain=(team[0],))
    with pytest.raises((CertificateUntrusted, CertificateExpired), match="rank 1"):
        roster_of(tmp_path).verify(1, encode_entry(liar, body(1)))


@pytest.mark.parametrize("where", ["root", "intermediate"])
def test_verify__a_ca_for_other_purposes_is_refused_by_name(where: str, tmp_path: Path) -> None:
    for_mail = (purposes(Purpose.EMAIL_PROTECTION),)
    root = authority()
    if where == "root":
        root = certificate(issuer=None, is_ca=True, common_name="mail CA", more=for_mail)
    team = intermediate(issuer=root, more=for_mail if where == "intermediate" else ())
    chain = [leaf(1, issuer=team)[0], team[0]]
    with pytest.raises(CertificateUntrusted, match=r"rank 1 .*extended key usage lacks clientAuth"):
        bundle(tmp_path, root).verify("rank 1", chain, name_of_rank(DOMAIN, JOB, 1))


@pytest.mark.parametrize(
    "constraints",
    [
        x509.NameConstraints([x509.UniformResourceIdentifier(DOMAIN)], None),
        x509.NameConstraints(None, [x509.UniformResourceIdentifier("elsewhere")]),
    ],
)
def test_verify__limits_on_uris_are_refused_by_name(
    constraints: x509.NameConstraints, tmp_path: Path
) -> None:
    team = intermediate(more=(constraints,))
    chain = [leaf(1, issuer=team)[0], team[0]]
    with pytest.raises(CertificateUntrusted, match=r"rank 1 .*limits URIs by name constraints"):
        bundle(tmp_path, authority()).verify("rank 1", chain, name_of_rank(DOMAIN, JOB, 1))


def test_verify__a_path_length_is_kept(tmp_path: Path) -> None:
    root = certificate(issuer=None, is_ca=True, common_name="short CA", path_length=0)
    team = intermediate(issuer=root)
    own, key = leaf(0, issuer=root)
    trust = bundle(tmp_path, root)
    roster = Roster(CertificateIdentity(rank=0, chain=[own], private_key=key, trust=trust), body(0))
    liar = Liar(leaf(1, issuer=team), chain=(team[0],))
    with pytest.raises(CertificateUntrusted, match="rank 1"):
        roster.verify(1, encode_entry(liar, body(1)))


def test_verify__a_valid_rank_cannot_speak_for_another(tmp_path: Path) -> None:
    """Rank 2, a member, puts an entry on rank 1's place: with its own certificate, and with a
    stolen one whose key it lacks."""
    roster = roster_of(tmp_path)
    with pytest.raises(CertificateMismatch, match=r"rank/2.*rank/1"):
        roster.verify(1, encode_entry(identity(tmp_path, 2), body(1)))
    thief = Liar((leaf(1)[0], leaf(2)[1]))
    with pytest.raises(AuthError, match=r"rank 1 .*not signed"):
        roster.verify(1, encode_entry(thief, body(1)))
    honest = encode_entry(identity(tmp_path, 2), body(2))
    with pytest.raises(CertificateMismatch, match=r"rank/2.*rank/1"):
        roster.verify(1, honest)


def test_verify__a_body_that_names_another_rank_than_the_certificate_is_refused(
    tmp_path: Path,
) -> None:
    with pytest.raises(IdentityError, match="claims rank 2"):
        roster_of(tmp_path).verify(1, encode_entry(identity(tmp_path, 1), body(2)))


def test_verify__a_store_that_alters_anything_is_found_out(tmp_path: Path) -> None:
    entry = bytearray(encode_entry(identity(tmp_path, 1), body(1)))
    roster = roster_of(tmp_path)
    for position in range(0, len(entry), 3):
        entry[position] ^= 1
        with pytest.raises(IdentityError):
            roster.verify(1, bytes(entry))
        entry[position] ^= 1


def test_verify__psk_and_x509_refuse_each_other_by_name(tmp_path: Path) -> None:
    psk = Roster(FakeCredential(), make_body(0))
    with pytest.raises(PolicyMismatch, match=r"rank 1 .*'x509', this rank \(rank 0\) by 'psk'"):
        psk.verify(1, encode_entry(identity(tmp_path, 1), body(1)))
    with pytest.raises(PolicyMismatch, match=r"by 'psk', this rank .* by 'x509'"):
        roster_of(tmp_path).verify(1, encode_entry(FakeCredential(), make_body(1)))


# with a job key as well


def job_key() -> _core.JobKey:
    return _core.JobKey(_core.JobKey.format("aes-256-gcm", bytearray(range(32))))


def test_verify__with_a_job_key_both_proofs_are_needed(tmp_path: Path) -> None:
    key = job_key()
    other = _core.JobKey(_core.JobKey.format("aes-256-gcm", bytearray(32 * b"o")))
    roster = Roster(identity(tmp_path, 0, job_key=key), body(0))
    roster.verify(1, encode_entry(identity(tmp_path, 1, job_key=key), body(1)))
    with pytest.raises(AuthError, match=f"rank 1 joined with job key {other.key_id}.*{key.key_id}"):
        roster.verify(1, encode_entry(identity(tmp_path, 1, job_key=other), body(1)))
    with pytest.raises(PolicyMismatch, match=r"by 'x509', this rank .* by 'x509\+psk'"):
        roster.verify(1, encode_entry(identity(tmp_path, 1), body(1)))
    with pytest.raises(PolicyMismatch, match=r"by 'x509\+psk', this rank .* by 'x509'"):
        roster_of(tmp_path).verify(1, encode_entry(identity(tmp_path, 1, job_key=key), body(1)))


def test_check_evidence__a_proof_that_nobody_asked_for_is_malformed(tmp_path: Path) -> None:
    own = identity(tmp_path, 0)
    chain, signature, _ = _cbor.decode(identity(tmp_path, 1).evidence(b"m"))  # type: ignore[misc]
    with pytest.raises(MalformedEntry, match="rank 1 proves possession"):
        own.check_evidence(1, "", b"m", _cbor.encode([chain, signature, b"mac"]))


@pytest.mark.parametrize(
    "evidence",
    [
        b"",
        b"\x81" * 5000,
        _cbor.encode([]),
        _cbor.encode([[], b"", b""]),
        _cbor.encode([["text"], b"", b""]),
        _cbor.encode([[b""], b"", b""]),
        _cbor.encode([[b"junk" * 100], b"", b""]),
        _cbor.encode([[b"x"] * (CHAIN_LENGTH_MAX + 1), b"", b""]),
        _cbor.encode([[bytes(4000)], b"", b""]),
        _cbor.encode([[b"x"], "", b""]),
        _cbor.encode({"chain": 1}),
    ],
)
def test_check_evidence__hostile_bytes_are_malformed(evidence: bytes, tmp_path: Path) -> None:
    with pytest.raises(MalformedEntry, match="rank 1"):
        identity(tmp_path, 0).check_evidence(1, "", b"m", evidence)


# CertificateIdentity.load


def files(folder: Path, issued: Issued, name: str = "rank-3") -> Options:
    (folder / f"{name}.pem").write_bytes(pem(issued[0]))
    (folder / f"{name}.key").write_bytes(key_pem(issued[1]))
    (folder / f"{name}.key").chmod(0o600)
    bundle(folder)
    return Options(cert_file=str(folder / "rank-{rank}.pem"), ca_file=str(folder / "ca.pem"))


def test_load__finds_the_files_of_its_rank(tmp_path: Path) -> None:
    loaded = CertificateIdentity.load(files(tmp_path, leaf(3)), 3, None)
    assert (loaded.mode, loaded.job, loaded.key_id) == ("x509", JOB, "")


def test_load__the_key_may_be_elsewhere(tmp_path: Path) -> None:
    options = files(tmp_path, leaf(3))
    (tmp_path / "keys").mkdir()
    (tmp_path / "rank-3.key").rename(tmp_path / "keys" / "3")
    elsewhere = Options(
        cert_file=options.cert_file,
        cert_key_file=str(tmp_path / "keys" / "{rank}"),
        ca_file=options.ca_file,
    )
    CertificateIdentity.load(elsewhere, 3, None)


@pytest.mark.parametrize(
    ("name", "mode", "hint"),
    [
        ("rank-3.key", 0o644, r"certificate key file .* mode 0644.*chmod 600"),
        ("rank-3.pem", 0o666, r"certificate file .* mode 0666.*chmod go-w"),
        ("ca.pem", 0o664, r"CA file .* mode 0664.*chmod go-w"),
    ],
)
def test_load__files_that_others_may_use_or_change_are_refused(
    name: str, mode: int, hint: str, tmp_path: Path
) -> None:
    options = files(tmp_path, leaf(3))
    (tmp_path / name).chmod(mode)
    with pytest.raises(ConfigError, match=hint):
        CertificateIdentity.load(options, 3, None)


@pytest.mark.parametrize("name", ["rank-3.key", "rank-3.pem", "ca.pem"])
def test_load__files_that_hold_something_else_are_named(name: str, tmp_path: Path) -> None:
    options = files(tmp_path, leaf(3))
    (tmp_path / name).write_bytes(b"junk")
    with pytest.raises(ConfigError, match=f"{name} holds no .*securefabric ca"):
        CertificateIdentity.load(options, 3, None)
    (tmp_path / name).unlink()
    with pytest.raises(ConfigError, match=f"{name} does not exist.*securefabric ca"):
        CertificateIdentity.load(options, 3, None)


def test_load__settings_that_are_missing_are_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"needs ca_file .SECUREFABRIC_CA_FILE."):
        CertificateIdentity.load(Options(cert_file="x"), 3, None)
    with pytest.raises(ConfigError, match=r"needs cert_file .SECUREFABRIC_CERT_FILE."):
        CertificateIdentity.load(Options(ca_file="x"), 3, None)


def test_load__what_peers_would_refuse_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(CertificateMismatch, match=r"rank 3 \(this rank\).*rank/2.*rank/3"):
        CertificateIdentity.load(files(tmp_path, leaf(2)), 3, None)
    with pytest.raises(CertificateMismatch, match="not spiffe://"):
        CertificateIdentity.load(files(tmp_path, leaf(3, uris=("spiffe://tests/web",))), 3, None)
    expired = leaf(3, starts=timedelta(hours=-2), ends=timedelta(seconds=-5))
    with pytest.raises(CertificateExpired, match=r"rank 3 \(this rank\)"):
        CertificateIdentity.load(files(tmp_path, expired), 3, None)


def test_load__a_key_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not that of its certificate"):
        CertificateIdentity.load(files(tmp_path, (leaf(3)[0], leaf(3)[1])), 3, None)
    own = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    with pytest.raises(ConfigError, match="not ECDSA"):
        CertificateIdentity.load(files(tmp_path, (leaf(3)[0], own)), 3, None)


def test_load__a_chain_that_peers_would_refuse_is_refused(tmp_path: Path) -> None:
    options = files(tmp_path, leaf(3))
    (tmp_path / "rank-3.pem").write_bytes(pem(leaf(3)[0]) * (CHAIN_LENGTH_MAX + 1))
    with pytest.raises(ConfigError, match="more than 4 certificates"):
        CertificateIdentity.load(options, 3, None)


def test_load__another_job_id_is_refused(tmp_path: Path) -> None:
    options = files(tmp_path, leaf(3))
    told = Options(cert_file=options.cert_file, ca_file=options.ca_file, job_id="night")
    with pytest.raises(
        CertificateMismatch, match=r"job 'default'.*job 'night'.*SECUREFABRIC_JOB_ID"
    ):
        CertificateIdentity.load(told, 3, None)


def test_load__warns_when_little_of_its_life_is_left(tmp_path: Path) -> None:
    old = leaf(3, starts=timedelta(hours=-20), ends=timedelta(hours=1))
    with pytest.warns(UserWarning, match=r"expires in 0:59:.*renew"):
        CertificateIdentity.load(files(tmp_path, old), 3, None)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        CertificateIdentity.load(files(tmp_path, leaf(3)), 3, None)


def test_repr__shows_no_private_key(tmp_path: Path) -> None:
    own = identity(tmp_path, 0)
    secret = own._private_key.private_numbers().private_value
    shown = repr(own) + repr(vars(own))
    assert str(secret) not in shown
    assert f"{secret:x}" not in shown
