"""The bulletin board: where a rank publishes its entry and finds the entries of the others.

It is the store of a process group, which is not trusted (roster.py verifies what comes from it).
Look-ups come from a native thread while Python may wait on the same store, and a c10d store serves
one call at a time; so a board works on a clone. The clone is only a client: keeping it does not
keep the store's server alive.
"""

from __future__ import annotations

import dataclasses
import itertools
import os
import secrets
import threading
import time
from contextlib import contextmanager, suppress
from datetime import timedelta
from typing import TYPE_CHECKING, Final, Protocol, TypeVar, cast

from .errors import ConfigError, DuplicateRank, IdentityError, JoinTimeout, StoreUnavailable
from .hybrid import knock
from .options import ENGINES_MAX
from .roster import PeerEntry, Roster

if TYPE_CHECKING:
    from collections.abc import Callable, Iterator, Mapping

    from torch._C._distributed_c10d import Store

__all__ = [
    "Board",
    "agree_on_engines",
    "agree_on_host",
    "agree_on_nonce",
    "of_this_incarnation",
    "refusals_told",
]

T = TypeVar("T")

_ENTRY: Final = "securefabric/entry/{rank}"
_MET: Final = "securefabric/met/{rank}"
_KEM: Final = "securefabric/kem/{low}/{high}"
_KEM_REQUEST: Final = "securefabric/kem-request/{low}/{high}"
_JOINS: Final = "securefabric/joins/{rank}"
_PROCESSES: Final = "securefabric/processes/{rank}"
_NONCE: Final = "securefabric/group/{joins}"
_TURNS: Final = "securefabric/turns/{rank}"
_ENGINES: Final = "securefabric/engines/{turn}"
_VISITS: Final = "securefabric/visits/{rank}"
_GUESS: Final = "securefabric/hosts/{visit}/{rank}"
_HOSTS: Final = "securefabric/hosts/{visit}"
_REFUSAL: Final = "securefabric/refusal/{rank}"

_REFUSAL_CHARACTERS_MAX: Final = 500
_DIGITS_MAX: Final = 3
_NONCE_DIGITS: Final = 16
_LOOK_S: Final = 1.0  # that a rank waits for another before it looks whether that refuses to join
_POLL_S: Final = 0.1  # between later looks for both

_numbers = itertools.count()
_counted: dict[str, str] = {}  # which of a rank's processes this one is, by key


class _Client(Protocol):
    """What is used of a c10d store; torch's own stub knows less of it than there is."""

    def set(self, key: str, value: bytes | str) -> None: ...
    def get(self, key: str) -> bytes: ...
    def check(self, keys: list[str]) -> bool: ...
    def set_timeout(self, timeout: timedelta) -> None: ...
    def clone(self) -> _Client: ...


