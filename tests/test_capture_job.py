"""A whole training run on the wire, from the launchers' first packet to the last.

torchrun with our rendezvous, two agents, DDP in an unchanged script. Everything that crosses the
network must be a sealed datagram of a fabric, or a TCP stream that is ZMTP under CURVE: a greeting
that names the mechanism, the four commands of its handshake, and sealed messages. Nothing else: no
other protocol, no name of a key, no canary of the model.
"""

from __future__ import annotations

import os
import struct
import subprocess
import sys
from collections import defaultdict
from pathlib import Path

import pytest
from jobs import ROOT
from test_capture import TCP, UDP, Packet, Recorder, can_record, own_network

from securefabric.identity import write_key_file

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        not can_record(), reason="recording the wire needs root (CAP_NET_RAW) on Linux"
    ),
]

CANARY = b"the quick brown fox "
SCRIPT = """
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
dist.init_process_group("securefabric")
text = b"the quick brown fox " * 4096
model = torch.nn.Linear(len(text) // 4, 1, bias=False)
model.weight.data = torch.frombuffer(bytearray(text), dtype=torch.float32).reshape(1, -1).clone()
model = DistributedDataParallel(model)
model(torch.ones(2, len(text) // 4)).sum().backward()
names = [None, None]
dist.all_gather_object(names, "the quick brown fox " * 10)
dist.destroy_process_group()
print("trained", flush=True)
"""
PORT = 29417  # in a network of its own
GREETING_BYTES = 64
HANDSHAKE = [b"\x05HELLO", b"\x07WELCOME", b"\x08INITIATE", b"\x05READY"]
SEALED = b"\x07MESSAGE"


def zmtp_frames(stream: bytes) -> tuple[bytes, list[tuple[int, bytes]]]:
    """The mechanism of a ZMTP 3 stream, and flags and body of each of its frames."""
    assert stream[0] == 0xFF
    assert stream[9] == 0x7F
    assert stream[10] == 3
    frames, at = [], GREETING_BYTES
    while at < len(stream):
        flags = stream[at]
        assert flags & ~7 == 0
        length_bytes = 8 if flags & 2 else 1
        length = int.from_bytes(stream[at + 1 : at + 1 + length_bytes], "big")
        at += 1 + length_bytes
        assert at + length <= len(stream), "a frame is cut off"
        frames.append((flags, stream[at : at + length]))
        at += length
    return stream[12:32].rstrip(b"\0"), frames


def run_job(key_file: str, script: Path, rdzv_backend: str) -> str:
    command = [sys.executable, "-m", "torch.distributed.run", "--rdzv-backend", rdzv_backend]
    command += ["--rdzv-endpoint", f"127.0.0.1:{PORT}", "--nnodes", "2", "--nproc-per-node", "1"]
    command += ["--local-addr", "127.0.0.1", "--", str(script)]
    environment = {**os.environ, "SECUREFABRIC_KEY_FILE": key_file, "OMP_NUM_THREADS": "1"}
    agents = [
        subprocess.Popen(command, cwd=ROOT, env=environment, stdout=-1, stderr=-2, text=True)
        for _ in range(2)
    ]
    output = ""
    try:
        for agent in agents:
            output += agent.communicate(timeout=150)[0]
    finally:
        for agent in agents:
            agent.kill()
    assert output.count("trained") == 2, output
    return output


def record(tmp_path: Path, rdzv_backend: str) -> list[Packet]:
    key_file, script = tmp_path / "job.key", tmp_path / "train.py"
    write_key_file(str(key_file))
    script.write_text(SCRIPT)
    with own_network(), Recorder() as recorder:
        run_job(str(key_file), script, rdzv_backend)
    assert recorder.missed == 0
    return recorder.packets


def streams(packets: list[Packet]) -> list[bytes]:
    """Each direction of each TCP connection; loopback neither loses nor reorders."""
    joined: dict[tuple[int, int], bytearray] = defaultdict(bytearray)
    for packet in packets:
        if packet.protocol == TCP and packet.payload:
            joined[packet.source, packet.destination] += packet.payload
    return [bytes(stream) for stream in joined.values()]


def test_whole_job__shows_sealed_datagrams_and_curve_only(
    tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    packets = record(tmp_path, "securefabric")
    datagrams = [packet.payload for packet in packets if packet.protocol == UDP]
    assert sum(map(len, datagrams)) > 2 * 4096 * len(CANARY)  # the model was broadcast and reduced
    for datagram in datagrams:
        version_and_class, flags, _, _, _ = struct.unpack_from("!BBHIQ", datagram)
        assert (version_and_class, flags) == (0x11, 0)

    spoken = set()
    all_streams = streams(packets)
    for stream in all_streams:
        mechanism, frames = zmtp_frames(stream)
        assert mechanism == b"CURVE"
        for flags, body in frames:
            name = body[: 1 + body[0]]
            spoken.add(name)
            if flags & 4:
                assert name in HANDSHAKE, name
            else:
                assert name == SEALED, name
    assert spoken == {*HANDSHAKE, SEALED}
    assert len(all_streams) >= 2 * 5  # two agents and two workers, one or more connections each

    everything = b"\n".join([*datagrams, *all_streams])
    for name in (CANARY, b"torch.rendezvous", b"default_pg", b"MASTER_ADDR", b"securefabric/entry"):
        assert name not in everything


def test_whole_job__with_torchs_own_rendezvous_is_in_the_clear(
    tmp_path: Path, clean_environment: pytest.MonkeyPatch
) -> None:
    """The control: the same search finds what it looks for where the store is torch's."""
    everything = b"\n".join(streams(record(tmp_path, "c10d")))
    for name in (b"torch.rendezvous", b"MASTER_ADDR", b"securefabric/entry"):
        assert name in everything
    assert CANARY not in everything  # what the backend sends is sealed all the same
