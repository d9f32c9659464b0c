"""The one fabric of this process, shared by all its groups: who holds what, and when it dies.

It is made with the first group, keeps its sockets, keys and links when groups come and go, and
ends with the process. A process that comes back with another rank or world size gets a new one.
"""

from __future__ import annotations

import atexit
import dataclasses
import hashlib
import ipaddress
import multiprocessing.util
import os
from typing import TYPE_CHECKING
from weakref import WeakValueDictionary, ref

from . import _native, placement
from ._addresses import advertised_addresses, parse_ports
from ._board import (
    Board,
    agree_on_engines,
    agree_on_host,
    agree_on_nonce,
    of_this_incarnation,
)
from ._cores import check_ports, propose_engines
from ._group_identity import identity_of_group, identity_of_world, prefix_of
from .errors import ConfigError, ForkError, classify
from .hybrid import HybridKeys
from .identity import (
    Identity,
    PskIdentity,
    read_key_text,
    suite_provider,
    warn_of_failed_providers,
)
from .options import Options, warn_of_unknown_settings
from .roster import PROTOCOL_VERSION, EngineEntry, EntryBody, PeerEntry, Roster, policy_digest
from .tuning import read_tuning, tuning_digest

if TYPE_CHECKING:
    from collections.abc import Callable

    from torch._C._distributed_c10d import Store

    from . import _C
    from ._core import JobKey

__all__ = ["JoinedGroup", "ProcessFabric", "current_fabric", "fabric_for"]


@dataclasses.dataclass(frozen=True)
class JoinedGroup:
    """What a group's backend needs to know of it."""

    identity: str
    """See _group_identity.py."""
    board: str
    """What the native core calls the board on which members are found."""
    keeper: object
    """For the backend to hold until its group ends; nobody else holds the board."""


@dataclasses.dataclass(frozen=True)
class _World:
    """torch's group of all ranks, as long as its backend holds this."""

    board: Board
    digest: str


@dataclasses.dataclass(frozen=True, kw_only=True)
class Agreed:
    """What is the same on all ranks of a world; of a part of them, what each took for itself."""

    engines: int
    """How many each rank runs."""
    is_one_host: bool
    """All ranks are on one host, and meet on its loopback addresses."""


