from __future__ import annotations

import os
import pickle
import re
import subprocess
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from jobs import ROOT
from torch.distributed.elastic.rendezvous import (
    RendezvousConnectionError,
    RendezvousParameters,
    RendezvousStateError,
)
from torch.distributed.elastic.rendezvous.dynamic_rendezvous import _NodeDesc, _RendezvousState
from torch.distributed.elastic.rendezvous.registry import get_rendezvous_handler

import securefabric.rendezvous
from securefabric import elastic
from securefabric.elastic import EncryptedRendezvousBackend, decode_state, encode_state
from securefabric.errors import ConfigError
from securefabric.launch import reserve_port
from securefabric.store import open_store

# State

NODES = st.builds(_NodeDesc, st.text(max_size=8), st.integers(0, 2**31), st.integers(0, 99))
TIMES = st.datetimes(datetime(2000, 1, 1), timezones=st.just(UTC))


@st.composite
def states(draw: Any) -> _RendezvousState:
    state = _RendezvousState()
    state.round = draw(st.integers(0, 99))
    state.complete = draw(st.booleans())
    state.closed = draw(st.booleans())
    state.deadline = draw(st.none() | TIMES)
    state.participants = draw(st.dictionaries(NODES, st.integers(0, 99), max_size=4))
    state.wait_list = draw(st.sets(NODES, max_size=4))
    state.redundancy_list = draw(st.sets(NODES, max_size=4))
    state.last_heartbeats = draw(st.dictionaries(NODES, TIMES, max_size=4))
    return state


@settings(max_examples=30, deadline=None)
@given(states())
def test_state__comes_back_as_it_went(state: _RendezvousState) -> None:
    assert vars(decode_state(encode_state(state))) == vars(state)


def test_state__equal_states_give_equal_bytes() -> None:
    one, other = _RendezvousState(), _RendezvousState()
    nodes = [_NodeDesc("host", pid, 0) for pid in range(20)]
    one.wait_list = set(nodes)
    other.wait_list = set(nodes)
    assert encode_state(one) == encode_state(other)


@given(st.binary(max_size=100) | st.sampled_from([b"{}", b"[]", b"null", b"[" * 100_000]))
def test_decode__other_bytes_are_an_error(data: bytes) -> None:
    with pytest.raises(RendezvousStateError, match="the store holds no rendezvous state"):
        decode_state(data)


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("round", "1"),
        ("complete", 1),
        ("deadline", "tomorrow"),
        ("deadline", "2026-01-01T00:00:00"),
        ("participants", [["host", 1, 2]]),
        ("wait_list", [["host", 1, 2, 3]]),
        ("wait_list", {"host": 1}),
        ("last_heartbeats", 5),
    ],
)
def test_decode__fields_have_their_types(field: str, value: object) -> None:
    import json

    document = json.loads(encode_state(_RendezvousState()))
    document[field] = value
    with pytest.raises(RendezvousStateError):
        decode_state(json.dumps(document).encode())


def test_encode__a_state_of_another_torch_is_refused() -> None:
    state = _RendezvousState()
    state.mood = "good"  # type: ignore[attr-defined]
    with pytest.raises(RendezvousStateError, match=r"other fields .*mood"):
        encode_state(state)


# Backend


@pytest.fixture
def store(key_file: str) -> Any:
    return open_store("127.0.0.1", 0, serve=True, key_file=key_file)


def test_backend__compares_and_sets(store: Any) -> None:
    first = EncryptedRendezvousBackend(store, "run")
    second = EncryptedRendezvousBackend(store.clone(), "run")
    assert first.name == "securefabric"
    assert first.get_state() is None
    state = _RendezvousState()
    state.round = 1
    bits, token, has_set = first.set_state(pickle.dumps(state))  # type: ignore[misc]
    assert (pickle.loads(bits).round, has_set) == (1, True)
    state.round = 2
    bits, token, has_set = second.set_state(pickle.dumps(state))  # type: ignore[misc]
    assert (pickle.loads(bits).round, has_set) == (1, False)  # it had not seen the first
    bits, token, has_set = second.set_state(pickle.dumps(state), token)  # type: ignore[misc]
    assert (pickle.loads(bits).round, has_set) == (2, True)
    assert first.get_state() == (bits, token)
    assert first.set_state(bits, object()) == (bits, token, False)


