"""What whoever owns the store can do to groups: row 44 of the attack table in docs/SECURITY.md."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import timedelta
from typing import Any

import pytest
import torch
import torch.distributed as dist
from members import Member, View, job
from ranks import run_ranks
from torch._C._distributed_c10d import HashStore

import securefabric
from securefabric import _C, _gloo
from securefabric.errors import ConfigError

pytestmark = pytest.mark.usefixtures("clean_environment")

NONCE = "securefabric/group/"
Alter = Callable[[str, bytes], bytes | None]


def nonce_told(value: str) -> Alter:
    return lambda key, honest: value.encode() if key.startswith(NONCE) else honest


def lies(_key: str, _honest: bytes) -> bytes:
    return b"\xff" * 100_000


def make(
    member: Member,
    store: Any,
    alter: Alter,
    *,
    name: str = "0",
    ranks: tuple[int, ...] = (),
    is_by_hand: bool = False,
    timeout_s: float = 30.0,
) -> Any:
    """A backend of one rank, for a group that it learns of by what the store shows it."""
    members = list(ranks or range(member.fabric.world_size))
    group_rank = members.index(member.rank)
    view: Any = View(store, alter)
    joined = member.fabric.join_group(
        view,
        group_name=name,
        group_rank=group_rank,
        global_ranks=list(ranks),
        is_by_hand=is_by_hand,
    )
    return _C.Backend(
        fabric=member.fabric.native,
        group_rank=group_rank,
        group_size=len(members),
        group_name=name,
        identity=joined.identity,
        global_ranks=members,
        options=_C.Options(timedelta(seconds=timeout_s)),
        board=joined.board,
        keeper=joined.keeper,
    )


@pytest.fixture
def pair(key_file: str) -> Iterator[tuple[Member, Member]]:
    store = HashStore()
    with job(*(Member(rank, 2, store, key_file=key_file) for rank in range(2))) as members:
        yield members  # type: ignore[misc]


def check_sums(*groups: list[Any]) -> None:
    """All groups reduce at once, each another sum."""
    started = []
    for scale, group in enumerate(groups, 1):
        for rank, backend in enumerate(group):
            tensor = torch.tensor([float(scale * 10**rank)])
            started.append((backend.allreduce([tensor]), tensor, scale * 11.0))
    for work, tensor, expected in started:
        work.wait()
        assert float(tensor) == expected


def test_row_44__the_store_has_no_say_in_which_group_of_a_world_is_which(
    pair: tuple[Member, Member],
) -> None:
    stores = {name: HashStore() for name in ("a", "b")}
    groups: dict[str, list[Any]] = {"a": [], "b": []}
    for member in pair:
        for name, made in groups.items():
            made.append(make(member, stores[name], lies, name=name, ranks=(0, 1)))
    check_sums(*groups.values())


@pytest.mark.parametrize("swaps", [False, True])
def test_row_44__groups_of_one_name_made_by_hand_do_not_cross(
    pair: tuple[Member, Member], *, swaps: bool
) -> None:
    """Not even if one rank is shown the store of one group for that of the other."""
    stores = [HashStore(), HashStore()]
    groups: list[list[Any]] = [[], []]
    for member in pair:
        for made, store in zip(groups, stores, strict=True):
            made.append(make(member, store, lies, name="gloo", is_by_hand=True))
        if swaps:
            stores.reverse()
    check_sums(*groups)


def test_row_44__a_nonce_that_is_told_again_brings_no_world_back(
    pair: tuple[Member, Member],
) -> None:
    told = nonce_told("a" * 16)
    for _ in range(3):
        store = HashStore()
        world = [make(member, store, told) for member in pair]
        beside = [make(member, store, told) for member in pair]  # as another device's backend
        check_sums(world, beside)
        world[0].shutdown()
        world[1].shutdown()


def test_row_44__ranks_that_are_told_different_nonces_do_not_meet(
    pair: tuple[Member, Member],
) -> None:
    store = HashStore()
    world = [
        make(member, store, nonce_told(digit * 16), timeout_s=4.0)
        for member, digit in zip(pair, "ab", strict=True)
    ]
    tensors = [torch.ones(3), torch.ones(3)]
    works = [backend.allreduce([tensor]) for backend, tensor in zip(world, tensors, strict=True)]
    for work in works:
        with pytest.raises(RuntimeError, match=r"rank [01].*which knows no such group"):
            work.wait()
    assert all(torch.equal(tensor, torch.ones(3)) for tensor in tensors)


def test_row_44__ranks_that_are_told_of_different_members_do_not_meet(key_file: str) -> None:
    store = HashStore()
    with job(*(Member(rank, 3, store, key_file=key_file) for rank in range(3))) as members:
        mine = make(members[0], store, lies, name="gloo", ranks=(0, 2), timeout_s=4.0)
        theirs = make(members[1], store, lies, name="gloo", ranks=(0, 1), timeout_s=4.0)
        works = [backend.allreduce([torch.ones(3)]) for backend in (mine, theirs)]
        for work in works:
            with pytest.raises(RuntimeError, match=r"rank [02].*which knows no such group"):
                work.wait()


@pytest.mark.parametrize(
    "told", ["", "x", "-1", "2", "1\n", "\u0661", "9" * 100_000, "0", " 1", "1_0"]
)
def test_row_44__members_by_hand_that_cannot_be_are_named(
    monkeypatch: pytest.MonkeyPatch, told: str
) -> None:
    monkeypatch.setattr(dist, "is_initialized", lambda: True)
    monkeypatch.setattr(dist, "get_rank", lambda: 0)
    monkeypatch.setattr(dist, "get_world_size", lambda: 2)
    store = HashStore()
    store.set("securefabric/global_rank/1", told)
    with pytest.raises(ConfigError, match=r"the store says that member 1 of a group of 2") as said:
        _gloo._global_ranks(store, 0, 2)
    assert len(str(said.value)) < 400


def lie_about_members(rank: int) -> list[str]:
    """One rank alone is told all that a merged group can be told."""
    securefabric.replace_gloo()
    dist.set_debug_level(dist.DebugLevel.DETAIL)  # a second group of the world, of the same name
    dist.init_process_group(
        "cpu:gloo,cuda:securefabric", store=HashStore(), rank=rank, world_size=1
    )
    dist.set_debug_level(dist.DebugLevel.OFF)
    group: Any = dist.new_group()
    said = []
    for number, told in enumerate(("x" * 100_000, "-1", "", "7", "0", "4294967296", "9" * 30)):
        store = HashStore()
        store.set("securefabric/merge/1/1", told)
        try:
            group.merge_remote_group(store, 2, timedelta(seconds=5), group_name=f"merged{number}")
        except RuntimeError as error:
            said.append(str(error).splitlines()[0])
    tensor = torch.ones(3)
    dist.all_reduce(tensor)
    assert torch.equal(tensor, torch.ones(3))
    return said


def test_row_44__lies_about_a_merged_group_are_errors(key_file: str) -> None:
    (outcome,) = run_ranks(lie_about_members, 1, key_file=key_file)
    assert outcome.exit_code == 0, outcome
    assert len(outcome.value) == 7
    assert all(said.startswith("ConfigError: ") for said in outcome.value), outcome.value
