from __future__ import annotations

import dataclasses
import math
import warnings

import pytest

from securefabric.errors import ConfigError
from securefabric.options import Options, options_from, warn_of_unknown_settings

pytestmark = pytest.mark.usefixtures("clean_environment")

OTHER_VALUES: dict[str, tuple[str, object]] = {
    "key_file": ("/tmp/k", "/tmp/k"),
    "job_id": ("night-3", "night-3"),
    "cert_file": ("/c/rank-{rank}.pem", "/c/rank-{rank}.pem"),
    "cert_key_file": ("/c/rank-{rank}.key", "/c/rank-{rank}.key"),
    "ca_file": ("/c/ca.pem", "/c/ca.pem"),
    "suite": ("chacha20-poly1305", "chacha20-poly1305"),
    "post_quantum": ("1", True),
    "interfaces": ("^docker", "^docker"),
    "sockets_per_interface": ("3", 3),
    "ports": ("6000-6007", "6000-6007"),
    "advertise": ("203.0.113.5", "203.0.113.5"),
    "engines": ("2", 2),
    "paths_per_peer": ("8", 8),
    "join_timeout_s": ("5", 5.0),
    "death_timeout_s": ("2.5", 2.5),
    "heartbeat_s": ("0.2", 0.2),
    "epoch_age_s": ("90", 90.0),
    "epoch_bytes": ("4000000", 4_000_000),
    "gso": ("0", False),
    "gro": ("off", False),
    "spin": ("never", "never"),
    "eager_connect": ("1", True),
    "tuning_file": ("/t/tuning.json", "/t/tuning.json"),
    "test_generation_bits": ("6", 6),
}


def twin_of(name: str) -> str:
    fields = {field.name: field for field in dataclasses.fields(Options)}
    twin = fields[name].metadata["twin"]
    assert isinstance(twin, str)
    return twin