class ProcessFabric:
    """The native fabric, and the boards on which it finds its peers."""

    def __init__(
        self,
        *,
        rank: int,
        world_size: int,
        options: Options,
        agree: Callable[[], Agreed],
    ) -> None:
        """Join no group yet.

        agree is called once, when nothing of this rank's own settings is in the way any more, and
        returns what the ranks have agreed upon.
        """
        self.rank = rank
        self.world_size = world_size
        self.options = options
        self._pid = os.getpid()
        self._world: ref[_World] | None = None  # of the newest world of ours
        # Held by the backends of their groups, so that their connections end with these.
        self._boards: WeakValueDictionary[str, Board] = WeakValueDictionary()
        self._met: dict[int, bytes] = {}  # boot ids of the ranks that were looked up
        self._tuning = read_tuning(options.tuning_file)
        identity, self.native = self._make_native(agree)
        self.suite = self.native.suite
        self.provider = suite_provider(self.suite)
        warn_of_failed_providers()
        # Without a job key nothing else would outlast a break of X25519.
        has_kem = options.post_quantum or not options.key_file
        hybrid = HybridKeys(identity) if has_kem else None
        self.roster = Roster(identity, self._own_body(identity, hybrid), hybrid)
        self.native.set_entry(self.roster.own_entry)

    def join_group(
        self,
        store: Store,
        *,
        group_name: str,
        group_rank: int,
        global_ranks: list[int],
        is_by_hand: bool = False,
    ) -> JoinedGroup:
        """Publish this rank to the members of a group.

        global_ranks is empty for a group of all ranks, which is torch's world if it is not made by
        hand. A world's board serves all groups, since every rank is on it; where the world is
        another backend's, each group brings its own.
        """
        self.check_not_forked()
        prefix = prefix_of(store)
        store = of_this_incarnation(store, self.rank)
        ranks = global_ranks or list(range(self.world_size))
        if global_ranks or is_by_hand:
            world = self._world() if self._world is not None else None
            digest = world.digest if world is not None else ""
            board = world.board if world is not None else self._bring_board(store)
            identity = identity_of_group(world=digest, prefix=prefix, name=group_name, ranks=ranks)
            return JoinedGroup(identity, board.name, board)
        board = self._bring_board(store)
        nonce = agree_on_nonce(
            store,
            group_name=group_name,
            group_rank=group_rank,
            global_ranks=ranks,
            join_timeout_s=self.options.join_timeout_s,
        )
        identity = identity_of_world(prefix=prefix, name=group_name, ranks=ranks, nonce=nonce)
        world = _World(board, hashlib.sha256(identity.encode()).hexdigest())
        self._world = ref(world)
        return JoinedGroup(identity, board.name, world)

    def resolve(self, board: str, rank: int, is_needed: bool = True) -> PeerEntry | None:
        """Find a peer for the native core, which calls this from a thread of its own.

        Without is_needed a stranger may have made us look: see Board.look_up.
        """
        found = self._boards.get(board)
        if found is None:  # its groups have just ended
            return None
        peer = found.look_up(rank, is_needed=is_needed)
        if peer is not None:
            self._met[rank] = peer.boot_id
        return peer

    def _bring_board(self, store: Store) -> Board:
        """Publish this rank in a store that its ranks have not met in yet."""
        board = Board(store, self.roster, self.options.join_timeout_s)
        board.publish(former_entries=frozenset(_published), met=dict(self._met))
        _published.add(self.roster.own_entry)
        self._boards[board.name] = board
        return board

    def check_not_forked(self) -> None:
        """Raise ForkError in a child that was forked after this fabric was made."""
        if os.getpid() != self._pid:
            raise ForkError(
                f"this process was forked from process {self._pid} after init_process_group; its "
                "copy of the keys is gone. Start it with multiprocessing's 'spawn' or 'forkserver'"
            )

    def shutdown(self) -> None:
        """Say goodbye to all peers and stop; bounded in time, and nothing in a forked child."""
        if os.getpid() == self._pid:
            self.native.shutdown()

    def _make_native(self, agree: Callable[[], Agreed]) -> tuple[Identity, _C.Fabric]:
        _native.check_torch_version()
        options = self.options
        path = options.key_file
        text = bytearray() if options.uses_certificates and not path else read_key_text(path)
        try:
            job_key = _parsed(bytearray(text), path) if text else None
            suite = options.suite_for(job_key.suite if job_key else None)
            identity: Identity
            if options.uses_certificates:
                # Here, since a rank with a job key alone has no use for what it imports.
                from .certificates import CertificateIdentity

                identity = CertificateIdentity.load(options, self.rank, job_key)
            else:
                assert job_key is not None
                identity = PskIdentity(job_key, self.rank)
            return identity, self._make_fabric(suite, text, agree())
        except ValueError as error:  # the core's word for a bad setting
            raise ConfigError(str(error)) from None
        except RuntimeError as error:
            raise classify(error) or error from None
        finally:
            text[:] = bytes(len(text))

    def _make_fabric(self, suite: str, job_key_text: bytearray, agreed: Agreed) -> _C.Fabric:
        from . import _C

        options = self.options
        ports = parse_ports(options.ports)
        self.is_one_host = agreed.is_one_host
        return _C.Fabric(
            rank=self.rank,
            world_size=self.world_size,
            local_world_size=_local_world_size(self.world_size, agreed.is_one_host),
            suite=suite,
            job_key_text=job_key_text,
            engines=agreed.engines,
            addresses=["127.0.0.1"] if agreed.is_one_host and not options.interfaces else [],
            interfaces=options.interfaces,
            sockets_per_interface=options.sockets_per_interface,
            port_first=ports.first,
            port_last=ports.last,
            paths_per_peer=options.paths_per_peer,
            join_timeout_s=options.join_timeout_s,
            death_timeout_s=options.death_timeout_s,
            heartbeat_s=options.heartbeat_s,
            epoch_age_s=options.epoch_age_s,
            epoch_bytes=options.epoch_bytes,
            gso=options.gso,
            gro=options.gro,
            spin=options.spin,
            eager_connect=options.eager_connect,
            generation_bits=options.test_generation_bits,
            tuning=[row.as_tuple() for row in self._tuning],
            resolve=self.resolve,
        )

    def _own_body(self, identity: Identity, hybrid: HybridKeys | None) -> EntryBody:
        native = self.native
        addresses = advertised_addresses([bound for _, _, bound in native.engines], self.options)
        return EntryBody(
            version=PROTOCOL_VERSION,
            job=identity.job or self.options.effective_job_id(),
            rank=self.rank,
            world_size=self.world_size,
            boot_id=native.boot_id,
            engines=[
                EngineEntry(public_key=public_key, spi_base=spi_base, addresses=named)
                for (public_key, spi_base, _), named in zip(native.engines, addresses, strict=True)
            ],
            max_datagram=native.max_datagram,
            suite=native.suite,
            kem_key=b"" if hybrid is None else hybrid.public_key,
            policy=policy_digest(
                identity=identity.mode,
                suite=native.suite,
                generation_bits=self.options.test_generation_bits,
                has_kem=hybrid is not None,
                tuning=tuning_digest(self._tuning),
            ),
        )