class Board:
    """Entries of ranks in one store. Calls may come from several threads."""

    def __init__(self, store: Store, roster: Roster, join_timeout_s: float) -> None:
        self.name: Final = str(next(_numbers))
        """Of no other board of this process."""
        self._roster = roster
        self._requests: set[bytes] = set()  # for KEM records, that this board has put up
        self._lock = threading.Lock()  # one call at a time; the store would make us wait anyway
        self._store = _clone(store)
        self._store.set_timeout(timedelta(seconds=join_timeout_s))

    def publish(
        self, *, former_entries: frozenset[bytes], met: Mapping[int, bytes] | None = None
    ) -> None:
        """Put this process's entry on the board.

        former_entries are those that this process published before and may replace; met are the
        boot ids of the ranks that it has found elsewhere. Raises DuplicateRank when another
        process's valid entry stands there.
        """
        roster = self._roster
        with self._lock:
            standing = self._ask(lambda: self._entry_of(roster.own.rank))
            if standing is not None and standing not in former_entries:
                self._refuse_claimed(standing)
            if met:
                known = "".join(f",{rank}:{boot_id.hex()}" for rank, boot_id in met.items())
                self._ask(lambda: self._store.set(_MET.format(rank=roster.own.rank), known))
            key = _ENTRY.format(rank=roster.own.rank)
            self._ask(lambda: self._store.set(key, roster.own_entry))

    def look_up(self, rank: int, *, is_needed: bool = True) -> PeerEntry | None:
        """Return the verified entry of a rank; None when it has published none yet.

        Without is_needed a datagram made us look, which may be a stranger's: then nothing is
        written and nothing is sent, unless the rank has proved that it wants the link. Does not
        wait. Raises an IdentityError that says why an entry cannot be accepted,
        DuplicateRank when another process took this process's own place on the board, and
        ConfigError when the rank has told that it cannot join.
        """
        with self._lock:
            own = self._ask(lambda: self._entry_of(self._roster.own.rank))
            entry = self._ask(lambda: self._entry_of(rank))
            refusal = self._ask(lambda: _refusal_of(self._store, rank)) if entry is None else None
        if own is not None:
            self._roster.check_not_replaced(own)
        if refusal is not None:
            raise ConfigError(refusal)
        if entry is None:
            return None
        peer = self._roster.verify(rank, entry)
        self._check_not_second(rank)
        return self._agree_by_kem(peer, is_needed) if self._roster.has_kem else peer

    def _check_not_second(self, rank: int) -> None:
        """Raise ConfigError if a rank says that it has met another process of this one's rank.

        It will not link to a second one. Nothing proves that it is this rank who says so.
        """
        own = self._roster.own
        with self._lock:
            known = self._ask(lambda: self._value_of(_MET.format(rank=rank)))
        _, mark, rest = (known or b"").partition(b",%d:" % own.rank)
        met = rest[: 2 * len(own.boot_id)]
        if mark and met.isalnum() and met != own.boot_id.hex().encode():
            raise ConfigError(
                f"rank {rank} still holds the link to a former process of rank {own.rank} (boot "
                f"{met[:8].decode()}), whose place this one has taken; a rank "
                "that was lost cannot be replaced in this version: restart all ranks"
            )

    def _agree_by_kem(self, peer: PeerEntry, is_needed: bool) -> PeerEntry | None:
        """Complete a peer by the secret that ML-KEM shares with it; None while there is none."""
        own = self._roster.own.rank
        agree = self._encapsulate if own < peer.rank else self._decapsulate
        secret = agree(peer, is_needed)
        return dataclasses.replace(peer, kem_secret=secret) if secret else None

    def _encapsulate(self, peer: PeerEntry, is_needed: bool) -> bytearray | None:
        place = {"low": self._roster.own.rank, "high": peer.rank}
        if not is_needed:
            with self._lock:
                request = self._ask(lambda: self._value_of(_KEM_REQUEST.format(**place)))
            if request is None or not self._roster.is_kem_request(peer, request):
                return None
        record, secret = self._roster.encapsulate(peer)
        with self._lock:
            self._ask(lambda: self._store.set(_KEM.format(**place), record))
        return secret

    def _decapsulate(self, peer: PeerEntry, is_needed: bool) -> bytearray | None:
        place = {"low": peer.rank, "high": self._roster.own.rank}
        with self._lock:
            found = self._ask(lambda: self._value_of(_KEM.format(**place)))
        secret = self._roster.decapsulate(peer, found) if found is not None else None
        if secret is None and is_needed:  # the peer may not know yet that it is wanted
            request = self._roster.kem_request(peer)
            if request not in self._requests:
                with self._lock:
                    self._ask(lambda: self._store.set(_KEM_REQUEST.format(**place), request))
                self._requests.add(request)
            first = peer.engines[0]
            knock(own_rank=place["high"], spi_base=first.spi_base, addresses=first.addresses)
        return secret

    def _entry_of(self, rank: int) -> bytes | None:
        return self._value_of(_ENTRY.format(rank=rank))

    def _value_of(self, key: str) -> bytes | None:
        return self._store.get(key) if self._store.check([key]) else None

    def _refuse_claimed(self, standing: bytes) -> None:
        try:
            self._roster.check_not_replaced(standing)
        except DuplicateRank as error:
            raise DuplicateRank(
                f"{error}; if that process has died, restart the whole job on a fresh store"
            ) from None
        except IdentityError:
            pass  # not a process of this job: nobody believes that entry, so it may be replaced

    def _ask(self, call: Callable[[], T]) -> T:
        try:
            return call()
        except RuntimeError as error:  # torch's DistStoreError and DistNetworkError
            raise _unavailable(error) from error


