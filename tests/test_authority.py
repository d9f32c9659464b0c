from __future__ import annotations

import stat
from pathlib import Path

import pytest
from fakes import make_body

from securefabric import authority, cli
from securefabric.certificates import CertificateIdentity
from securefabric.errors import CertificateUntrusted, ConfigError
from securefabric.options import Options
from securefabric.roster import Roster, encode_entry, policy_digest

pytestmark = pytest.mark.usefixtures("clean_environment")


def load(folder: Path, rank: int) -> CertificateIdentity:
    options = Options(cert_file=str(folder / "rank-{rank}.pem"), ca_file=str(folder / "ca.pem"))
    return CertificateIdentity.load(options, rank, None)


def mode_of(path: Path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


@pytest.fixture
def ca(tmp_path: Path) -> str:
    authority.init(str(tmp_path / "ca"))
    return str(tmp_path / "ca")


def test_issue__certificates_that_ranks_accept_of_each_other(ca: str) -> None:
    folder = authority.issue(ca, job="night", ranks=range(3))
    policy = policy_digest(identity="x509", suite="aes-256-gcm", generation_bits=22, has_kem=False)
    changes = {"job": "night", "policy": policy}
    roster = Roster(load(folder, 0), make_body(0, **changes))
    for rank in (1, 2):
        assert roster.verify(rank, encode_entry(load(folder, rank), make_body(rank, **changes)))


def test_issue__keys_are_private_and_new_ones_replace_old(ca: str) -> None:
    folder = authority.issue(ca, job="night", ranks=range(1))
    key = folder / "rank-0.key"
    before = key.read_bytes()
    assert mode_of(key) == mode_of(Path(ca) / "ca.key") == 0o600
    assert mode_of(folder / "rank-0.pem") == 0o644
    authority.issue(ca, job="night", ranks=range(1))
    assert key.read_bytes() != before
    load(folder, 0)
    assert not list(folder.glob("*.new"))


def test_issue__another_ca_is_another_trust(ca: str, tmp_path: Path) -> None:
    other = str(tmp_path / "other")
    authority.init(other)
    folder = authority.issue(other, job="night", ranks=range(1))
    (folder / "ca.pem").write_bytes((Path(ca) / "ca.pem").read_bytes())
    with pytest.raises(CertificateUntrusted, match="rank 0"):
        load(folder, 0)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ({"job": "a/b", "ranks": range(1)}, "job 'a/b' is not usable"),
        ({"job": "", "ranks": range(1)}, "job '' is not usable"),
        ({"job": "a", "ranks": range(0)}, "at least one"),
        ({"job": "a", "ranks": range(-1, 0)}, "at least one"),
        ({"job": "a", "ranks": range(1 << 20, (1 << 20) + 1)}, "below 1048576"),
        ({"job": "a", "ranks": range(1), "days": 0.0}, "more than 0"),
        ({"job": "a", "ranks": range(1), "days": float("nan")}, "more than 0"),
        ({"job": "a", "ranks": range(1), "days": 1e9}, "at most 3650"),
        ({"job": "a", "ranks": range(1), "days": 400.0}, "CA in .* expires at .*ca init"),
    ],
)
def test_issue__refuses_what_makes_no_sense(
    settings: dict[str, object], hint: str, ca: str
) -> None:
    with pytest.raises(ConfigError, match=hint):
        authority.issue(ca, **settings)  # type: ignore[arg-type]


def test_issue__a_ca_that_is_not_there_or_open_to_others_is_refused(
    ca: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=r"does not exist.*securefabric ca init"):
        authority.issue(str(tmp_path / "none"), job="a", ranks=range(1))
    (Path(ca) / "ca.key").chmod(0o640)
    with pytest.raises(ConfigError, match="chmod 600"):
        authority.issue(ca, job="a", ranks=range(1))
    (Path(ca) / "ca.key").chmod(0o600)
    (Path(ca) / "ca.pem").write_bytes(b"junk")
    with pytest.raises(ConfigError, match="does not hold a CA"):
        authority.issue(ca, job="a", ranks=range(1))


def test_init__never_overwrites(ca: str) -> None:
    before = (Path(ca) / "ca.key").read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        authority.init(ca)
    assert (Path(ca) / "ca.key").read_bytes() == before
    with pytest.raises(ConfigError, match="trust domain 'A B'"):
        authority.init(ca, trust_domain="A B")


# the command line


def test_ca__two_commands_make_a_job(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = str(tmp_path / "ca")
    assert cli.main(["ca", "init", folder, "--trust-domain", "example.org"]) == 0
    assert "securefabric ca issue" in capsys.readouterr().out
    assert cli.main(["ca", "issue", folder, "--job", "night", "--ranks", "2"]) == 0
    said = capsys.readouterr().out
    assert f"SECUREFABRIC_CERT_FILE='{folder}/night/rank-{{rank}}.pem'" in said
    assert f"SECUREFABRIC_CA_FILE={folder}/night/ca.pem" in said
    assert load(Path(folder) / "night", 1).job == "night"
    assert "PRIVATE" not in said


def test_ca__one_rank_elsewhere(ca: str, tmp_path: Path) -> None:
    out = str(tmp_path / "out")
    command = ["ca", "issue", ca, "--job", "night", "--rank", "7", "--out", out, "--days", "0.5"]
    assert cli.main(command) == 0
    assert sorted(path.name for path in Path(out).iterdir()) == [
        "ca.pem",
        "rank-7.key",
        "rank-7.pem",
    ]


def test_ca__errors_are_said_plainly(ca: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["ca", "init", ca]) == 1
    assert "securefabric ca init: " in capsys.readouterr().err
    assert cli.main(["ca", "issue", ca, "--job", "x y", "--ranks", "1"]) == 1
    assert "securefabric ca issue: " in capsys.readouterr().err
