from __future__ import annotations

import hashlib
import os
from collections.abc import Callable
from datetime import timedelta
from pathlib import Path
from typing import cast

import pytest
import torch.distributed as dist
from fakes import FakeBackend, FakeFabric, FakeRequest
from native_fake import install
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from securefabric import _cores, _fabric
from securefabric._backend import create_backend
from securefabric._fabric import current_fabric, is_one_host
from securefabric.errors import ConfigError, ForkError
from securefabric.options import Options
from securefabric.roster import PeerEntry

pytestmark = pytest.mark.usefixtures("clean_environment")


@pytest.fixture(autouse=True)
def fakes(monkeypatch: pytest.MonkeyPatch) -> None:
    install(monkeypatch)
    monkeypatch.setattr(_fabric, "_current", None)
    monkeypatch.setattr(_fabric, "_published", set())


def make(request: FakeRequest, options: object) -> FakeBackend:
    return cast(FakeBackend, create_backend(request, options))


def native() -> FakeFabric:
    fabric = current_fabric()
    assert fabric is not None
    return cast(FakeFabric, fabric.native)


# create_backend


def test_create_backend__hands_everything_over(key_file: str) -> None:
    store = HashStore()
    backend = make(FakeRequest(store, timeout=1.5), Options(key_file=key_file, paths_per_peer=3))
    identity = str(backend.given.pop("identity"))
    assert identity.startswith("5:world,0:,1:0,1:0,16:")
    assert backend.given.pop("board") != ""
    assert backend.given.pop("keeper") is not None
    assert backend.given == {
        "fabric": native(),
        "group_rank": 0,
        "group_size": 1,
        "group_name": "0",
        "global_ranks": [0],
        "options": (timedelta(seconds=1.5), "securefabric"),
    }
    settings = native().settings
    assert settings["paths_per_peer"] == 3
    assert settings["generation_bits"] == 22
    assert settings["addresses"] == ["127.0.0.1"]
    assert settings["local_world_size"] == 1