def of_this_incarnation(store: Store, rank: int) -> Store:
    """Return the part of a store that is new to the ranks that a launcher has started anew.

    torchrun's agent keeps the workers' store when it restarts them, and with it what the former
    ones wrote. An agent that is alone numbers its restarts; several agents count apart, so there
    each rank counts its processes, which agree unless one of them died before it came here.
    """
    if os.environ.get("TORCHELASTIC_USE_AGENT_STORE") != "True":
        return store
    agents = os.environ.get("GROUP_WORLD_SIZE", "")
    if agents == "1":
        number = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")
    elif agents:
        number = _count_process(store, rank)
    else:
        return store
    from torch._C._distributed_c10d import PrefixStore

    return PrefixStore(f"securefabric/incarnation/{number}", store)


def _count_process(store: Store, rank: int) -> str:
    key = _PROCESSES.format(rank=rank)
    if key not in _counted:
        try:
            _counted[key] = str(store.add(key, 1))
        except RuntimeError as error:
            raise _unavailable(error) from error
    return _counted[key]


def agree_on_nonce(
    store: Store,
    *,
    group_name: str,
    group_rank: int,
    global_ranks: list[int],
    join_timeout_s: float,
) -> str:
    """Return what the first rank of a world drew for this incarnation of it.

    A world may begin anew, perhaps after an attempt that some ranks never came to, and then no
    rank can know how often the others have begun it. So its first rank draws a nonce, and the
    others wait for it. Each member counts its joins, in case the store outlives the group. Nothing
    proves who wrote the nonce: SECURITY.md says why that does no harm.
    Raises JoinTimeout when the first rank does not come, ConfigError when it has told that it
    cannot, and StoreUnavailable when the store has gone.
    """
    key = _NONCE.format(joins=_count(store, _JOINS.format(rank=group_rank)))
    if group_rank == 0:
        store.set(key, secrets.token_hex(_NONCE_DIGITS // 2))
    nonce = _told_by(
        store,
        key,
        teller=global_ranks[0],
        asker=global_ranks[group_rank],
        group_name=group_name,
        join_timeout_s=join_timeout_s,
    )
    return nonce[:_NONCE_DIGITS].decode("ascii", "replace")


def agree_on_engines(
    store: Store, *, group_name: str, rank: int, engines: int, join_timeout_s: float
) -> int:
    """Return how many engines every rank of the world runs: as many as rank 0, `engines` there.

    Each rank counts how often it came, in case the store outlives the fabrics. Nothing proves that
    it is rank 0 who says the number; whoever writes to the store could as well keep ranks apart.
    Raises as agree_on_nonce does, and ConfigError when the store says what is no such number.
    """
    key = _ENGINES.format(turn=_count(store, _TURNS.format(rank=rank)))
    if rank == 0:
        store.set(key, str(engines))
        return engines
    answer = _told_by(
        store, key, teller=0, asker=rank, group_name=group_name, join_timeout_s=join_timeout_s
    )
    text = answer[:_DIGITS_MAX].decode("ascii", "replace")
    if not text.isdecimal() or not 1 <= int(text) <= ENGINES_MAX:
        raise ConfigError(
            f"the store says that rank 0 runs {text!r} engines, which no rank of this job has "
            "written; give the job a store of its own"
        )
    return int(text)


def agree_on_host(
    store: Store,
    *,
    group_name: str,
    rank: int,
    world_size: int,
    guess: bool,
    is_told: bool,
    join_timeout_s: float,
) -> bool:
    """Return whether all ranks run on one host: what rank 0 says, who asks all the others.

    Each rank guesses, by its launcher (is_told) or because it reaches the store over loopback. That
    says nothing to rank 0, where the store is, so it waits for the guesses of the others unless
    its launcher knows. Nothing proves who says what; a rank that was told otherwise than the
    others listens elsewhere and is not reached. Raises as agree_on_engines does.
    """
    visit = _count(store, _VISITS.format(rank=rank))

    def told_by(teller: int, key: str) -> bool:
        told = _told_by(
            store,
            key,
            teller=teller,
            asker=rank,
            group_name=group_name,
            join_timeout_s=join_timeout_s,
        )
        return told[:1] == b"1"

    if rank != 0:
        store.set(_GUESS.format(visit=visit, rank=rank), str(int(guess)))
        return told_by(0, _HOSTS.format(visit=visit))
    is_one = guess and (
        is_told or all(told_by(r, _GUESS.format(visit=visit, rank=r)) for r in range(1, world_size))
    )
    store.set(_HOSTS.format(visit=visit), str(int(is_one)))
    return is_one


def _count(store: Store, key: str) -> int:
    try:
        return store.add(key, 1)
    except RuntimeError as error:
        raise _unavailable(error) from error


def _told_by(
    store: Store, key: str, *, teller: int, asker: int, group_name: str, join_timeout_s: float
) -> bytes:
    """Wait for what another rank writes. Both are global ranks."""
    until = time.monotonic() + join_timeout_s
    has_waited = False
    while True:
        left_s = until - time.monotonic()
        try:
            # One wait alone: torch's store writes two lines to stderr for each that ends in vain.
            if not has_waited:
                store.wait([key], timedelta(seconds=max(0.001, min(left_s, _LOOK_S))))
                return bytes(store.get(key))
            if cast(_Client, store).check([key]):
                return bytes(store.get(key))
            time.sleep(max(0.0, min(left_s, _POLL_S)))
        except RuntimeError as error:
            cause, has_waited = error, True
        try:
            refusal = _refusal_of(cast(_Client, store), teller)
        except RuntimeError as error:
            raise _unavailable(error) from error
        if refusal is not None:
            raise ConfigError(refusal)
        if time.monotonic() >= until:
            raise JoinTimeout(
                f"rank {teller} did not join group {group_name!r} within {join_timeout_s:g} s, "
                f"SECUREFABRIC_JOIN_TIMEOUT_S (this is rank {asker}): it has not called new_group "
                f"or init_process_group, has failed, or cannot reach the store [{cause}]"
            ) from cause


@contextmanager
def refusals_told(store: Store, rank: int) -> Iterator[None]:
    """Tell the other ranks why this one cannot join, if a ConfigError comes out of here.

    They would find out by the join timeout alone. Nothing proves that it is this rank who tells
    it; whoever writes to the store could as well keep ranks apart.
    """
    try:
        yield
    except ConfigError as error:
        with suppress(RuntimeError):
            text = str(error).encode("ascii", "backslashreplace")
            of_this_incarnation(store, rank).set(_REFUSAL.format(rank=rank), text.decode())
        raise


def _refusal_of(store: _Client, rank: int) -> str | None:
    """Return what a rank has told that cannot join; None when it has told nothing."""
    key = _REFUSAL.format(rank=rank)
    if not store.check([key]):
        return None
    text = bytes(store.get(key))[:_REFUSAL_CHARACTERS_MAX].decode("ascii", "replace")
    printable = "".join(character if character.isprintable() else " " for character in text)
    return f"rank {rank} cannot join the job: {printable}"


def _clone(store: Store) -> _Client:
    client = cast(_Client, store)
    try:
        return client.clone()
    except (AttributeError, NotImplementedError, RuntimeError):
        return client  # a store written in Python: its author answers for its threads


def _unavailable(error: Exception) -> StoreUnavailable:
    return StoreUnavailable(
        f"the process group's store does not answer; is the process that hosts it (rank 0, or the "
        f"launcher) still alive and reachable? [{error}]"
    )
