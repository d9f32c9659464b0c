from __future__ import annotations

import re
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from datetime import timedelta

import pytest
from fakes import FakeCredential, make_body
from torch._C._distributed_c10d import HashStore, PrefixStore, TCPStore

from securefabric import _board
from securefabric._board import (
    Board,
    agree_on_engines,
    agree_on_host,
    agree_on_nonce,
    of_this_incarnation,
    refusals_told,
)
from securefabric.errors import (
    AuthError,
    ConfigError,
    DuplicateRank,
    JoinTimeout,
    StoreUnavailable,
)
from securefabric.roster import Roster

KEY = FakeCredential()
NOTHING: frozenset[bytes] = frozenset()
JOIN_TIMEOUT_S = 5.0


def roster_of(rank: int, **changes: object) -> Roster:
    return Roster(KEY, make_body(rank, **changes))


def published(store: HashStore, rank: int, **changes: object) -> Board:
    board = Board(store, roster_of(rank, **changes), 5.0)
    board.publish(former_entries=NOTHING)
    return board


# Board


def test_look_up__none_until_the_peer_has_published() -> None:
    store = HashStore()
    board = published(store, 0)
    assert board.look_up(1) is None
    published(store, 1)
    peer = board.look_up(1)
    assert peer is not None
    assert peer.engines == make_body(1).engines


def test_look_up__what_the_store_altered_is_refused() -> None:
    store = HashStore()
    board = published(store, 0)
    published(store, 1)
    key = "securefabric/entry/1"
    store.set(key, store.get(key)[:-1] + b"\0")  # type: ignore[arg-type]  # torch's stub
    with pytest.raises(AuthError, match="rank 1"):
        board.look_up(1)


def test_look_up__a_process_that_lost_its_place_learns_it() -> None:
    store = HashStore()
    first = Board(store, roster_of(1), 5.0)
    second = Board(store, roster_of(1, boot_id=b"n" * 16, addresses=["10.9.9.9:9"]), 5.0)
    first.publish(former_entries=NOTHING)
    store.delete_key("securefabric/entry/1")  # as if both had looked before either wrote
    second.publish(former_entries=NOTHING)
    with pytest.raises(DuplicateRank, match=r"claim rank 1.*10\.0\.0\.2:4000.*10\.9\.9\.9:9"):
        first.look_up(0)
    assert second.look_up(0) is None


def test_publish__a_place_that_is_taken_is_refused() -> None:
    store = HashStore()
    published(store, 1)
    with pytest.raises(DuplicateRank, match=r"claim rank 1.*restart the whole job"):
        published(store, 1, boot_id=b"n" * 16)


def test_look_up__a_rank_that_met_another_process_of_this_one_is_named() -> None:
    store = HashStore()
    board = Board(store, roster_of(0), 5.0)
    own, others = make_body(1).boot_id, {2: b"x" * 16, 11: b"y" * 16}
    board.publish(former_entries=NOTHING, met={**others, 1: own})
    assert published(store, 1).look_up(0) is not None
    board.publish(former_entries=frozenset({roster_of(0).own_entry}), met={**others, 1: b"f" * 16})
    second = published(HashStore(), 1)
    second._store = store
    with pytest.raises(
        ConfigError, match=r"former process of rank 1 \(boot 66666666\).*restart all"
    ):
        second.look_up(0)
    for junk in (b",1:", b",1:\0\xff", b"nonsense"):
        store.set("securefabric/met/0", junk)  # type: ignore[arg-type]  # torch's stub
        assert second.look_up(0) is not None


def test_publish__own_former_entries_may_be_replaced() -> None:
    store = HashStore()
    former = roster_of(1)
    Board(store, former, 5.0).publish(former_entries=NOTHING)
    later = Board(store, roster_of(1, boot_id=b"n" * 16), 5.0)
    later.publish(former_entries=frozenset({former.own_entry}))
    assert later.look_up(0) is None


def test_publish__an_entry_that_nobody_believes_is_replaced() -> None:
    store = HashStore()
    store.set("securefabric/entry/1", "nonsense")
    published(store, 1)
    assert published(store, 0).look_up(1) is not None


def test_look_up__does_not_wait_for_a_wait_on_the_same_store() -> None:
    server = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=20), wait_for_workers=False)
    store = PrefixStore("default_pg", server)
    board = Board(store, roster_of(0), 20.0)
    board.publish(former_entries=NOTHING)
    waiting = threading.Thread(target=store.wait, args=(["later"], timedelta(seconds=20)))
    waiting.start()
    time.sleep(0.2)  # a thread inside a C++ call cannot be observed from outside
    started = time.monotonic()
    assert board.look_up(1) is None
    assert time.monotonic() - started < 5
    TCPStore("127.0.0.1", server.port, 1, False, timedelta(seconds=5)).set("default_pg/later", "")
    waiting.join()


