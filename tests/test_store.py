"""The encrypted store as torch sees it: the contract, with torch's TCPStore as oracle."""

from __future__ import annotations

import gc
import mmap
import multiprocessing
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from datetime import timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch.distributed as dist
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch._C._distributed_c10d import PrefixStore, Store, TCPStore

from securefabric.errors import AuthError, ConfigError, StoreUnavailable, classify
from securefabric.identity import write_key_file
from securefabric.store import listening_address, open_store, resolve
from securefabric.store.table import Limits

Open = Callable[[], Store]
SHORT = timedelta(milliseconds=200)
LONG = timedelta(seconds=60)


@pytest.fixture(scope="module")
def key_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = str(tmp_path_factory.mktemp("store") / "job.key")
    write_key_file(path)
    return path


@pytest.fixture(scope="module")
def sealed(key_file: str) -> Store:
    return open_store("127.0.0.1", 0, serve=True, timeout=LONG, key_file=key_file)


@pytest.fixture(scope="module")
def plain() -> Store:
    return TCPStore("127.0.0.1", 0, None, True, LONG, wait_for_workers=False)


# What both must do alike: scripts of calls, and what came of each


def outcome(call: Callable[[], Any]) -> Any:
    """What a call returned, or the class of what it raised."""
    try:
        return call()
    except Exception as error:
        return type(error).__name__


def emptied(store: Any) -> Any:
    for key in ("a", "b", "c", "q", "", "ü"):
        store.delete_key(key)
        while store.queue_len(key):
            store.queue_pop(key)
    return store


CALLS: dict[str, Callable[[Any], Any]] = {
    "set and get": lambda s: (s.set("a", "1"), s.get("a")),
    "bytes": lambda s: (s.set("a", b"\x00\xff"), s.get("a")),
    "overwrite": lambda s: (s.set("a", "1"), s.set("a", ""), s.get("a")),
    "empty key": lambda s: (s.set("", "e"), s.get("")),
    "unicode": lambda s: (s.set("ü", "é"), s.get("ü")),
    "get waits": lambda s: outcome(lambda: s.get("a")),
    "wait": lambda s: (s.set("a", "1"), s.wait(["a"]), s.wait(["a"], SHORT), s.wait([])),
    "wait times out": lambda s: outcome(lambda: s.wait(["a"], SHORT)),
    "wait one missing": lambda s: (s.set("a", ""), outcome(lambda: s.wait(["a", "b"], SHORT))),
    "add": lambda s: (s.add("a", 5), s.add("a", -7), s.add("a", 0), s.get("a")),
    "add to text": lambda s: (s.set("a", "41"), s.add("a", 1)),
    "add to what begins with a number": lambda s: (s.set("a", " 12abc"), s.add("a", 1)),
    "add wraps": lambda s: (s.set("a", str(2**63 - 1)), s.add("a", 1)),
    "add large": lambda s: (s.add("a", 2**62), s.add("a", 2**61), s.get("a")),
    "compare_set new": lambda s: (s.compare_set("a", "", "v"), s.get("a")),
    "compare_set absent": lambda s: (s.compare_set("a", "x", "v"), s.check(["a"])),
    "compare_set equal": lambda s: (s.set("a", "x"), s.compare_set("a", "x", "v"), s.get("a")),
    "compare_set other": lambda s: (s.set("a", "x"), s.compare_set("a", "y", "v"), s.get("a")),
    "compare_set empty": lambda s: (s.set("a", "x"), s.compare_set("a", "", "v"), s.get("a")),
    "delete": lambda s: (s.set("a", "1"), s.delete_key("a"), s.delete_key("a"), s.check(["a"])),
    "check": lambda s: (s.check([]), s.set("a", ""), s.check(["a"]), s.check(["a", "b"])),
    "append": lambda s: (s.append("a", "1"), s.append("a", b"23"), s.get("a")),
    "multi": lambda s: (s.multi_set(["a", "b"], ["1", b"2"]), s.multi_get(["b", "a", "b"])),
    "multi_get none": lambda s: s.multi_get([]),
    "multi_set uneven": lambda s: outcome(lambda: s.multi_set(["a", "b"], ["1"])),
    "queue": lambda s: (
        s.queue_len("q"),
        s.queue_push("q", "1"),
        s.queue_push("q", b"2"),
        s.queue_len("q"),
        s.queue_pop("q"),
        s.queue_pop("q", False),
        s.queue_len("q"),
    ),
    "queue empty": lambda s: outcome(lambda: s.queue_pop("q", False)),
    "queue and value": lambda s: (
        s.queue_push("q", "1"),
        s.check(["q"]),
        s.set("q", "v"),
        s.get("q"),
        s.queue_pop("q"),
    ),
    "queue waited for": lambda s: (s.queue_push("q", "1"), s.wait(["q"], SHORT), s.get("q")),
    "barrier": lambda s: (s.barrier("a", 1), s.barrier("a", 1), s.get("a")),
    "barrier times out": lambda s: (outcome(lambda: s.barrier("a", 3, SHORT)), s.get("a")),
    "queue deleted": lambda s: (s.queue_push("q", "1"), s.delete_key("q"), s.queue_len("q")),
    "extended": lambda s: s.has_extended_api(),
    "timeout": lambda s: s.timeout,
    "not a value": lambda s: outcome(lambda: s.set("a", 5)),
}


