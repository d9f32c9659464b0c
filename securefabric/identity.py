"""Identity ``psk``: the job key file, how it is made and read, and what it proves.

Whoever holds the job key is a member of the job and may claim any rank. The file's text crosses
from here into the native core in a ``bytearray``, which the core wipes; Python keeps no copy.
Identity ``x509`` is in certificates.py.
"""

from __future__ import annotations

import os
import secrets
import stat
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Final, Protocol

if TYPE_CHECKING:
    from ._core import JobKey
    from .errors import ConfigError

__all__ = [
    "KEY_BYTES",
    "SUITES",
    "Identity",
    "PskIdentity",
    "config_error",
    "read_file",
    "read_key_text",
    "suite_provider",
    "suite_refusal",
    "warn_of_failed_providers",
    "write_key_file",
    "write_new_file",
]

SUITES: Final = ("aes-256-gcm", "chacha20-poly1305", "aegis-256x2")
KEY_BYTES: Final = 32
TEXT_BYTES_MAX: Final = 4096  # a key file has about 150 bytes, the rest is room for comments
_MODE: Final = 0o600


class Identity(Protocol):
    """How this process proves what it is, and judges the proofs of others."""

    @property
    def mode(self) -> str:
        """Name of the kind of proof; all ranks of a job use one."""

    @property
    def key_id(self) -> str:
        """Sixteen hexadecimal digits that name the job key and reveal nothing of it, or none."""

    @property
    def job(self) -> str | None:
        """The job that the proof is for, where it says so itself."""

    def evidence(self, message: bytes) -> bytes:
        """Return the proof that this process wrote a message."""

    def check_evidence(self, rank: int, key_id: str, message: bytes, evidence: bytes) -> None:
        """Raise an IdentityError unless ``rank`` wrote the message.

        key_id is what the writer says of its job key; it proves nothing and helps messages.
        """


class PskIdentity:
    """Proves possession of the job key, so membership of the job but no rank."""

    mode: Final = "psk"
    job: Final = None

    def __init__(self, job_key: JobKey, rank: int) -> None:
        self._job_key = job_key
        self._rank = rank

    @property
    def key_id(self) -> str:
        """Name of the job key."""
        return self._job_key.key_id

    def evidence(self, message: bytes) -> bytes:
        """Return the HMAC of the message under a key derived from the job key."""
        return self._job_key.evidence(message)

    def check_evidence(self, rank: int, key_id: str, message: bytes, evidence: bytes) -> None:
        """Raise AuthError unless a holder of the job key wrote the message."""
        from .errors import AuthError

        if self._job_key.verify_evidence(message, evidence):
            return
        own_id = self._job_key.key_id
        if key_id != own_id:
            raise AuthError(
                f"rank {rank} joined with job key {key_id}, this rank (rank {self._rank}) "
                f"holds {own_id}; give both the same key file (SECUREFABRIC_KEY_FILE)"
            )
        raise AuthError(
            f"the entry of rank {rank} in the store is not from a holder of job key {own_id}: "
            "it was altered on its way, or the key files differ under one id; "
            "give every host the same key file and restart"
        )


def write_key_file(path: str, suite: str = SUITES[0]) -> str:
    """Make a job key, write it to a new file with mode 0600, and return its public key id.

    Raises ConfigError when the file exists or cannot be written, or the suite is unknown.
    """
    if suite not in SUITES:
        raise config_error(f"unknown cipher suite {suite!r}; choose one of {', '.join(SUITES)}")
    from ._core import JobKey

    # `bytes` cannot be wiped, so these 32 stay in memory until this process, a short one, ends.
    text = JobKey.format(suite, bytearray(secrets.token_bytes(KEY_BYTES)))
    try:
        write_new_file(path, text)
        return JobKey(text).key_id
    finally:
        text[:] = bytes(len(text))


def suite_refusal(suite: str) -> str | None:
    """Return why this host cannot run a cipher suite; None when it can."""
    from ._core import suites

    return {name: refusal for name, _, refusal in suites()}[suite]


def suite_provider(suite: str) -> str:
    """Return which implementation runs a cipher suite here; empty when this host cannot run it."""
    from ._core import suites

    return {name: provider for name, provider, _ in suites()}[suite] or ""


