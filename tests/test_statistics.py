from __future__ import annotations

import dataclasses
from types import SimpleNamespace

import pytest
from fakes import SUITE

from securefabric import _fabric
from securefabric.errors import SecureFabricError
from securefabric.statistics import PathStats, Stats, paths, stats, summary

NUMBERS = [
    field.name
    for field in dataclasses.fields(Stats)
    if field.name not in ("rank", "world_size", "suite", "provider", "gso", "gro", "drops")
]

PATH_FIELDS = [field.name for field in dataclasses.fields(PathStats)]


def counted(**changes: object) -> dict[str, object]:
    """What the native fabric reports."""
    zeros: dict[str, object] = dict.fromkeys(NUMBERS, 0)
    return {**zeros, "gso": True, "gro": False, "drops": {"auth_failed": 0}, **changes}


def use(monkeypatch: pytest.MonkeyPatch, native: dict[str, object]) -> None:
    fabric = SimpleNamespace(
        rank=1,
        world_size=4,
        suite=SUITE,
        provider="openssl",
        native=SimpleNamespace(stats=lambda: native),
        check_not_forked=lambda: None,
    )
    monkeypatch.setattr(_fabric, "_current", fabric)


def test_stats__before_the_first_group_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_fabric, "_current", None)
    with pytest.raises(SecureFabricError, match="init_process_group"):
        stats()


def test_stats__takes_every_counter(monkeypatch: pytest.MonkeyPatch) -> None:
    values = {name: position for position, name in enumerate(NUMBERS)}
    use(monkeypatch, counted(**values, drops={"auth_failed": 7, "unknown_spi": 1}))
    seen = stats()
    assert (seen.rank, seen.world_size, seen.suite, seen.provider) == (1, 4, SUITE, "openssl")
    assert {name: getattr(seen, name) for name in NUMBERS} == values
    assert seen.auth_failures == 7


def test_paths__takes_what_the_core_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as none_yet:
        none_yet.setattr(_fabric, "_current", None)
        with pytest.raises(SecureFabricError, match="init_process_group"):
            paths()
    known = {name: position for position, name in enumerate(PATH_FIELDS)}
    fabric = SimpleNamespace(
        native=SimpleNamespace(paths=lambda: [known, known]), check_not_forked=lambda: None
    )
    monkeypatch.setattr(_fabric, "_current", fabric)
    first, second = paths()
    assert first == second
    assert dataclasses.asdict(first) == known


@pytest.mark.parametrize("name", [*NUMBERS, "gso", "gro", "drops"])
def test_stats__a_counter_that_is_missing_is_not_made_up(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    native = counted()
    del native[name]
    use(monkeypatch, native)
    with pytest.raises(KeyError, match=name):
        stats()


def test_summary__says_what_a_user_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    native = counted(
        peers=3,
        paths_active=12,
        paths_used=11,
        packets_sealed=12_345,
        bytes_sealed=3 * 1024 * 1024,
        packets_opened=12_001,
        bytes_opened=512,
        fragments_resent=4,
        bytes_resent=2048,
        packets_lost=5,
        epochs_begun=6,
        kernel_drops=9,
        drops={"auth_failed": 2, "unknown_spi": 1, "malformed": 0},
    )
    use(monkeypatch, native)
    assert summary().splitlines() == [
        "rank 1 of 4: aes-256-gcm by openssl, 3 peers, 12 paths active, 11 used, GSO on, GRO off",
        "  sealed        12,345 packets     3.00 MiB",
        "  opened        12,001 packets        512 B",
        "  resent             4 fragments   2.00 KiB, 5 packets lost, 0 of them wrongly",
        "  rekeyed            6 times, a link each",
        "  dropped            3 datagrams (auth_failed 2, unknown_spi 1), "
        "2 authentication failures, 9 lost to full buffers",
    ]
    assert summary(stats()) == summary()


def test_summary__several_engines_are_named(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, counted(engines=2, peers=3))
    assert ": aes-256-gcm by openssl, 2 engines, 3 peers, " in summary()


def test_summary__nothing_dropped_names_no_cause(monkeypatch: pytest.MonkeyPatch) -> None:
    use(monkeypatch, counted())
    assert summary().endswith("0 datagrams, 0 authentication failures, 0 lost to full buffers")