def test_look_up__a_store_that_is_gone_is_named() -> None:
    server = TCPStore("127.0.0.1", 0, 1, True, timedelta(seconds=5), wait_for_workers=False)
    board = Board(server, roster_of(0), 5.0)
    board.publish(former_entries=NOTHING)
    del server  # the board holds only a client
    with pytest.raises(StoreUnavailable, match="rank 0, or the launcher"):
        board.look_up(1)


# agree_on_engines


def engines_of(store: HashStore | TCPStore, rank: int, engines: int) -> int:
    return agree_on_engines(
        store, group_name="0", rank=rank, engines=engines, join_timeout_s=JOIN_TIMEOUT_S
    )


def test_agree_on_engines__all_run_as_many_as_rank_0() -> None:
    store = HashStore()
    assert engines_of(store, 0, 3) == 3
    assert [engines_of(store, rank, 1) for rank in (2, 1)] == [3, 3]


def test_agree_on_engines__each_turn_has_its_own_number() -> None:
    store = HashStore()
    for engines in (2, 4):
        assert engines_of(store, 0, engines) == engines
        assert engines_of(store, 1, 1) == engines


def test_agree_on_engines__a_rank_0_that_never_comes_is_named() -> None:
    with pytest.raises(JoinTimeout, match=r"rank 0 did not join group '0'.*this is rank 3"):
        agree_on_engines(HashStore(), group_name="0", rank=3, engines=1, join_timeout_s=0.1)


def test_agree_on_engines__a_rank_0_that_cannot_is_quoted() -> None:
    store = HashStore()
    with suppress(ConfigError), refusals_told(store, 0):
        raise ConfigError("no job key")
    with pytest.raises(ConfigError, match="rank 0 cannot join the job: no job key"):
        engines_of(store, 1, 1)


@pytest.mark.parametrize("text", ["0", "17", "-1", "two", "", "\u0663", "1" * 100])
def test_agree_on_engines__what_rank_0_has_not_written_is_refused(text: str) -> None:
    store = HashStore()
    store.set("securefabric/engines/1", text)
    with pytest.raises(ConfigError, match="a store of its own"):
        engines_of(store, 1, 2)


def test_agree_on_engines__a_store_that_has_gone_is_named() -> None:
    host = TCPStore("127.0.0.1", 0, is_master=True, wait_for_workers=False)
    client = TCPStore("127.0.0.1", host.port, is_master=False, timeout=timedelta(seconds=5))
    del host
    with pytest.raises(StoreUnavailable):
        engines_of(client, 1, 2)


# agree_on_host


def hosts_of(store: HashStore, guesses: list[bool]) -> list[bool]:
    """What each rank is told, given what each takes for true."""
    with ThreadPoolExecutor(len(guesses)) as ranks:
        answers = [
            ranks.submit(
                agree_on_host,
                store,
                group_name="0",
                rank=rank,
                world_size=len(guesses),
                guess=guess,
                is_told=False,
                join_timeout_s=JOIN_TIMEOUT_S,
            )
            for rank, guess in enumerate(guesses)
        ]
        return [answer.result() for answer in answers]


@pytest.mark.parametrize("guesses", [[True, True, True], [True, True, False], [False, True, True]])
def test_agree_on_host__all_must_take_it_for_one(guesses: list[bool]) -> None:
    store = HashStore()
    assert hosts_of(store, guesses) == [all(guesses)] * 3
    assert hosts_of(store, [True] * 3) == [True] * 3, "each visit has its own answer"


def test_agree_on_host__a_launchers_word_waits_for_nobody() -> None:
    assert agree_on_host(
        HashStore(),
        group_name="0",
        rank=0,
        world_size=3,
        guess=True,
        is_told=True,
        join_timeout_s=0.1,
    )


def test_agree_on_host__a_rank_that_never_comes_is_named() -> None:
    with pytest.raises(JoinTimeout, match=r"rank 1 did not join group '0'.*this is rank 0"):
        agree_on_host(
            HashStore(),
            group_name="0",
            rank=0,
            world_size=2,
            guess=True,
            is_told=False,
            join_timeout_s=0.1,
        )


# agree_on_nonce


def nonce_of(store: HashStore, group_rank: int, timeout_s: float = 5.0) -> str:
    return agree_on_nonce(
        store,
        group_name="0",
        group_rank=group_rank,
        global_ranks=[4, 6],
        join_timeout_s=timeout_s,
    )


def test_agree_on_nonce__members_agree() -> None:
    store = HashStore()
    nonces = {nonce_of(store, 0), nonce_of(store, 1)}
    assert len(nonces) == 1
    assert re.fullmatch("[0-9a-f]{16}", nonces.pop())


