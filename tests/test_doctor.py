from __future__ import annotations

import re
from pathlib import Path

import pytest
from native_fake import install

from securefabric import _core, authority, doctor
from securefabric.doctor import Finding, examine

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)


def by_topic(findings: list[Finding]) -> dict[str, Finding]:
    return {finding.topic: finding for finding in findings}


def test_examine__a_host_with_a_key_can_start_a_job(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECUREFABRIC_KEY_FILE", key_file)
    found = by_topic(examine())
    assert not [str(finding) for finding in found.values() if finding.is_fatal]
    for topic in ("securefabric", "torch", "cipher suite", "secret memory", "GSO", "GRO", "mpi"):
        assert topic in found
    assert found["interface"].detail == "eth0 10.0.0.1 (MTU 1500)"
    assert "aes-256-gcm" in found["job key"].detail
    assert "3,600 s or 1,099,511,627,776 bytes" in found["fresh keys"].detail


def test_examine__no_key_is_a_note_and_a_bad_one_fatal(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert by_topic(examine())["job key"].verdict == "note"
    Path(key_file).chmod(0o644)
    monkeypatch.setenv("SECUREFABRIC_KEY_FILE", key_file)
    finding = by_topic(examine())["job key"]
    assert finding.is_fatal
    assert "chmod 600" in finding.detail


def test_examine__another_torch_is_fatal_and_the_rest_is_still_examined(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    install(monkeypatch, "2.1.0")
    found = by_topic(examine())
    assert found["versions"].is_fatal
    assert "GSO" in found


def test_examine__an_unusable_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECUREFABRIC_PATHS_PER_PEER", "many")
    named = [found.topic for found in examine() if "SECUREFABRIC_PATHS_PER_PEER" in found.detail]
    assert named == ["settings"]  # once, though the interfaces are examined by the settings too
    found = by_topic(examine())["settings"].detail
    assert "SECUREFABRIC_PATHS_PER_PEER='many' is not usable: it must be a whole number" in found


def test_suites__each_one_has_its_provider_and_speed_or_a_reason() -> None:
    details = [finding.detail for finding in doctor._suites() if finding.topic == "cipher suite"]
    for detail, (name, provider, refusal) in zip(details, _core.suites(), strict=True):
        if provider is None:
            assert detail == f"{name}: {refusal}"
            continue
        assert detail.startswith(f"{name} by {provider}, known answers checked")
        rates = re.findall(r"([0-9.]+) at ([0-9,]+) B", detail)
        assert [size for _, size in rates] == ["1,424", "8,928"]
        assert all(float(rate) > 0 for rate, _ in rates)


def test_suites__a_provider_that_failed_its_self_test_is_told(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(_core, "provider_failures", lambda: ["the vaes provider failed"])
    first = next(doctor._suites())
    assert (first.verdict, first.detail) == ("note", "the vaes provider failed")


def test_settings__say_how_many_engines(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "usable_cores", lambda: 2)
    found = by_topic(list(doctor._settings()))["engines"]
    assert found.verdict == "ok"
    assert found.detail.startswith("2 cores here, divided among the ranks of this host, at most 4")
    for engines, verdict in ((2, "ok"), (3, "note")):
        monkeypatch.setenv("SECUREFABRIC_ENGINES", str(engines))
        found = by_topic(list(doctor._settings()))["engines"]
        assert found.verdict == verdict
        assert f"{engines} for each rank, 2 cores" in found.detail


def test_settings__a_range_of_ports_that_holds_no_rank(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECUREFABRIC_ENGINES", "2")
    for ports, ranks, verdict in (("40000-40004", 0, "FAIL"), ("40000-40011", 2, "ok")):
        monkeypatch.setenv("SECUREFABRIC_PORTS", ports)
        found = by_topic(list(doctor._settings()))["ports"]
        assert found.verdict == verdict
        assert f"enough for {ranks} ranks on this host, which take 6 each" in found.detail


def test_settings__names_that_are_none(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECUREFABRIC_ENGINE", "2")
    notes = [one.detail for one in doctor._settings() if one.verdict == "note"]
    assert any("did you mean SECUREFABRIC_ENGINES?" in note for note in notes)


def test_offloads__a_kernel_without_them_is_a_note(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_UDP_SEGMENT", 9999)
    found = by_topic(list(doctor._offloads()))
    assert found["GSO"].verdict == "note"
    assert found["GRO"].verdict == "ok"


def test_examine__certificates_need_no_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    authority.init(str(tmp_path))
    folder = authority.issue(str(tmp_path), job="night", ranks=range(2))
    monkeypatch.setenv("SECUREFABRIC_CERT_FILE", str(folder / "rank-{rank}.pem"))
    monkeypatch.setenv("SECUREFABRIC_CA_FILE", str(folder / "ca.pem"))
    monkeypatch.setenv("RANK", "1")
    found = by_topic(examine())
    assert "job key" not in found
    assert "rank 1 of job night, valid until 2" in found["certificate"].detail
    (folder / "rank-1.key").chmod(0o644)
    finding = by_topic(examine())["certificate"]
    assert finding.is_fatal
    assert "chmod 600" in finding.detail