def test_options__every_field_is_tried_here() -> None:
    assert set(OTHER_VALUES) == {field.name for field in dataclasses.fields(Options)}


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_options__twin_counts_and_argument_wins(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = getattr(Options(), name)
    text, value = OTHER_VALUES[name]
    monkeypatch.setenv(twin_of(name), text)
    assert getattr(Options(), name) == value
    assert getattr(Options(**{name: default}), name) == default


@pytest.mark.parametrize("name", OTHER_VALUES)
def test_options__empty_twin_means_default(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    default = Options()
    monkeypatch.setenv(twin_of(name), "")
    assert Options() == default


@pytest.mark.parametrize(
    ("changes", "hint"),
    [
        ({"sockets_per_interface": 65}, "between 1 and 64"),
        ({"sockets_per_interface": True}, "type must be int"),
        ({"paths_per_peer": 257}, "between 1 and 256"),
        ({"paths_per_peer": 2.0}, "type must be int"),
        ({"join_timeout_s": 0}, "between"),
        ({"join_timeout_s": math.nan}, "between"),
        ({"join_timeout_s": math.inf}, "between"),
        ({"death_timeout_s": -1.0}, "between"),
        ({"heartbeat_s": 6.0}, "between 0.01 and 5"),
        ({"epoch_age_s": 0}, "between 0.1 and 86400"),
        ({"epoch_age_s": math.inf}, "between 0.1 and 86400"),
        ({"epoch_bytes": 65_535}, "between 65536 and"),
        ({"epoch_bytes": 1 << 61}, "between 65536 and"),
        ({"epoch_bytes": 1e9}, "type must be int"),
        ({"gso": "yes"}, "type must be bool"),
        ({"ports": "7000-6000"}, "before it begins"),
        ({"ports": "http"}, "no port"),
        ({"ports": "0"}, "no port"),
        ({"advertise": "gateway.example"}, "no IP address"),
        ({"advertise": "0.0.0.0"}, "nobody can be reached"),
        ({"advertise": "203.0.113.5:7000"}, "SECUREFABRIC_PORTS"),
        ({"spin": "sometimes"}, "auto, always, never"),
        ({"key_file": None}, "type must be str"),
        ({"job_id": "x" * 65}, "64 bytes"),
        ({"job_id": "a\nb"}, "printable"),
        ({"test_generation_bits": 23}, "between 4 and 22"),
        ({"engines": -1}, "between 0 and 16"),
        ({"engines": 17}, "between 0 and 16"),
    ],
)
def test_options__refuses_unusable_values(changes: dict[str, object], hint: str) -> None:
    with pytest.raises(ConfigError, match=hint) as info:
        Options(**changes)  # type: ignore[arg-type]
    (name,) = changes
    assert twin_of(name) in str(info.value)


@pytest.mark.parametrize(
    ("twin", "text"),
    [
        ("SECUREFABRIC_PATHS_PER_PEER", "four"),
        ("SECUREFABRIC_GSO", "maybe"),
        ("SECUREFABRIC_JOIN_TIMEOUT_S", "1m"),
        ("SECUREFABRIC_EPOCH_AGE_S", "1h"),
        ("SECUREFABRIC_EPOCH_BYTES", "4G"),
        ("SECUREFABRIC_SPIN", "wildly"),
    ],
)
def test_options__names_the_unusable_variable(
    twin: str, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(twin, text)
    with pytest.raises(ConfigError, match=twin):
        Options()


def test_options__has_no_switch_against_encryption() -> None:
    switches = [field.name for field in dataclasses.fields(Options) if isinstance(field.type, str)]
    for word in ("crypt", "plain", "insecure", "verify", "auth"):
        assert not [name for name in switches if word in name]


def test_suite__none_but_the_sealing_ones() -> None:
    for suite in ("none", "null", "aes-256-cbc", "AES-256-GCM"):
        with pytest.raises(ConfigError, match="SECUREFABRIC_SUITE"):
            Options(suite=suite)
    assert Options().suite_for(None) == "aes-256-gcm"
    assert Options(suite="chacha20-poly1305").suite_for(None) == "chacha20-poly1305"
    assert Options().suite_for("chacha20-poly1305") == "chacha20-poly1305"
    with pytest.raises(ConfigError, match="the job key says aes-256-gcm"):
        Options(suite="chacha20-poly1305").suite_for("aes-256-gcm")


def test_effective_job_id__explicit_then_launcher_then_default(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert Options().effective_job_id() == "default"
    monkeypatch.setenv("SLURM_JOB_ID", "17")
    assert Options().effective_job_id() == "17"
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "run-5")
    assert Options().effective_job_id() == "run-5"
    assert Options(job_id="mine").effective_job_id() == "mine"


def test_effective_job_id__unusual_run_ids_become_a_digest(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("TORCHELASTIC_RUN_ID", "x" * 200)
    assert len(Options().effective_job_id()) == 64


def test_options_from__accepts_what_it_documents() -> None:
    assert options_from(None) is None
    options = Options(paths_per_peer=2)
    assert options_from(options) is options
    assert options_from({"paths_per_peer": 2}) == options


def test_options_from__torch_options_of_ours_say_nothing() -> None:
    native = type("Options", (), {"__module__": "securefabric._C"})()
    assert options_from(native) is None


@pytest.mark.parametrize("value", [3, "fast", [("gso", False)], object()])
def test_options_from__refuses_other_types(value: object) -> None:
    with pytest.raises(ConfigError, match=r"pass securefabric\.Options"):
        options_from(value)


def test_options_from__names_unknown_settings() -> None:
    with pytest.raises(ConfigError, match=r"unknown settings: encrypt, pathes; known are"):
        options_from({"pathes": 2, "encrypt": False, "gso": True})


# warn_of_unknown_settings


def test_warn_of_unknown_settings__names_the_nearest(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECUREFABRIC_KEYFILE", "/tmp/k")
    with pytest.warns(UserWarning, match=r"SECUREFABRIC_KEYFILE.*did you mean SECUREFABRIC_KEY_FI"):
        warn_of_unknown_settings()
    monkeypatch.delenv("SECUREFABRIC_KEYFILE")
    monkeypatch.setenv("SECUREFABRIC_QQQ", "1")
    with pytest.warns(UserWarning, match=r"^SECUREFABRIC_QQQ is no setting of securefabric$"):
        warn_of_unknown_settings()


def test_warn_of_unknown_settings__all_that_there_are_are_known(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("SECUREFABRIC_STORE", "SECUREFABRIC_STRICT", *map(twin_of, OTHER_VALUES)):
        monkeypatch.setenv(name, "1")
    monkeypatch.delenv("SECUREFABRIC_VECTORS", raising=False)  # names test data, no setting
    monkeypatch.setenv("SECUREFABRICS", "somebody else's")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_unknown_settings()
