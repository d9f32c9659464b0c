from __future__ import annotations

import os
import stat
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from securefabric import _core, identity
from securefabric._core import JobKey
from securefabric.errors import ConfigError
from securefabric.identity import (
    SUITES,
    TEXT_BYTES_MAX,
    read_key_text,
    suite_provider,
    suite_refusal,
    write_key_file,
)


@pytest.mark.parametrize("suite", SUITES)
def test_write_key_file__makes_a_private_file_that_the_core_reads(
    tmp_path: Path, suite: str
) -> None:
    path = tmp_path / "job.key"
    old_umask = os.umask(0)  # the mode must not depend on it
    try:
        key_id = write_key_file(str(path), suite)
    finally:
        os.umask(old_umask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    text = read_key_text(str(path))
    key = JobKey(text)
    assert (key.key_id, key.suite) == (key_id, suite)
    assert not any(text)


def test_write_key_file__strict_umask_leaves_the_owner_access(tmp_path: Path) -> None:
    old_umask = os.umask(0o777)
    try:
        write_key_file(str(tmp_path / "job.key"))
    finally:
        os.umask(old_umask)
    assert read_key_text(str(tmp_path / "job.key"))


def test_write_key_file__every_key_is_new(tmp_path: Path) -> None:
    ids = {write_key_file(str(tmp_path / f"{i}.key")) for i in range(8)}
    texts = {(tmp_path / f"{i}.key").read_text() for i in range(8)}
    assert len(ids) == len(texts) == 8


def test_write_key_file__never_overwrites(key_file: str, tmp_path: Path) -> None:
    before = Path(key_file).read_bytes()
    with pytest.raises(ConfigError, match="not overwritten"):
        write_key_file(key_file)
    assert Path(key_file).read_bytes() == before
    (tmp_path / "link").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(ConfigError, match="not overwritten"):
        write_key_file(str(tmp_path / "link"))
    assert not (tmp_path / "elsewhere").exists()


def test_write_key_file__says_why_it_cannot(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot create "):
        write_key_file(str(tmp_path / "absent" / "job.key"))
    with pytest.raises(ConfigError, match="choose one of aes-256-gcm"):
        write_key_file(str(tmp_path / "job.key"), "rot13")


def with_mode(mode: int) -> Callable[[Path], None]:
    return lambda path: path.chmod(mode)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir(mode=0o700)


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path, 0o600)


def as_large_file(path: Path) -> None:
    path.write_bytes(b"#" * (TEXT_BYTES_MAX + 1))


def as_foreign_file(path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away")
    os.chown(path, 12345, -1)


@pytest.mark.parametrize(
    ("damage", "hint"),
    [
        (with_mode(0o644), "mode 0644.*chmod 600 "),
        (with_mode(0o640), "mode 0640.*chmod 600 "),
        (with_mode(0o602), "chmod 600 "),
        (as_folder, "not a regular file"),
        (as_pipe, "not a regular file"),
        (lambda path: path.unlink(), "does not exist.*securefabric keygen "),
        (lambda path: path.write_bytes(b""), "0 bytes.*securefabric keygen"),
        (as_large_file, f"{TEXT_BYTES_MAX + 1} bytes.*securefabric keygen"),
        (as_foreign_file, "belongs to user 12345.*chown 0 "),
    ],
)
def test_read_key_text__refuses_and_names_the_fix(
    damage: Callable[[Path], None], hint: str, key_file: str
) -> None:
    damage(Path(key_file))
    with pytest.raises(ConfigError, match=hint) as info:
        read_key_text(key_file)
    assert key_file in str(info.value)


def test_read_key_text__no_key_names_both_commands() -> None:
    with pytest.raises(ConfigError, match=r"securefabric keygen.*SECUREFABRIC_KEY_FILE"):
        read_key_text("")


def test_read_key_text__follows_links_as_secret_mounts_have_them(
    key_file: str, tmp_path: Path
) -> None:
    (tmp_path / "link").symlink_to(key_file)
    assert read_key_text(str(tmp_path / "link")) == Path(key_file).read_bytes()


def test_read_key_text__core_refuses_a_short_key_without_showing_it(key_file: str) -> None:
    path = Path(key_file)
    secret = path.read_text().split("key: ")[1].strip()
    path.write_text(path.read_text().replace(secret, secret[:16]))
    with pytest.raises(ValueError, match="securefabric keygen") as info:
        JobKey(read_key_text(key_file))
    assert secret[:16] not in str(info.value)


def test_write_key_file__a_full_disk_leaves_nothing_behind(tmp_path: Path) -> None:
    script = (
        "import resource, signal, sys\n"
        "from securefabric.cli import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (50, 50))\n"  # less than a key file
        "sys.exit(main(['keygen', 'job.key']))"
    )
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode != 0
    assert "cannot write job.key: File too large" in done.stderr
    assert not list(tmp_path.iterdir())


def test_module__making_a_key_does_not_import_torch(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from securefabric.cli import main\n"
        f"assert main(['keygen', {str(tmp_path / 'job.key')!r}]) == 0\n"
        "assert 'torch' not in sys.modules"
    )
    environment = {**os.environ, "TORCH_DEVICE_BACKEND_AUTOLOAD": "1"}
    subprocess.run([sys.executable, "-c", script], check=True, env=environment)


def test_warn_of_failed_providers__says_each(monkeypatch: pytest.MonkeyPatch) -> None:
    identity.warn_of_failed_providers()  # a sound machine: nothing to say
    monkeypatch.setattr(_core, "provider_failures", lambda: ["the vaes provider failed"])
    with pytest.warns(RuntimeWarning, match="the vaes provider failed"):
        identity.warn_of_failed_providers()


def test_suite_provider__is_empty_exactly_where_the_suite_is_refused() -> None:
    for suite in SUITES:
        assert (suite_provider(suite) == "") == (suite_refusal(suite) is not None)
