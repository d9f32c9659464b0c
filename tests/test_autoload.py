from __future__ import annotations

import os
import subprocess
import sys

import pytest

AS_TORCH_DOES = "import securefabric._torch_autoload as a; a.autoload();"


def run(script: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Run Python as a user would, in a process that has imported nothing yet."""
    return subprocess.run(
        [sys.executable, "-W", "always", "-c", script],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )


def succeeds(script: str, **environment: str) -> None:
    done = run(script, **environment)
    assert done.returncode == 0, done.stderr
    assert "securefabric is unavailable" not in done.stderr


CHECK = (
    "import torch.distributed as dist;"
    "assert dist.is_backend_available('securefabric');"
    "assert dist.Backend.SECUREFABRIC == 'securefabric';"
    "assert 'securefabric' in dist.Backend.backend_capability;"
    "assert dist.Backend.backend_capability['securefabric'] == ['cpu', 'cuda']"
)


def test_autoload__registers_and_may_be_called_again() -> None:
    succeeds("import torch;" + AS_TORCH_DOES + AS_TORCH_DOES + CHECK)


ENCRYPTED = "SECUREFABRIC_STORE"
MEETS = (
    "import os, torch.distributed as dist;"
    "import securefabric._torch_autoload as a;"
    "a._store_rendezvous = lambda url, timeout=None, **_: iter([('sealed', 0, 1)]);"
    "os.environ.update(RANK='0', WORLD_SIZE='1', MASTER_ADDR='127.0.0.1', MASTER_PORT='0');"
    "meet = lambda: next(iter(dist.rendezvous('env://')))[0];"
)


@pytest.mark.parametrize("autoload", ["1", "0"])
def test_store__the_variable_counts_when_ranks_meet(autoload: str) -> None:
    script = (
        "import torch, securefabric;" + MEETS + "assert meet() == 'sealed';"
        f"del os.environ['{ENCRYPTED}'];"
        "assert isinstance(meet(), dist.Store);"
        f"os.environ['{ENCRYPTED}'] = 'encrypted';"
        "assert meet() == 'sealed'"
    )
    succeeds(script, TORCH_DEVICE_BACKEND_AUTOLOAD=autoload, **{ENCRYPTED: "encrypted"})


def test_autoload__leaves_the_default_backends_alone() -> None:
    script = "assert dist.Backend.default_device_backend_map.get('cpu') == 'gloo'"
    succeeds("import torch;" + AS_TORCH_DOES + CHECK + ";" + script)


def test_import__registers_when_torch_is_there() -> None:
    succeeds("import torch, securefabric;" + CHECK)


def test_import__registers_when_torchs_autoload_is_off() -> None:
    succeeds("import securefabric;" + CHECK, TORCH_DEVICE_BACKEND_AUTOLOAD="0")


def test_import__does_not_import_torch_by_itself() -> None:
    succeeds(
        "import sys, securefabric; assert 'torch' not in sys.modules",
        TORCH_DEVICE_BACKEND_AUTOLOAD="1",
    )


def test_autoload__does_not_load_the_native_core() -> None:
    succeeds(
        "import torch, sys;" + AS_TORCH_DOES + "assert 'securefabric._C' not in sys.modules;"
        "assert 'securefabric._core' not in sys.modules"
    )


def test_autoload__never_raises() -> None:
    script = (
        "import torch, torch.distributed as dist\n"
        "def refuse(*a, **k): raise OSError('no')\n"
        "del dist.Backend._plugins['SECUREFABRIC']\n"
        "dist.Backend.register_backend = refuse\n" + AS_TORCH_DOES
    )
    done = run("import torch;" + AS_TORCH_DOES + "\n" + script)
    assert done.returncode == 0, done.stderr
    assert "securefabric is unavailable: no" in done.stderr


def test_autoload__refuses_torchcomms_by_name() -> None:
    script = (
        "import torch.distributed.distributed_c10d as c10d\n"
        "c10d.Backend._plugins.pop('SECUREFABRIC', None)\n"
        "c10d._use_torchcomms_enabled = lambda: True\n" + AS_TORCH_DOES + "\n"
        "assert 'SECUREFABRIC' not in c10d.Backend._plugins"
    )
    done = run(script)
    assert done.returncode == 0, done.stderr
    assert "unset TORCH_DISTRIBUTED_USE_TORCHCOMMS" in done.stderr


def test_all__every_public_name_is_there_and_documented() -> None:
    import securefabric

    for name in securefabric.__all__:
        assert getattr(securefabric, name) is not None
    assert set(securefabric.__all__) == set(dir(securefabric))
    assert securefabric.stats.__doc__
    with pytest.raises(AttributeError, match="no attribute 'encryption'"):
        _ = securefabric.encryption