def warn_of_failed_providers() -> None:
    """Warn of each implementation that failed its self-test, although another one took over."""
    from ._core import provider_failures

    for failure in provider_failures():
        warnings.warn(failure, RuntimeWarning, stacklevel=2)


def read_key_text(path: str) -> bytearray:
    """Return the text of a job key file, after checking that nobody else can read or change it.

    The caller hands the bytearray to the core, which wipes it. Raises ConfigError naming the fix.
    """
    if not path:
        raise config_error(
            "no job key: nothing is ever sent in the clear, so every rank needs one. "
            "Make it once with `securefabric keygen FILE`, give every host the same file, and "
            "name it with `export SECUREFABRIC_KEY_FILE=FILE` or Options(key_file=FILE)"
        )
    return read_file(
        path,
        what="key file",
        bytes_max=TEXT_BYTES_MAX,
        is_secret=True,
        absent=f"make it with `securefabric keygen {path}` and copy it to every host",
        useless="so it is no job key; make one with `securefabric keygen FILE`",
    )


def read_file(
    path: str, *, what: str, bytes_max: int, is_secret: bool, absent: str, useless: str
) -> bytearray:
    """Return the content of a file, after checking who else could read or change it.

    ``what`` names its kind in messages; ``absent`` and ``useless`` say what to do when it is
    missing or its size cannot be right. Raises ConfigError naming the fix.
    """
    try:
        # O_NONBLOCK: opening a pipe by mistake must fail the check below, not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise config_error(f"{what} {path} does not exist; {absent}") from None
    except OSError as error:
        raise config_error(f"cannot open {what} {path}: {error.strerror}") from None
    try:
        status = os.fstat(descriptor)
        _check_file(path, what, status, is_secret=is_secret)
        if not 0 < status.st_size <= bytes_max:
            raise config_error(f"{what} {path} has {status.st_size} bytes, {useless}")
        return _read(path, what, descriptor, status.st_size)
    finally:
        os.close(descriptor)


def write_new_file(path: str, text: bytes | bytearray, mode: int = _MODE) -> None:
    """Write a file that must not exist. Raises ConfigError."""
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, mode)
    except FileExistsError:
        raise config_error(
            f"{path} exists and is not overwritten; remove it first if no job needs it"
        ) from None
    except OSError as error:
        raise config_error(f"cannot create {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            os.fchmod(descriptor, mode)  # the umask may have taken away the owner's bits
            # A full disk may take a part without an error; the write after it says why.
            rest = memoryview(text)
            while rest:
                rest = rest[file.write(rest) :]
            os.fsync(descriptor)
    except OSError as error:
        Path(path).unlink()
        raise config_error(f"cannot write {path}: {error.strerror}") from None


def _check_file(path: str, what: str, status: os.stat_result, *, is_secret: bool) -> None:
    own = os.geteuid()
    mode = stat.S_IMODE(status.st_mode)
    if not stat.S_ISREG(status.st_mode):
        raise config_error(f"{what} {path} is not a regular file")
    if status.st_uid != own and (is_secret or status.st_uid != 0):
        raise config_error(
            f"{what} {path} belongs to user {status.st_uid}, who could change it; "
            f"this process runs as {own}: `chown {own} {path}`"
        )
    if is_secret and mode & 0o077:
        raise config_error(
            f"{what} {path} has mode {mode:04o}, so others may use it: `chmod 600 {path}`"
        )
    if mode & 0o022:
        raise config_error(
            f"{what} {path} has mode {mode:04o}, so others may change it: `chmod go-w {path}`"
        )


def _read(path: str, what: str, descriptor: int, size: int) -> bytearray:
    text = bytearray(size)
    filled = 0
    while filled < size:
        count = os.readv(descriptor, [memoryview(text)[filled:]])
        if count == 0:
            raise config_error(f"{what} {path} became shorter while it was read; try again")
        filled += count
    return text


def config_error(message: str) -> ConfigError:
    """Return the exception; its module is imported late, because making a key needs no torch."""
    from .errors import ConfigError

    return ConfigError(message)