def test_backend__a_pickle_in_the_store_is_never_opened(store: Any, tmp_path: Path) -> None:
    backend = EncryptedRendezvousBackend(store, "run")
    mark = tmp_path / "opened"

    class Trap:
        def __reduce__(self) -> Any:
            return (open, (str(mark), "w"))

    store.set("torch.rendezvous.run", pickle.dumps(Trap()))
    with pytest.raises(RendezvousStateError):
        backend.get_state()
    assert not mark.exists()


def test_backend__a_lost_store_is_a_connection_error(
    store: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("securefabric.store.client.RECOVERY_S", 0.2)
    backend = EncryptedRendezvousBackend(store, "run")
    os.kill(store.client.server.pid, 9)
    # One that is still dying accepts connections and then says nothing, as a stranger would.
    os.waitid(os.P_PID, store.client.server.pid, os.WEXITED | os.WNOWAIT)
    with pytest.raises(RendezvousConnectionError, match="StoreUnavailable"):
        backend.get_state()


# Handler


@pytest.fixture
def environment(clean_environment: pytest.MonkeyPatch, key_file: str) -> pytest.MonkeyPatch:
    clean_environment.setenv("SECUREFABRIC_KEY_FILE", key_file)
    clean_environment.setenv(securefabric.rendezvous.STORE_VARIABLE, "")  # restored afterwards
    elastic_name = "securefabric"
    from torch.distributed.elastic.rendezvous import rendezvous_handler_registry as registry

    if elastic_name not in registry._registry:
        registry.register(elastic_name, elastic.get_handler())
    return clean_environment


def parameters(endpoint: str, *, nodes: int = 1, **config: Any) -> RendezvousParameters:
    return RendezvousParameters(
        backend="securefabric",
        endpoint=endpoint,
        run_id="run",
        min_nodes=nodes,
        max_nodes=nodes,
        local_addr="127.0.0.1",
        last_call_timeout=1,
        **config,
    )


def test_handler__needs_an_endpoint(environment: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match="needs --rdzv-endpoint=host:port"):
        get_rendezvous_handler(parameters(""))


def test_handler__another_agent_of_the_host_may_serve(environment: pytest.MonkeyPatch) -> None:
    endpoint = f"127.0.0.1:{reserve_port('127.0.0.1')}"
    first: Any = get_rendezvous_handler(parameters(endpoint))
    second: Any = get_rendezvous_handler(parameters(endpoint))
    assert first._store.client.server is not None
    assert second._store.client.server is None
    with pytest.raises(ConfigError, match="in use"):
        get_rendezvous_handler(parameters(endpoint, is_host=True))


def test_handler__each_round_has_a_store_of_its_own(environment: pytest.MonkeyPatch) -> None:
    endpoint = f"127.0.0.1:{reserve_port('127.0.0.1')}"
    handlers: list[Any] = [get_rendezvous_handler(parameters(endpoint, nodes=2)) for _ in range(2)]
    ports = set()
    for _ in range(2):
        infos: list[Any] = []
        threads = [
            threading.Thread(target=lambda h=h, i=infos: i.append(h.next_rendezvous()))
            for h in handlers
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(60)
        assert sorted((info.rank, info.world_size) for info in infos) == [(0, 2), (1, 2)]
        addresses = {
            (i.bootstrap_store_info.master_addr, i.bootstrap_store_info.master_port) for i in infos
        }
        assert len(addresses) == 1
        ports |= addresses
        for handler in handlers:
            handler._state_holder.sync()
            handler._state_holder.state.complete = False  # as if a node had left
            handler._state_holder.state.participants.clear()
            handler._state_holder.state.round += 1
            handler._state_holder.mark_dirty()
            handler._state_holder.sync()
            break
        handlers[1]._state_holder.sync()
    assert len(ports) == 2
    assert handlers[0].use_agent_store
    for handler in handlers:
        handler.shutdown()


# torchrun

SCRIPT = """
import os, sys, torch
import torch.distributed as dist
from torch.distributed import distributed_c10d
dist.init_process_group("securefabric")
total = torch.ones(1)
dist.all_reduce(total)
attempt = os.environ["TORCHELASTIC_RESTART_COUNT"]
store = distributed_c10d._get_default_store()
while hasattr(store, "underlying_store"):
    store = store.underlying_store
rank = dist.get_rank()
# In one piece: torchrun's ranks share a pipe that is not buffered.
line = f"attempt {attempt} rank {rank} of {int(total)} {type(store).__module__}\\n"
print(line, end="", flush=True)
dist.barrier()
if attempt == "0" and rank == 1 and "fail" in sys.argv:
    os._exit(3)
dist.barrier()
print(f"done {rank}\\n", end="", flush=True)
dist.destroy_process_group()
"""


@pytest.fixture
def script(tmp_path: Path) -> str:
    path = tmp_path / "train.py"
    path.write_text(SCRIPT)
    return str(path)


def agent(endpoint: str, script: str, *arguments: str, nodes: str = "1") -> subprocess.Popen[str]:
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", "securefabric"]
    command += ["--rdzv-endpoint", endpoint, "--rdzv-id", "job", "--nnodes", nodes]
    command += ["--nproc-per-node", "1" if nodes != "1" else "2", "--local-addr", "127.0.0.1"]
    command += ["--rdzv-conf", "last_call_timeout=2", "--max-restarts", "2", "--monitor-interval"]
    command += ["0.2", "--", script, *arguments]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        command, cwd=ROOT, env=environment, stdout=-1, stderr=subprocess.STDOUT, text=True
    )


def finish(process: subprocess.Popen[str]) -> str:
    try:
        output, _ = process.communicate(timeout=180)
    finally:
        process.kill()
    assert process.returncode == 0, output
    return output


@pytest.mark.slow
def test_torchrun__restarts_an_unchanged_script(
    environment: pytest.MonkeyPatch, script: str
) -> None:
    output = finish(agent("localhost:0", script, "fail"))
    for attempt in (0, 1):
        for rank in (0, 1):
            line = f"attempt {attempt} rank {rank} of 2 securefabric._C"
            assert line in output, output
    assert sorted(re.findall(r"^done (\d)", output, re.MULTILINE)) == ["0", "1"]


@pytest.mark.slow
def test_torchrun__two_nodes_meet_and_one_may_come_again(
    environment: pytest.MonkeyPatch, script: str
) -> None:
    endpoint = f"127.0.0.1:{reserve_port('127.0.0.1')}"
    agents = [agent(endpoint, script, "fail", nodes="2") for _ in range(2)]
    outputs = [finish(each) for each in agents]
    assert sorted(re.findall(r"^done (\d)", "".join(outputs), re.MULTILINE)) == ["0", "1"]


def test_torchrun__an_agent_of_another_job_is_refused_by_name(
    environment: pytest.MonkeyPatch, script: str, tmp_path: Path, store: Any
) -> None:
    from securefabric.identity import write_key_file

    write_key_file(str(tmp_path / "other.key"))
    environment.setenv("SECUREFABRIC_KEY_FILE", str(tmp_path / "other.key"))
    refused = agent(f"127.0.0.1:{store.port}", script)
    output, _ = refused.communicate(timeout=120)
    assert refused.returncode != 0
    assert "AuthError: " in output or "does not complete a handshake under job key" in output
