"""Starts the server's process and ends it: what the one process that hosts a store holds."""

from __future__ import annotations

import contextlib
import json
import os
import subprocess
import sys
import weakref
from typing import Final

from .keys import CurveKeys
from .server import FLUSH_MS, Settings
from .table import Limits

__all__ = ["ServerProcess", "running_servers"]

START_TIMEOUT_S: Final = 60.0  # of an interpreter on a host whose cores all start ranks

# The parent's sys.path, because it may have been changed by hand; -I keeps the working folder and
# PYTHONPATH, which may hold anything, out of it otherwise.
_PROGRAM: Final = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from securefabric.store.server import main; main()"
)


class ServerProcess:
    """A running server. It ends with close(), when this object dies, or with this process."""

    def __init__(
        self, *, addresses: list[str], port: int, keys: CurveKeys, limits: Limits | None = None
    ) -> None:
        settings = Settings(
            addresses=addresses,
            port=port,
            server_secret=keys.server_secret.decode(),
            client_public=keys.client_public.decode(),
            limits=limits or Limits(),
        )
        self._process = _start(settings)
        self.pid = self._process.pid
        self._finalizer = weakref.finalize(self, _end, self._process, os.getpid())
        self._finalizer.atexit = False  # client.close_all() does it, at the right moment
        running_servers.add(self)
        answer = _first_line(self._process)
        if "port" not in answer:
            self.close()
            raise OSError(str(answer.get("error", "the server's process ended at once")))
        self.port = int(str(answer["port"]))

    def close(self) -> None:
        """End the server, after it has sent what it has answered; nothing in a forked child."""
        self._finalizer()


running_servers: Final[weakref.WeakSet[ServerProcess]] = weakref.WeakSet()


def _start(settings: Settings) -> subprocess.Popen[bytes]:
    if not sys.executable:
        raise OSError("the store's server needs a Python interpreter, and sys.executable is empty")
    # Not to be imported by the server: it would cost seconds and is of no use there.
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    process = subprocess.Popen(
        [sys.executable, "-I", "-c", _PROGRAM, json.dumps(sys.path)],
        bufsize=0,  # a buffer would keep the secret for as long as the pipe is open
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        env=environment,
    )
    assert process.stdin is not None
    with contextlib.suppress(BrokenPipeError):  # its answer says why it ended
        process.stdin.write(settings.to_json().encode() + b"\n")  # never in argv or the environment
        process.stdin.flush()
    return process


def _first_line(process: subprocess.Popen[bytes]) -> dict[str, object]:
    import select

    assert process.stdout is not None
    ready, _, _ = select.select([process.stdout], [], [], START_TIMEOUT_S)
    if not ready:
        return {"error": f"the server's process did not start within {START_TIMEOUT_S:g} s"}
    line = process.stdout.readline()
    answer: dict[str, object] = json.loads(line) if line else {}
    return answer


def _end(process: subprocess.Popen[bytes], owner: int) -> None:
    """End the process, unless this is a forked child, to which it does not belong."""
    if os.getpid() != owner:
        return
    assert process.stdin is not None
    assert process.stdout is not None
    with contextlib.suppress(OSError):
        process.stdin.write(
            b"end\n"
        )  # a forked child may hold the pipe open: closing is not enough
        process.stdin.flush()
    with contextlib.suppress(OSError):
        process.stdin.close()
    process.stdout.close()
    try:
        process.wait(FLUSH_MS / 1000 + 3.0)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