def test_create_backend__environment_names_the_key(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECUREFABRIC_KEY_FILE", key_file)
    make(FakeRequest(HashStore()), None)


def test_create_backend__a_setting_that_is_none_is_warned_of(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SECUREFABRIC_PATH_PER_PEER", "2")
    with pytest.warns(UserWarning, match="did you mean SECUREFABRIC_PATHS_PER_PEER"):
        make(FakeRequest(HashStore()), Options(key_file=key_file))


@pytest.mark.parametrize("options", [{"no_such_option": 1}, None])
def test_create_backend__tells_the_others_why_it_fails(options: object) -> None:
    store = HashStore()
    with pytest.raises(ConfigError) as raised:
        create_backend(FakeRequest(store, group_rank=1, group_size=2), options)
    assert store.get("securefabric/refusal/1").decode() == str(raised.value)


def test_create_backend__without_a_key_nothing_starts() -> None:
    with pytest.raises(ConfigError, match=r"no job key.*securefabric keygen"):
        create_backend(FakeRequest(HashStore()), None)
    assert current_fabric() is None


def test_create_backend__a_short_key_names_file_and_fix(key_file: str) -> None:
    text = Path(key_file).read_text()
    Path(key_file).write_text(text[:-20] + "\n")
    with pytest.raises(ConfigError, match=r"job\.key.*needs exactly 64.*securefabric keygen"):
        create_backend(FakeRequest(HashStore()), Options(key_file=key_file))


def test_create_backend__native_errors_get_their_class(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(self: FakeFabric, **settings: object) -> None:
        raise RuntimeError("ConfigError: no interface matches")

    monkeypatch.setattr(FakeFabric, "__init__", refuse)
    with pytest.raises(ConfigError, match=r"^no interface matches"):
        create_backend(FakeRequest(HashStore()), Options(key_file=key_file))


def test_create_backend__groups_share_one_fabric(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    options = Options(key_file=key_file)
    first = make(FakeRequest(HashStore()), options)
    second = make(FakeRequest(HashStore(), group_id="1", global_ranks_in_group=[0]), None)
    third = make(FakeRequest(HashStore()), options)
    fabrics = {id(backend.given["fabric"]) for backend in (first, second, third)}
    assert len(fabrics) == 1


def test_create_backend__other_settings_for_a_later_group_are_refused(key_file: str) -> None:
    make(FakeRequest(HashStore()), Options(key_file=key_file))
    with pytest.raises(ConfigError, match=r"settings are those of its first.*paths_per_peer is 8"):
        create_backend(FakeRequest(HashStore()), Options(key_file=key_file, paths_per_peer=2))


def test_create_backend__another_world_gets_another_fabric(key_file: str) -> None:
    options = Options(key_file=key_file)
    store = HashStore()
    make(FakeRequest(store, group_rank=0, group_size=2), options)
    old = native()
    make(FakeRequest(store), options)
    assert native() is not old
    assert old.shutdowns == 1


# How many engines

Run = Callable[..., list[object]]


@pytest.fixture
def on_cores(monkeypatch: pytest.MonkeyPatch) -> Run:
    """What ranks of one world run, each on a host with so many cores for three ranks."""

    def run(*cores_of_ranks: int, options: Options, ranks: list[int] | None = None) -> list[object]:
        monkeypatch.setenv("RANK", "0")
        monkeypatch.setenv("WORLD_SIZE", "6")
        monkeypatch.setenv("LOCAL_WORLD_SIZE", "3")
        monkeypatch.setattr(dist, "get_world_size", lambda: 6)
        store = HashStore()
        engines = []
        for rank, cores in enumerate(cores_of_ranks):
            monkeypatch.setattr(_fabric, "_current", None)
            monkeypatch.setattr(_cores, "usable_cores", lambda cores=cores: cores)
            request = FakeRequest(
                store, group_rank=rank, group_size=6, global_ranks_in_group=ranks or []
            )
            make(request, options)
            engines.append(native().settings["engines"])
        return engines

    return run


def test_engines__are_those_that_rank_0_has_cores_for(key_file: str, on_cores: Run) -> None:
    assert on_cores(8, 64, 2, options=Options(key_file=key_file)) == [2, 2, 2]


def test_engines__one_where_nobody_knows_who_shares_the_cores(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(_cores, "usable_cores", lambda: 64)
    make(FakeRequest(HashStore(), group_size=2), Options(key_file=key_file))
    assert native().settings["engines"] == 1


def test_engines__are_what_the_user_says(key_file: str, on_cores: Run) -> None:
    assert on_cores(8, 8, options=Options(key_file=key_file, engines=3)) == [3, 3]


def test_engines__one_where_the_world_is_another_backend_s(key_file: str, on_cores: Run) -> None:
    assert on_cores(64, 2, options=Options(key_file=key_file), ranks=[0, 1]) == [1, 1]


def test_engines__settings_that_differ_are_refused_at_once(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HashStore()
    make(FakeRequest(store, group_rank=0, group_size=2), Options(key_file=key_file, engines=2))
    monkeypatch.setattr(_fabric, "_current", None)
    with pytest.raises(ConfigError, match=r"rank 0 has 2, this rank \(rank 1\) 3; set"):
        create_backend(
            FakeRequest(store, group_rank=1, group_size=2), Options(key_file=key_file, engines=3)
        )


def test_engines__more_than_the_ports_hold_are_refused(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    store = HashStore()
    make(FakeRequest(store, group_rank=0, group_size=2), Options(key_file=key_file, engines=4))
    monkeypatch.setattr(_fabric, "_current", None)
    options = Options(key_file=key_file, ports="40000-40008")
    with pytest.raises(ConfigError, match=r"4 engines.*40000-40008 do not suffice; widen"):
        create_backend(FakeRequest(store, group_rank=1, group_size=2), options)


def test_engines__a_fabric_that_goes_on_tells_the_new_ranks(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process that stays, as rank 0, while others are replaced: each world has its store."""
    options = Options(key_file=key_file)
    make(FakeRequest(HashStore(), group_rank=0, group_size=2), options)
    stayed = current_fabric()
    second = HashStore()
    make(FakeRequest(second, group_rank=0, group_size=2), options)
    assert current_fabric() is stayed
    monkeypatch.setattr(_fabric, "_current", None)
    make(FakeRequest(second, group_rank=1, group_size=2), options)
    assert native().settings["engines"] == 1


# ProcessFabric


def two_ranks(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> list[tuple[FakeFabric, FakeBackend]]:
    """Rank 0 and rank 1 of one world, each as if it were a process of its own."""
    store = HashStore()
    options = Options(key_file=key_file)
    made: list[tuple[FakeFabric, FakeBackend]] = []
    for rank in range(2):
        monkeypatch.setattr(_fabric, "_current", None)
        monkeypatch.setattr(_fabric, "_published", set())
        backend = make(FakeRequest(store, group_rank=rank, group_size=2), options)
        made.append((native(), backend))
    return made


def found(fabric: FakeFabric, backend: FakeBackend, rank: int) -> PeerEntry | None:
    return fabric.resolve(str(backend.given["board"]), rank)


def test_resolve__ranks_find_each_other(key_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    (first, at_first), (second, at_second) = two_ranks(key_file, monkeypatch)
    assert at_first.given["identity"] == at_second.given["identity"]
    peer = found(first, at_first, 1)
    assert peer is not None
    assert (peer.rank, peer.boot_id, peer.entry_bytes) == (1, second.boot_id, second.entry)
    mirror = found(second, at_second, 0)
    assert mirror is not None
    assert mirror.entry_bytes == first.entry


def test_resolve__a_board_ends_with_the_backends_that_hold_it(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    world = make(FakeRequest(HashStore()), Options(key_file=key_file))
    group = make(FakeRequest(HashStore(), group_id="1", global_ranks_in_group=[0]), None)
    board = str(world.given["board"])
    assert group.given["board"] == board
    fabric = current_fabric()
    assert fabric is not None
    del world
    assert board in fabric._boards
    del group
    assert board not in fabric._boards
    assert native().resolve(board, 0) is None


# Identities


def test_join_group__a_group_is_named_by_its_world_and_its_members(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    request = FakeRequest(HashStore(), group_id="1", global_ranks_in_group=[0])
    world = make(FakeRequest(HashStore(), group_size=2), Options(key_file=key_file))
    scope = hashlib.sha256(str(world.given["identity"]).encode()).hexdigest()
    assert make(request, None).given["identity"] == f"5:group,64:{scope},0:,1:1,1:0,"
    del world
    assert make(request, None).given["identity"] == "5:group,0:,0:,1:1,1:0,"


def test_join_group__no_store_has_a_say_in_what_a_group_by_hand_is_called(key_file: str) -> None:
    said = []
    for nonce in ("0" * 16, "f" * 16):
        store = HashStore()
        store.set("securefabric/group/1", nonce)
        request = FakeRequest(store, group_id="gloo")
        backend = cast(
            FakeBackend, create_backend(request, Options(key_file=key_file), is_by_hand=True)
        )
        said.append(backend.given["identity"])
    assert said == ["5:group,0:,0:,4:gloo,1:0,"] * 2


def test_join_group__subgroups_use_the_worlds_board(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 1)
    world = make(FakeRequest(HashStore()), Options(key_file=key_file))
    subgroup = HashStore()
    group = make(FakeRequest(subgroup, group_id="1", global_ranks_in_group=[0]), None)
    assert not subgroup.check(["securefabric/entry/0"])
    assert group.given["board"] == world.given["board"]


def test_join_group__brings_its_own_board_where_the_world_is_not_ours(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(dist, "get_world_size", lambda: 4)
    subgroup = HashStore()
    request = FakeRequest(subgroup, group_id="1", global_ranks_in_group=[3])
    backend = make(request, Options(key_file=key_file))
    assert subgroup.check(["securefabric/entry/3"])
    assert native().rank == 3
    assert found(native(), backend, 2) is None


def test_repr__shows_no_secret(key_file: str) -> None:
    make(FakeRequest(HashStore()), Options(key_file=key_file))
    secret = Path(key_file).read_text().split("key: ")[1].strip()
    fabric = current_fabric()
    assert fabric is not None
    shown = [repr(fabric), repr(vars(fabric)), repr(fabric.roster), repr(vars(fabric.roster))]
    shown += [repr(fabric.roster.own), repr(fabric.options), str(native().settings)]
    for text in shown:
        assert secret not in text
        assert secret[:16] not in text


def test_fork__a_child_gets_an_error_and_ends_quietly(key_file: str) -> None:
    make(FakeRequest(HashStore()), Options(key_file=key_file))
    child = os.fork()
    if child == 0:
        status = 1
        try:
            create_backend(FakeRequest(HashStore()), None)
        except ForkError:
            _fabric._shutdown_at_exit()
            status = 0 if native().shutdowns == 0 else 2
        os._exit(status)
    _, status = os.waitpid(child, 0)
    assert status == 0


def test_shutdown_at_exit__says_goodbye(key_file: str) -> None:
    make(FakeRequest(HashStore()), Options(key_file=key_file))
    _fabric._shutdown_at_exit()
    assert native().shutdowns == 1


# is_one_host


def test_is_one_host__a_loopback_store_means_one_host() -> None:
    server = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=5), wait_for_workers=False)
    assert is_one_host(PrefixStore("a", PrefixStore("b", server)), 4)
    assert not is_one_host(HashStore(), 4)


@pytest.mark.parametrize(("local", "expected"), [("4", True), ("2", False), ("", False)])
def test_is_one_host__launchers_know(
    local: str, expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "4", "LOCAL_WORLD_SIZE": local}.items():
        monkeypatch.setenv(name, value)
    assert is_one_host(HashStore(), 4) is expected


def test_is_one_host__a_launcher_of_another_world_says_nothing(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "1", "LOCAL_WORLD_SIZE": "1"}.items():
        monkeypatch.setenv(name, value)
    assert not is_one_host(HashStore(), 4)


def test_interfaces__named_ones_win_over_loopback(key_file: str) -> None:
    make(FakeRequest(HashStore()), Options(key_file=key_file, interfaces="=eth0"))
    assert native().settings["addresses"] == []
    assert native().settings["interfaces"] == "=eth0"