def test_agree_on_nonce__what_the_store_says_is_bounded() -> None:
    store = HashStore()
    store.set("securefabric/group/1", b"\xff" * 5000)
    assert len(nonce_of(store, 1)) == 16


def test_agree_on_nonce__each_incarnation_has_its_own() -> None:
    store = HashStore()
    first = {nonce_of(store, 0), nonce_of(store, 1)}
    second = {nonce_of(store, 0), nonce_of(store, 1)}
    assert len(first) == len(second) == 1
    assert first != second
    assert nonce_of(HashStore(), 0) not in first | second


def test_agree_on_nonce__first_rank_may_come_later() -> None:
    store = HashStore()
    found: list[str] = []
    waiting = threading.Thread(target=lambda: found.append(nonce_of(store, 1, timeout_s=20.0)))
    waiting.start()
    found.append(nonce_of(store, 0))
    waiting.join()
    assert found[0] == found[1]


def test_agree_on_nonce__a_first_rank_that_never_comes_is_named() -> None:
    with pytest.raises(JoinTimeout, match=r"rank 4 did not join group '0' within 0.1 s.*rank 6"):
        nonce_of(HashStore(), 1, timeout_s=0.1)


class DyingStore(HashStore):
    """Its server goes away while somebody waits."""

    def wait(self, *_: object) -> None:
        raise RuntimeError("connection reset by peer")

    def check(self, keys: list[str]) -> bool:
        raise RuntimeError("broken pipe")


def test_agree_on_nonce__a_store_that_dies_meanwhile_is_named() -> None:
    with pytest.raises(StoreUnavailable, match=r"rank 0, or the launcher.*broken pipe"):
        nonce_of(DyingStore(), 1, timeout_s=60.0)


# refusals_told


def refuse(store: HashStore, rank: int, text: str) -> None:
    with pytest.raises(ConfigError), refusals_told(store, rank):
        raise ConfigError(text)


def test_refusals_told__members_learn_who_cannot_join_and_why() -> None:
    store = HashStore()
    refuse(store, 1, "SECUREFABRIC_SPIN='fast' is not usable")
    board = published(store, 0)
    with pytest.raises(ConfigError, match=r"^rank 1 cannot join the job: SECUREFABRIC_SPIN='fast'"):
        board.look_up(1)
    assert board.look_up(2) is None
    published(store, 1)  # tried again
    assert board.look_up(1) is not None


def test_refusals_told__who_waits_for_the_first_rank_does_not_wait_longer() -> None:
    store = HashStore()
    refuse(store, 4, "no such interface")
    with pytest.raises(ConfigError, match=r"^rank 4 cannot join the job: no such interface$"):
        nonce_of(store, 1, timeout_s=3600.0)


def test_refusals_told__other_errors_are_not() -> None:
    store = HashStore()
    with pytest.raises(AuthError), refusals_told(store, 1):
        raise AuthError("an entry was altered")
    assert published(store, 0).look_up(1) is None


def test_refusals_told__a_store_that_is_gone_changes_nothing() -> None:
    class Gone(HashStore):
        def set(self, *_: object) -> None:
            raise RuntimeError("broken pipe")

    refuse(Gone(), 1, "no such interface")


def test_look_up__what_a_store_tells_of_others_is_bounded_and_printable() -> None:
    store = HashStore()
    store.set("securefabric/refusal/1", "\x1b[2J\nAll is well\r" + "é" + "x" * 5000)
    board = published(store, 0)
    with pytest.raises(ConfigError) as raised:
        board.look_up(1)
    text = str(raised.value)
    assert text.isprintable()
    assert "All is well" in text
    assert len(text) < 600


# of_this_incarnation


@pytest.mark.parametrize("agents", ["1", "2"])
def test_of_this_incarnation__a_restarted_rank_sees_nothing_of_the_former_one(
    monkeypatch: pytest.MonkeyPatch, agents: str
) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("GROUP_WORLD_SIZE", agents)
    store = HashStore()
    for restart in range(3):
        monkeypatch.setenv("TORCHELASTIC_RESTART_COUNT", str(restart))
        monkeypatch.setattr(_board, "_counted", {})  # as in a new process
        views = [of_this_incarnation(store, rank) for rank in (0, 1)]
        assert not any(view.check(["key"]) for view in views)
        views[0].set("key", "value")
        assert views[1].get("key") == b"value"
        assert of_this_incarnation(store, 0).get("key") == b"value"


def test_of_this_incarnation__is_the_store_itself_where_nobody_restarts(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.delenv("TORCHELASTIC_USE_AGENT_STORE", raising=False)
    store = HashStore()
    assert of_this_incarnation(store, 0) is store