# The process's fabric, and every entry that this process ever published. Touched only by the thread
# that makes groups, which torch allows to be one at a time.
_current: ProcessFabric | None = None
_published: set[bytes] = set()


def current_fabric() -> ProcessFabric | None:
    """Return the fabric of this process; None before its first group."""
    return _current


def fabric_for(
    *, rank: int, world_size: int, options: Options | None, store: Store, world: str | None
) -> ProcessFabric:
    """Return this process's fabric, making it if there is none that fits.

    options None means: as it is, or from the environment. world is the name of the group that is
    being made, if it is that of all ranks. Raises ConfigError when the options differ from those of
    the fabric that is there, because all groups share its sockets and keys.
    """
    global _current
    agreement = _Agreement(of_this_incarnation(store, rank), rank, world_size, world)
    if _current is not None:
        _current.check_not_forked()
        if (_current.rank, _current.world_size) == (rank, world_size):
            _check_same(_current.options, options)
            agreement.confirm(_current)
            return _current
        _current.shutdown()
        _current = None
    warn_of_unknown_settings()
    own = options or Options()
    guess = is_one_host(store, world_size)
    _current = ProcessFabric(
        rank=rank,
        world_size=world_size,
        options=own,
        agree=lambda: agreement.reach(own, guess),
    )
    _end_with_process()
    return _current


