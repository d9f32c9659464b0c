"""Ranks of one job as objects in this process: real fabrics, sockets and backends, one store.

Cheaper than processes, and a test can put itself between a rank and its store.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any

import torch

from securefabric import _C
from securefabric._fabric import Agreed, ProcessFabric
from securefabric.options import Options

SECONDS_MAX = 30.0


class View:
    """A store as one rank sees it; ``alter`` may change or hide what the rank reads."""

    def __init__(self, store: Any, alter: Callable[[str, bytes], bytes | None] | None) -> None:
        self._store = store
        self._alter = alter or (lambda _key, value: value)

    def set(self, key: str, value: Any) -> None:
        self._store.set(key, value)

    def get(self, key: str) -> bytes:
        value = self._alter(key, self._store.get(key))
        assert value is not None
        return value

    def check(self, keys: list[str]) -> bool:
        if not self._store.check(keys):
            return False
        return all(self._alter(key, self._store.get(key)) is not None for key in keys)

    def add(self, key: str, amount: int) -> int:
        return int(self._store.add(key, amount))

    def wait(self, keys: list[str], timeout: timedelta) -> None:
        self._store.wait(keys, timeout)

    def set_timeout(self, timeout: timedelta) -> None:
        pass


class Member:
    """One rank. Rank 0 has to be made first, because it names the group."""

    def __init__(
        self,
        rank: int,
        world_size: int,
        store: Any,
        *,
        alter: Callable[[str, bytes], bytes | None] | None = None,
        **settings: Any,
    ) -> None:
        self.rank = rank
        settings = {"join_timeout_s": 10.0, "spin": "never", "paths_per_peer": 2, **settings}
        options = Options(**settings)
        self.fabric = ProcessFabric(
            rank=rank,
            world_size=world_size,
            options=options,
            agree=lambda: Agreed(engines=options.engines or 1, is_one_host=True),
        )
        view: Any = View(store, alter)
        try:
            self.joined = self.fabric.join_group(
                view, group_name="world", group_rank=rank, global_ranks=[]
            )
            self.backend: Any = _C.Backend(
                fabric=self.fabric.native,
                group_rank=rank,
                group_size=world_size,
                group_name="world",
                identity=self.joined.identity,
                board=self.joined.board,
                keeper=self.joined.keeper,
                global_ranks=list(range(world_size)),
                options=_C.Options(timedelta(seconds=SECONDS_MAX)),
            )
        except BaseException:
            self.fabric.shutdown()
            raise

    def start(self, numel: int = 1000) -> tuple[Any, torch.Tensor]:
        """An all_reduce under way, and its tensor."""
        tensor = torch.full((numel,), float(self.rank + 1))
        return self.backend.allreduce([tensor]), tensor

    def error(self) -> str:
        """What an all_reduce says that cannot work."""
        try:
            self.start()[0].wait()
        except RuntimeError as error:
            return str(error)
        raise AssertionError("it worked")


@contextmanager
def job(*members: Member) -> Iterator[tuple[Member, ...]]:
    """Shuts the ranks down in the end."""
    try:
        yield members
    finally:
        for member in members:
            member.fabric.shutdown()


def check_all_reduce(*members: Member, numel: int = 1000) -> None:
    """One all_reduce of all members, exact."""
    started = [member.start(numel) for member in members]
    for work, _ in started:
        work.wait()
    total = float(sum(member.rank + 1 for member in members))
    for _, tensor in started:
        assert torch.equal(tensor, torch.full((numel,), total))


def errors_of(*members: Member) -> list[str]:
    """What all members say of an all_reduce that none of them can complete."""
    works = [member.start()[0] for member in members]
    said = []
    for work in works:
        try:
            work.wait()
        except RuntimeError as error:
            said.append(str(error))
        else:
            raise AssertionError("it worked")
    return said
