"""Identity ``psk``: the job key file, how it is made and how it is read.

Whoever holds the job key is a member of the job and may claim any rank. The file's text crosses
from here into the native core in a ``bytearray``, which the core wipes; Python keeps no copy.
"""

from __future__ import annotations

import os
import secrets
import stat
from pathlib import Path
from typing import TYPE_CHECKING, Final

if TYPE_CHECKING:
    from .errors import ConfigError

__all__ = ["KEY_BYTES", "SUITES", "read_key_text", "suite_refusal", "write_key_file"]

SUITES: Final = ("aes-256-gcm", "chacha20-poly1305", "aegis-256x2")
KEY_BYTES: Final = 32
TEXT_BYTES_MAX: Final = 4096  # a key file has about 150 bytes, the rest is room for comments
_MODE: Final = 0o600


def write_key_file(path: str, suite: str = SUITES[0]) -> str:
    """Make a job key, write it to a new file with mode 0600, and return its public key id.

    Raises ConfigError when the file exists or cannot be written, or the suite is unknown.
    """
    if suite not in SUITES:
        raise _config_error(f"unknown cipher suite {suite!r}; choose one of {', '.join(SUITES)}")
    from ._core import JobKey

    # `bytes` cannot be wiped, so these 32 stay in memory until this process, a short one, ends.
    text = JobKey.format(suite, bytearray(secrets.token_bytes(KEY_BYTES)))
    try:
        _write_new_file(path, text)
        return JobKey(text).key_id
    finally:
        text[:] = bytes(len(text))


def suite_refusal(suite: str) -> str | None:
    """Return why this host cannot run a cipher suite; None when it can."""
    from ._core import suites

    return {name: refusal for name, _, refusal in suites()}[suite]


def read_key_text(path: str) -> bytearray:
    """Return the text of a job key file, after checking that nobody else can read or change it.

    The caller hands the bytearray to the core, which wipes it. Raises ConfigError naming the fix.
    """
    if not path:
        raise _config_error(
            "no job key: nothing is ever sent in the clear, so every rank needs one. "
            "Make it once with `securefabric keygen FILE`, give every host the same file, and "
            "name it with `export SECUREFABRIC_KEY_FILE=FILE` or Options(key_file=FILE)"
        )
    try:
        # O_NONBLOCK: opening a pipe by mistake must fail the check below, not hang.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        raise _config_error(
            f"key file {path} does not exist; make it with `securefabric keygen {path}` "
            "and copy it to every host"
        ) from None
    except OSError as error:
        raise _config_error(f"cannot open key file {path}: {error.strerror}") from None
    try:
        size = _check_file(path, os.fstat(descriptor))
        return _read(path, descriptor, size)
    finally:
        os.close(descriptor)


def _write_new_file(path: str, text: bytearray) -> None:
    try:
        descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, _MODE)
    except FileExistsError:
        raise _config_error(
            f"{path} exists and is not overwritten; remove it first if no job needs it"
        ) from None
    except OSError as error:
        raise _config_error(f"cannot create key file {path}: {error.strerror}") from None
    try:
        with os.fdopen(descriptor, "wb", buffering=0) as file:
            os.fchmod(descriptor, _MODE)  # the umask may have taken away the owner's bits
            file.write(text)
            os.fsync(descriptor)
    except OSError as error:
        Path(path).unlink()
        raise _config_error(f"cannot write key file {path}: {error.strerror}") from None


def _check_file(path: str, status: os.stat_result) -> int:
    if not stat.S_ISREG(status.st_mode):
        raise _config_error(f"key file {path} is not a regular file")
    if status.st_uid != os.geteuid():
        raise _config_error(
            f"key file {path} belongs to user {status.st_uid}, who could change it; "
            f"this process runs as {os.geteuid()}: `chown {os.geteuid()} {path}`"
        )
    if stat.S_IMODE(status.st_mode) & 0o077:
        raise _config_error(
            f"key file {path} has mode {stat.S_IMODE(status.st_mode):04o}, so others may use it: "
            f"`chmod 600 {path}`"
        )
    if not 0 < status.st_size <= TEXT_BYTES_MAX:
        raise _config_error(
            f"key file {path} has {status.st_size} bytes, so it is no job key; "
            f"make one with `securefabric keygen FILE`"
        )
    return status.st_size


def _read(path: str, descriptor: int, size: int) -> bytearray:
    text = bytearray(size)
    filled = 0
    while filled < size:
        count = os.readv(descriptor, [memoryview(text)[filled:]])
        if count == 0:
            raise _config_error(f"key file {path} became shorter while it was read; try again")
        filled += count
    return text


def _config_error(message: str) -> ConfigError:
    # Imported late: the exceptions derive from torch's, and making a key must not import torch.
    from .errors import ConfigError

    return ConfigError(message)
