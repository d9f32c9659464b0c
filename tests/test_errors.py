from __future__ import annotations

import inspect
import pickle
import subprocess
import sys

import pytest
from torch.distributed import DistBackendError

from securefabric import errors
from securefabric.errors import PeerLost, SecureFabricError, classify

CLASSES = [getattr(errors, name) for name in errors.__all__ if name[0].isupper()]


@pytest.mark.parametrize("kind", CLASSES)
def test_tree__every_class_is_a_backend_error_with_one_sentence(
    kind: type[SecureFabricError],
) -> None:
    assert issubclass(kind, SecureFabricError)
    assert issubclass(kind, DistBackendError)
    assert issubclass(kind, RuntimeError)
    sentence = inspect.getdoc(kind)
    assert sentence is not None
    assert sentence.endswith(".")
    copy = pickle.loads(pickle.dumps(kind("rank 3")))
    assert type(copy) is kind
    assert str(copy) == "rank 3"


def test_tree__all_names_every_class() -> None:
    defined = {
        name
        for name, value in vars(errors).items()
        if isinstance(value, type) and value.__module__ == errors.__name__
    }
    assert defined | {"classify"} == set(errors.__all__)


def test_classify__native_message_names_the_class() -> None:
    native = DistBackendError("PeerLost: rank 3 at 10.0.0.3:4000 has been silent for 10 s")
    error = classify(native)
    assert type(error) is PeerLost
    assert str(error) == "rank 3 at 10.0.0.3:4000 has been silent for 10 s"
    assert error.__cause__ is native


def test_classify__ours_stays_and_others_are_none() -> None:
    ours = PeerLost("rank 1")
    assert classify(ours) is ours
    assert classify(ValueError("no such thing")) is None
    assert classify(RuntimeError("KeyError: x")) is None


def test_import__works_without_torch() -> None:
    script = (
        "import sys; sys.modules['torch'] = None\n"
        "from securefabric.errors import ConfigError\n"
        "assert issubclass(ConfigError, RuntimeError)"
    )
    subprocess.run([sys.executable, "-c", script], check=True)
