"""Every exception of securefabric, in one file.

Errors that Python raises (settings, key files, roster entries) are instances of these classes.
Errors of an operation come out of ``work.wait()``, whose binding belongs to torch: they arrive as
plain ``torch.distributed.DistBackendError`` with a message that begins with the name of one of
these classes ("PeerLost: ..."). ``classify`` turns such an error into an instance of that class.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

__all__ = [
    "AuthError",
    "BadRank",
    "CertificateError",
    "CertificateExpired",
    "CertificateMismatch",
    "CertificateUntrusted",
    "ConfigError",
    "DuplicateRank",
    "ForkError",
    "GroupAborted",
    "IdentityError",
    "JobMismatch",
    "JoinTimeout",
    "MalformedEntry",
    "OperationMismatch",
    "OperationTimeout",
    "PeerLost",
    "PolicyMismatch",
    "SecureFabricError",
    "StoreLimit",
    "StoreUnavailable",
    "classify",
]

if TYPE_CHECKING:
    from torch.distributed import DistBackendError as _Base
else:
    try:
        from torch.distributed import DistBackendError as _Base
    except ImportError:  # no torch: the command line still works, elastic launchers do not matter
        _Base = RuntimeError


class SecureFabricError(_Base):
    """Anything that securefabric refuses or fails to do."""


class ConfigError(SecureFabricError):
    """A setting, a key file or the environment is unusable; the message says how to mend it."""


class IdentityError(SecureFabricError):
    """A peer's entry in the roster cannot be accepted."""


class MalformedEntry(IdentityError):
    """A roster entry is not the strict encoding that every rank writes."""


class AuthError(IdentityError):
    """A roster entry's evidence does not verify: another job key, or an entry that was altered."""


class CertificateError(IdentityError):
    """A certificate is not of the kind that a rank needs."""


class CertificateExpired(CertificateError):
    """A certificate is expired or not yet valid, by this host's clock."""


class CertificateMismatch(CertificateError):
    """A certificate is valid, but for another rank, job or trust domain."""


class CertificateUntrusted(CertificateError):
    """A certificate does not lead to a CA of the job."""


class JobMismatch(IdentityError):
    """A peer proved its identity but belongs to another job, or to a world of another size."""


class PolicyMismatch(IdentityError):
    """A peer runs another protocol version, cipher suite or packet policy."""


class BadRank(IdentityError):
    """A peer claims a rank that is not the asked one, or lies outside of the world."""


class DuplicateRank(IdentityError):
    """Two processes claim one rank, or one process claims two."""


class StoreUnavailable(SecureFabricError):
    """The group's store does not answer: the process that hosts it is gone or unreachable."""


class StoreLimit(SecureFabricError):
    """What a store was asked to hold passes one of its bounds; nothing was changed."""


class JoinTimeout(SecureFabricError):
    """A rank did not appear in the group's store within the join timeout."""


class PeerLost(SecureFabricError):
    """A peer that took part has been silent for the death timeout, or said that it gave up."""


class OperationMismatch(SecureFabricError):
    """Ranks disagree about the operation, its dtype, size, reduce op or root."""


class OperationTimeout(SecureFabricError):
    """An operation did not complete within its timeout; its group is unusable from then on."""


class GroupAborted(SecureFabricError):
    """The group was given up, by this rank or another, while the operation was under way."""


class ForkError(SecureFabricError):
    """A forked child used its parent's fabric; keys must never be used by two processes."""


def classify(error: BaseException) -> SecureFabricError | None:
    """Return the error as the class that its message begins with; None when it is not ours."""
    if isinstance(error, SecureFabricError):
        return error
    name, colon, message = str(error).partition(": ")
    kind = _BY_NAME.get(name) if colon else None
    if kind is None:
        return None
    classified = kind(message)
    classified.__cause__ = error
    return classified


def _tree(kind: type[SecureFabricError]) -> dict[str, type[SecureFabricError]]:
    found = {kind.__name__: kind}
    for below in kind.__subclasses__():
        found.update(_tree(below))
    return found


_BY_NAME = _tree(SecureFabricError)