@dataclasses.dataclass(frozen=True)
class _Agreement:
    """How the ranks of a world come to be of one mind about hosts and engines."""

    store: Store
    rank: int
    world_size: int
    world: str | None
    """The name of the group of all ranks, while it is made; a part of them cannot speak for all."""

    def reach(self, options: Options, guess: bool) -> Agreed:
        """Return what this rank's new fabric is made by. Raises ConfigError.

        guess: whether this rank takes all to be on one host.
        """
        if not self._is_possible:
            return Agreed(engines=options.engines or 1, is_one_host=guess)
        is_alone = self._ask_host(options, guess, is_told=_is_one_host_told(self.world_size))
        local_world_size = _local_world_size(self.world_size, is_alone)
        proposal = options.engines or propose_engines(options, local_world_size)
        agreed = self._ask(options, proposal)
        if options.engines == 0:
            check_ports(options, local_world_size, agreed)
        elif agreed != options.engines:
            self._refuse(agreed, options.engines)
        return Agreed(engines=agreed, is_one_host=is_alone)

    def confirm(self, fabric: ProcessFabric) -> None:
        """Let others know of a fabric that goes on into a new world, or check that it may."""
        present = len(fabric.native.engines)
        if self._is_possible:
            # It has its sockets: others go by those of rank 0.
            self._ask_host(fabric.options, fabric.is_one_host, is_told=True)
        if self._is_possible and (agreed := self._ask(fabric.options, present)) != present:
            self._refuse(agreed, present, " since its first group")

    @property
    def _is_possible(self) -> bool:
        return self.world is not None and self.world_size > 1

    def _ask_host(self, options: Options, guess: bool, *, is_told: bool) -> bool:
        return agree_on_host(
            self.store,
            group_name=self.world or "",
            rank=self.rank,
            world_size=self.world_size,
            guess=guess,
            is_told=is_told,
            join_timeout_s=options.join_timeout_s,
        )

    def _ask(self, options: Options, engines: int) -> int:
        return agree_on_engines(
            self.store,
            group_name=self.world or "",
            rank=self.rank,
            engines=engines,
            join_timeout_s=options.join_timeout_s,
        )

    def _refuse(self, agreed: int, own: int, since: str = "") -> None:
        raise ConfigError(
            f"the numbers of engines differ: rank 0 has {agreed}, this rank (rank {self.rank}) "
            f"{own}{since}; set SECUREFABRIC_ENGINES to one number on all ranks"
        )


def _parsed(text: bytearray, path: str) -> JobKey:
    from ._core import JobKey

    try:
        return JobKey(text)
    except ValueError as error:
        raise ConfigError(f"key file {path}: {error}") from None


def is_one_host(store: Store, world_size: int) -> bool:
    """Whether all ranks run on this host, by what this rank knows, so that loopback suffices.

    Rank 0, where the store is, may be wrong: a loopback address says nothing of the others there.
    """
    return _is_one_host_told(world_size) or world_size == 1 or _is_loopback(_store_host(store))


def _is_one_host_told(world_size: int) -> bool:
    """Whether a launcher says it."""
    try:
        place = placement.discover()
    except ValueError:
        return False
    return place is not None and place.world_size == world_size == place.local_world_size


def _store_host(store: Store) -> str:
    while hasattr(store, "underlying_store"):
        store = store.underlying_store
    host = getattr(store, "host", "")
    return host if isinstance(host, str) else ""


def _is_loopback(host: str) -> bool:
    if host == "localhost":
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _local_world_size(world_size: int, is_one_host: bool) -> int:
    """Return how many ranks share this host's cores; 0 when nobody knows."""
    if is_one_host:
        return world_size
    try:
        place = placement.discover()
    except ValueError:
        return 0
    return (place.local_world_size or 0) if place is not None else 0


def _check_same(present: Options, wanted: Options | None) -> None:
    if wanted is None or wanted == present:
        return
    differing = [
        f"{field.name} is {getattr(present, field.name)!r}, not {getattr(wanted, field.name)!r}"
        for field in dataclasses.fields(Options)
        if getattr(present, field.name) != getattr(wanted, field.name)
    ]
    raise ConfigError(
        "all groups of a process share one fabric, whose settings are those of its first group: "
        + "; ".join(differing)
    )


def _end_with_process() -> None:
    """Shut the fabric down when this process ends.

    Children of multiprocessing that were forked, also by a fork server, end without atexit: they
    run their finalizers, of which this is among the last.
    """
    global _finalizer
    if _finalizer is None or not _finalizer.still_active():
        _finalizer = multiprocessing.util.Finalize(None, _shutdown_at_exit, exitpriority=-100)


_finalizer: multiprocessing.util.Finalize | None = None


@atexit.register
def _shutdown_at_exit() -> None:
    if _current is not None:
        _current.shutdown()
