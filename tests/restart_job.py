"""One rank of a training that loses a rank and is started anew by torchrun: test_restart.py.

Usage: restart_job.py FOLDER STEPS DEATH_STEP; a negative DEATH_STEP lets everybody live. The first
incarnation's rank 0 catches what it goes on sending to the rank that died; the second one's sends
that again, to everybody.
"""

from __future__ import annotations

import hashlib
import os
import pickle
import signal
import socket
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import torch
import torch.distributed as dist
from torch import nn
from torch.nn.parallel import DistributedDataParallel

import securefabric
from securefabric._fabric import current_fabric

CAUGHT_MAX = 20
DEADLINE_S = 30.0


def own_addresses() -> list[tuple[str, int]]:
    """Return where this rank's fabric listens."""
    fabric = current_fabric()
    assert fabric is not None
    addresses = [text.rsplit(":", 1) for text in fabric.roster.own.addresses]
    return [(host, int(port)) for host, port in addresses]


def catch_packets(address: tuple[str, int], file: Path) -> None:
    """Take the place of a rank once it is dead, and keep what is still sent to it."""
    until = time.monotonic() + DEADLINE_S
    caught: list[bytes] = []
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as listener:
        while True:
            try:
                listener.bind(address)
                break
            except OSError:  # it lives
                if time.monotonic() > until:
                    return
                time.sleep(0.01)
        listener.settimeout(0.5)
        while len(caught) < CAUGHT_MAX and time.monotonic() < until:
            with suppress(TimeoutError):
                caught.append(listener.recv(65_535))
            file.write_bytes(pickle.dumps(caught))


def send_again(file: Path, rank: int, size: int) -> int:
    """Send the former incarnation's packets to every rank; returns how many each was sent."""
    addresses: list[list[tuple[str, int]]] = [[] for _ in range(size)]
    dist.all_gather_object(addresses, own_addresses())
    packets: list[bytes] = pickle.loads(file.read_bytes())
    if rank == 0:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
            for packet in packets:
                for targets in addresses:
                    sender.sendto(packet, targets[0])
    dist.barrier()
    return len(packets)


def main(folder: Path, steps: int, death_step: int) -> None:
    """Train from where the last incarnation left off."""
    is_first = os.environ["TORCHELASTIC_RESTART_COUNT"] == "0"
    dist.init_process_group("securefabric")
    rank, size = dist.get_rank(), dist.get_world_size()
    torch.manual_seed(1)
    model = DistributedDataParallel(nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 8)))
    optimizer = torch.optim.Adam(model.parameters(), lr=0.01)
    saved, caught, begin, resent = folder / "state.pt", folder / "caught.pkl", 0, 0
    if not is_first:
        state = torch.load(saved)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        begin = state["step"]
        resent = send_again(caught, rank, size)
    dies = is_first and death_step >= 0
    for step in range(begin, steps):
        if dies and step == death_step:
            last_words: list[list[tuple[str, int]]] = [[] for _ in range(size)]
            dist.all_gather_object(last_words, own_addresses())
            if rank == 1:
                os.kill(os.getpid(), signal.SIGKILL)
            signal.signal(signal.SIGTERM, signal.SIG_IGN)  # long enough to see what it sends
            witness = threading.Thread(target=catch_packets, args=(last_words[1][0], caught))
            witness.start()
        optimizer.zero_grad()
        samples = torch.randn(16, 8, generator=torch.Generator().manual_seed(step * size + rank))
        try:
            model(samples).square().mean().backward()
        except RuntimeError as error:
            print(f"rank {rank} noticed: {error}", flush=True)
            witness.join()
            raise
        optimizer.step()
        if rank == 0:
            state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
            torch.save({**state, "step": step + 1}, saved)
        dist.barrier()
    digest = hashlib.sha256(nn.utils.parameters_to_vector(model.parameters()).detach().numpy())
    counted = securefabric.stats()
    dropped = sum(counted.drops.values())
    print(
        f"rank {rank} ended: began at step {begin}, sent {resent} again, dropped {dropped}, "
        f"sha256 {digest.hexdigest()}",
        flush=True,
    )
    dist.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
