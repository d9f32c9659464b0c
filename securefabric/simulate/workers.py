"""Many seeds on all cores: each in a process that may crash or hang without taking others along."""

from __future__ import annotations

import multiprocessing
import multiprocessing.connection
import os
import time
from collections.abc import Callable, Iterable, Iterator
from typing import Protocol

__all__ = ["LIMIT_S", "run_seeds"]

# Wall time of one seed; a thousand times what it takes.
LIMIT_S = 600.0


class _Pipe(Protocol):
    def send(self, value: object) -> None: ...
    def recv(self) -> object: ...
    def close(self) -> None: ...


class _Worker:
    """A process that runs one seed at a time, and is replaced when it dies."""

    def __init__(self, run: Callable[[object, int], list[str]], argument: object) -> None:
        # Not forked: secret memory does not survive that.
        context = multiprocessing.get_context("spawn")
        ours, theirs = context.Pipe()
        self.pipe = ours
        self.process = context.Process(target=_serve, args=(theirs, run, argument), daemon=True)
        self.process.start()
        theirs.close()
        self.seed = 0
        self.started = 0.0

    def give(self, seed: int) -> None:
        self.seed, self.started = seed, time.monotonic()
        self.pipe.send(seed)

    def take(self) -> list[str]:
        """Return the failures of its seed; the pipe is readable or the process has ended."""
        try:
            failures: list[str] = self.pipe.recv()
        except EOFError:
            self.process.join()
            return [f"the process died ({_cause(self.process.exitcode)})"]
        return failures

    def is_late(self) -> bool:
        return time.monotonic() - self.started > LIMIT_S

    def stop(self) -> None:
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _cause(exit_code: int | None) -> str:
    return f"signal {-exit_code}" if exit_code is not None and exit_code < 0 else f"{exit_code}"


def _serve(pipe: _Pipe, run: Callable[[object, int], list[str]], argument: object) -> None:
    while True:
        try:
            seed = pipe.recv()
        except (EOFError, OSError):
            return
        assert isinstance(seed, int)
        pipe.send(run(argument, seed))


def run_seeds(
    run: Callable[[object, int], list[str]],
    argument: object,
    seeds: Iterable[int],
    workers: int = 0,
) -> Iterator[tuple[int, list[str]]]:
    """Yield (seed, failures) as runs end, in any order.

    run(argument, seed) is a function of a module, and returns what failed, in sentences. workers
    of 0 are as many as there are cores. A process that dies, or takes longer than LIMIT_S seconds,
    is a failure of its seed.
    """
    left = iter(seeds)
    busy: list[_Worker] = []
    idle = [_Worker(run, argument) for _ in range(workers or len(os.sched_getaffinity(0)))]
    try:
        while True:
            while idle and (seed := next(left, None)) is not None:
                worker = idle.pop()
                worker.give(seed)
                busy.append(worker)
            if not busy:
                return
            ready = multiprocessing.connection.wait([w.pipe for w in busy], timeout=1)
            for worker in [w for w in busy if w.pipe in ready or w.is_late()]:
                busy.remove(worker)
                is_done = worker.pipe in ready
                failures = worker.take() if is_done else [f"not done within {LIMIT_S:.0f} s"]
                yield worker.seed, failures
                if worker.process.is_alive() and is_done:
                    idle.append(worker)
                else:
                    worker.stop()
                    idle.append(_Worker(run, argument))
    finally:
        for worker in idle + busy:
            worker.stop()