@pytest.mark.parametrize("name", CALLS)
def test_contract__as_tcpstore(sealed: Store, plain: Store, name: str) -> None:
    answers = []
    for store in (plain, sealed):
        emptied(store).set_timeout(SHORT if "waits" in name else LONG)
        answers.append(CALLS[name](store))
        store.set_timeout(LONG)
    assert answers[0] == answers[1]


KEYS = st.sampled_from(["a", "b", "c"])
VALUES = st.sampled_from(["", "1", "-3", "text"])
RANDOM_CALLS = st.one_of(
    st.tuples(st.sampled_from(["set", "append", "queue_push"]), KEYS, VALUES),
    st.tuples(st.just("compare_set"), KEYS, VALUES, VALUES),
    st.tuples(st.sampled_from(["delete_key", "queue_len"]), KEYS),
    st.tuples(st.just("queue_pop"), KEYS, st.just(False)),
    st.tuples(st.just("check"), st.lists(KEYS, max_size=3)),
)


@settings(
    max_examples=60,
    deadline=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(st.lists(RANDOM_CALLS, max_size=12))
def test_contract__random_calls_as_tcpstore(
    sealed: Store, plain: Store, calls: list[tuple[Any, ...]]
) -> None:
    emptied(sealed)
    emptied(plain)
    for name, *arguments in calls:
        expected, actual = (
            outcome(partial(getattr(store, name), *arguments)) for store in (plain, sealed)
        )
        assert actual == expected, (name, arguments)
    for key in "abc":
        if plain.check([key]):  # a queue as well: reads as nothing
            assert sealed.get(key) == plain.get(key)
        assert sealed.check([key]) == plain.check([key])


def test_keys__are_counted_and_listed(sealed: Any) -> None:
    emptied(sealed)
    before = sealed.num_keys()
    sealed.set("a", "1")
    sealed.queue_push("q", "1")
    assert sealed.num_keys() == before + 1
    assert "a" in sealed.list_keys()
    assert "q" not in sealed.list_keys()


def test_barrier__opens_for_the_last(sealed: Any) -> None:
    clone = sealed.clone()
    arrived = threading.Thread(target=clone.barrier, args=("door", 2, LONG))
    arrived.start()
    sealed.barrier("door", 2, LONG)
    arrived.join(30)
    assert not arrived.is_alive()
    with pytest.raises(dist.DistStoreError, match="barrier timeout after 200ms"):
        sealed.barrier("other door", 2, SHORT)


def test_timeout__names_the_keys(sealed: Store) -> None:
    with pytest.raises(
        dist.DistStoreError, match=r"wait timeout after 200ms, keys: \{odd\} name, b"
    ):
        sealed.wait(["{odd} name", "b"], SHORT)


def test_timeout__beyond_a_slice_is_kept(sealed: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("securefabric.store.client.SLICE_MS", 50)
    started = time.monotonic()
    with pytest.raises(dist.DistStoreError):
        sealed.wait(["never"], timedelta(milliseconds=400))
    assert time.monotonic() - started >= 0.4
    # And a wait that is answered in a later slice.
    setter = threading.Timer(0.3, sealed.set, ("late", "1"))
    setter.start()
    sealed.wait(["late"], LONG)
    setter.join()


@pytest.mark.parametrize("timeout", [timedelta(days=25), timedelta(days=400_000), timedelta.max])
def test_timeout__longer_than_any_clock_never_passes(key_file: str, timeout: timedelta) -> None:
    store: Any = open_store("127.0.0.1", 0, serve=True, key_file=key_file, timeout=timeout)
    assert store.timeout > timedelta(days=24)
    calls = [lambda: store.get("late"), lambda: store.wait(["late"], timeout)]
    threads = [threading.Thread(target=call) for call in calls]
    for thread in threads:
        thread.start()
    while store.client.counters()["waiting"] < len(calls):
        time.sleep(0.01)
    store.set_timeout(timeout)
    store.set("late", "1")
    store.barrier("door", 1, timeout)
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    store.client.close()


def test_clone__has_its_own_timeout_and_the_same_keys(sealed: Any) -> None:
    clone = sealed.clone()
    clone.set_timeout(SHORT)
    assert (clone.timeout, sealed.timeout) == (SHORT, LONG)
    clone.set("cloned", "1")
    assert sealed.get("cloned") == b"1"


def test_threads__one_that_waits_does_not_keep_another_from_setting(sealed: Store) -> None:
    woken: list[str] = []

    def wait(key: str) -> None:
        sealed.wait([key], LONG)
        woken.append(key)

    keys = [f"thread {n}" for n in range(16)]
    threads = [threading.Thread(target=wait, args=(key,)) for key in keys]
    for thread in threads:
        thread.start()
    for key in keys:
        sealed.set(key, "")
    for thread in threads:
        thread.join(30)
    assert sorted(woken) == sorted(keys)


def test_prefix__stores_stack(sealed: Store) -> None:
    inner = PrefixStore("inner", PrefixStore("outer", sealed))
    inner.set("k", "1")
    assert sealed.get("outer/inner/k") == b"1"
    assert inner.underlying_store.underlying_store.port == sealed.port  # type: ignore[attr-defined]


def test_cpp_callers__gloo_meets_through_it(sealed: Any) -> None:
    """ProcessGroupGloo reads and writes the store from C++, without the GIL, on several threads."""
    sums: list[Any] = []

    def member(rank: int) -> None:
        group = dist.ProcessGroupGloo(PrefixStore("gloo", sealed.clone()), rank, 2, LONG)
        import torch

        tensor = torch.ones(1) * (rank + 1)
        group.allreduce([tensor]).wait()
        sums.append(float(tensor))

    threads = [threading.Thread(target=member, args=(rank,)) for rank in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert sums == [3.0, 3.0]


# Bounds


def test_limits__are_named(sealed: Store) -> None:
    with pytest.raises(dist.DistStoreError, match="StoreLimit: a key has 9,000 bytes"):
        sealed.set("k" * 9000, "")
    with pytest.raises(dist.DistStoreError, match="StoreLimit: a value has 8,388,609 bytes"):
        sealed.set("k", bytes((8 << 20) + 1))
    sealed.set("a", bytes(8 << 20))
    assert len(sealed.get("a")) == 8 << 20
    emptied(sealed)


def test_limits__of_the_server(key_file: str) -> None:
    store: Any = open_store("127.0.0.1", 0, serve=True, key_file=key_file, limits=Limits(keys=2))
    store.multi_set(["1", "2"], ["", ""])
    with pytest.raises(dist.DistStoreError, match="StoreLimit: the store may hold at most 2 keys"):
        store.set("3", "")


def test_add__to_what_is_no_number_is_an_error(sealed: Store) -> None:
    sealed.set("a", "words")
    with pytest.raises(dist.DistStoreError, match="the value of 'a' is no 64-bit integer"):
        sealed.add("a", 1)


# Opening


def test_open__errors_are_named(tmp_path: Path, key_file: str, sealed: Any) -> None:
    with pytest.raises(ConfigError, match="does not exist"):
        open_store("127.0.0.1", 1, key_file=str(tmp_path / "none"))
    with pytest.raises(ConfigError, match=r"'no\.such\.host\.invalid' has no address"):
        open_store("no.such.host.invalid", 1, key_file=key_file)
    with pytest.raises(ConfigError, match=r"cannot serve the store at .*in use.*choose a free"):
        open_store("127.0.0.1", sealed.port, serve=True, key_file=key_file)
    with pytest.raises(ConfigError, match=r"cannot serve the store at 192\.0\.2\.1:0"):
        open_store("127.0.0.1", 0, serve=True, bind="192.0.2.1", key_file=key_file)
    with pytest.raises(StoreUnavailable, match="nobody answers for the store at 127"):
        open_store("127.0.0.1", 1, timeout=SHORT, key_file=key_file)


def test_open__another_job_key_is_an_auth_error(
    sealed: Any, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write_key_file(str(tmp_path / "other.key"))
    with pytest.raises(AuthError, match="does not complete a handshake under job key"):
        open_store("127.0.0.1", sealed.port, key_file=str(tmp_path / "other.key"))
    assert sealed.client.counters()["refused_protocol"] >= 1
    sealed.set("still", "serves")


def test_open__a_plaintext_store_there_is_an_auth_error(plain: Any, key_file: str) -> None:
    with pytest.raises(AuthError, match="a plaintext TCPStore"):
        open_store("127.0.0.1", plain.port, key_file=key_file, timeout=timedelta(seconds=2))


def test_open__listens_on_the_chosen_address_only(sealed: Any) -> None:
    tables = [Path(f"/proc/net/{name}").read_text() for name in ("tcp", "tcp6")]
    port = f":{sealed.port:04X}"
    listening = [line.split() for line in (*tables[0].splitlines(), *tables[1].splitlines())]
    own = {words[1] for words in listening if words[1].endswith(port) and words[3] == "0A"}
    assert own == {f"0100007F{port}"}


def test_resolve__prefers_ipv4() -> None:
    assert resolve("localhost") == "127.0.0.1"
    assert resolve("::1") == "::1"


@pytest.mark.parametrize(
    ("host", "address", "expected"),
    [
        ("10.1.2.3", "10.1.2.3", "10.1.2.3"),
        ("node1", "10.1.2.3", "10.1.2.3"),
        ("127.0.0.1", "127.0.0.1", "127.0.0.1"),
        ("127.0.1.1", "127.0.1.1", "127.0.1.1"),
        ("::1", "::1", "::1"),
        ("localhost", "127.0.0.1", "127.0.0.1"),
        ("localhost.localdomain", "127.0.0.1", "127.0.0.1"),
        ("node1", "127.0.1.1", "all"),
        ("node1.example.org", "::1", "all"),
    ],
)
def test_listening__where_others_can_reach_it(
    host: str, address: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for has_ipv6, every in ((True, "::"), (False, "0.0.0.0")):
        monkeypatch.setattr("socket.has_dualstack_ipv6", lambda value=has_ipv6: value)
        wanted = every if expected == "all" else expected
        assert listening_address(host, address) == wanted
    monkeypatch.setenv("SECUREFABRIC_STORE_BIND", "127.0.0.3")
    assert listening_address(host, address) == "127.0.0.3"
    assert listening_address(host, address, "127.0.0.4") == "127.0.0.4"


def test_open__a_host_whose_own_name_means_loopback_is_reached_by_others(
    key_file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Debian's /etc/hosts says 127.0.1.1; the others come to another address of the host."""
    names = {"node1": "127.0.1.1"}
    monkeypatch.setattr("securefabric.store.resolve", lambda host: names.get(host, host))
    store: Any = open_store("node1", 0, serve=True, key_file=key_file, timeout=LONG)
    other: Any = open_store("127.0.0.7", store.port, key_file=key_file, timeout=LONG)
    other.set("here", "1")
    assert store.get("here") == b"1"
    store.client.close()


# The server


@pytest.fixture
def own(key_file: str) -> Iterator[Any]:
    store: Any = open_store("127.0.0.1", 0, serve=True, timeout=LONG, key_file=key_file)
    yield store
    store.client.close()


def test_server__serves_while_python_is_busy(own: Any, key_file: str, tmp_path: Path) -> None:
    """A client in another process is served while this one never gives up the GIL."""
    script = (
        "import sys, torch; from securefabric.store import open_store\n"
        "store = open_store('127.0.0.1', int(sys.argv[1]), key_file=sys.argv[2])\n"
        "print('ready', flush=True); input()\n"
        "for n in range(100): store.add('n', 1)\n"
        "open(sys.argv[3], 'r+b').write(b'1')\n"
    )
    flag = tmp_path / "flag"
    flag.write_bytes(b"0")
    command = [sys.executable, "-c", script, str(own.port), key_file, str(flag)]
    with (
        flag.open("r+b") as file,
        mmap.mmap(file.fileno(), 1) as memory,
        subprocess.Popen(command, stdin=-1, stdout=-1, text=True) as other,
    ):
        assert other.stdin is not None
        assert other.stdout is not None
        assert other.stdout.readline() == "ready\n"
        interval = sys.getswitchinterval()
        sys.setswitchinterval(3600)
        try:
            other.stdin.write("go\n")
            other.stdin.flush()
            until = time.monotonic() + 60
            while memory[0] == ord("0") and time.monotonic() < until:
                pass  # no call that would let another thread of this process run
        finally:
            sys.setswitchinterval(interval)
    assert flag.read_bytes() == b"1"
    assert own.get("n") == b"100"


def test_server__lost_is_an_error_at_once_and_later(
    own: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("securefabric.store.client.RECOVERY_S", 2.0)
    own.set("a", "")
    caught: list[BaseException] = []

    def wait() -> None:
        try:
            own.wait(["never"], LONG)
        except Exception as error:
            caught.append(error)

    waiting = threading.Thread(target=wait)
    waiting.start()
    while own.client.counters()["waiting"] == 0:
        time.sleep(0.01)
    os.kill(own.client.server.pid, 9)
    waiting.join(30)
    assert isinstance(caught[0], dist.DistNetworkError)
    assert isinstance(classify(caught[0]), StoreUnavailable)
    assert "broke: is the process that hosts it" in str(caught[0])
    with pytest.raises(dist.DistNetworkError, match="StoreUnavailable: nobody answers"):
        own.get("a")  # not over a connection that was idle while the other one broke


def test_server__ends_with_its_store(key_file: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("securefabric.store.client.RECOVERY_S", 0.3)
    store: Any = open_store("127.0.0.1", 0, serve=True, key_file=key_file)
    clone = store.clone()
    pid = store.client.server.pid
    del store
    gc.collect()
    assert not Path(f"/proc/{pid}").exists()
    with pytest.raises(dist.DistNetworkError):
        clone.set("a", "")


def test_server__is_not_ended_by_signals_to_the_job_nor_by_a_client(own: Any) -> None:
    import signal

    for number in (signal.SIGINT, signal.SIGTERM):
        os.kill(own.client.server.pid, number)
    own.set("still", "there")
    assert own.get("still") == b"there"


def ends_with_its_parent(script: str, key_file: str) -> int:
    """Run a script that serves a store and ends somehow; returns the server's process id."""
    head = (
        "import os, sys, threading, torch; from datetime import timedelta\n"
        "from securefabric.store import open_store\n"
        "store = open_store('127.0.0.1', 0, serve=True, key_file=sys.argv[1])\n"
        "print(store.client.server.pid, flush=True)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", head + script, key_file],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert "Traceback" not in done.stderr, done.stderr
    assert "terminate called" not in done.stderr, done.stderr
    pid = int(done.stdout.split()[0])
    until = time.monotonic() + 20
    while Path(f"/proc/{pid}").exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not Path(f"/proc/{pid}").exists()
    return done.returncode


def test_server__ends_with_a_killed_parent_though_a_fork_holds_its_pipe(key_file: str) -> None:
    script = "if os.fork() == 0: os.execv('/bin/sleep', ['sleep', '1'])\nos.kill(os.getpid(), 9)\n"
    assert ends_with_its_parent(script, key_file) == -9


def test_exit__while_threads_wait_in_cpp_and_in_python(key_file: str) -> None:
    script = (
        "for key in 'abc':\n"
        "  def wait(key=key):\n"
        "    try: store.wait([key], timedelta(seconds=300))\n"
        "    except torch.distributed.DistNetworkError as e: assert 'closed' in str(e)\n"
        "  threading.Thread(target=wait, daemon=True).start()\n"
        "while store.client.counters()['waiting'] < 3: pass\n"
    )
    assert ends_with_its_parent(script, key_file) == 0


def test_exit__what_users_do_at_exit_still_finds_its_store(key_file: str) -> None:
    script = (
        "import atexit\n"
        "def save():\n  store.set('saved', '1'); assert store.get('saved') == b'1'; os._exit(7)\n"
        "atexit.register(save)\n"
    )
    assert ends_with_its_parent(script, key_file) == 7


def _child(store: Store, answers: Any) -> None:
    try:
        store.get("a")
    except Exception as error:
        answers.put(f"{type(error).__name__}: {error}")


def test_fork__is_refused_in_the_child_and_harmless_for_the_parent(own: Any) -> None:
    own.set("a", "1")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_child, args=(own, answers))
    child.start()
    answer = answers.get(timeout=30)
    child.join(30)
    assert child.exitcode == 0
    assert answer.startswith(
        f"DistNetworkError: ForkError: this process was forked from process {os.getpid()}"
    )
    assert own.get("a") == b"1"
