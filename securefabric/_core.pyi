"""Types of the native module; native/python/<room>_bindings.cc defines what is here."""

from typing import final

class CoreError(RuntimeError):
    """A recoverable failure that is no bad setting; `code` names its kind."""

    code: str

# crypto

@final
class JobKey:
    def __init__(self, text: bytearray) -> None: ...
    @staticmethod
    def format(suite: str, random: bytearray) -> bytearray: ...
    @property
    def key_id(self) -> str: ...
    @property
    def suite(self) -> str: ...
    def evidence(self, message: bytes) -> bytes: ...
    def verify_evidence(self, message: bytes, evidence: bytes) -> bool: ...

# Name, provider, reason of refusal: one of the last two is None.
def suites() -> list[tuple[str, str | None, str | None]]: ...
def providers(suite: str) -> list[str]: ...
def provider_failures() -> list[str]: ...
def secret_memory_status() -> str: ...
def forked_child() -> bool: ...
def aead_seal(
    suite: str, key: bytes, nonce: bytes, aad: bytes, data: bytes, provider: str = ""
) -> bytes: ...
def aead_open(
    suite: str, key: bytes, nonce: bytes, aad: bytes, sealed: bytes, provider: str = ""
) -> bytes | None: ...
def exercise(
    suite: str, packet_bytes: int, packets: int, opens: bool = False, provider: str = ""
) -> None: ...
def hkdf(salt: bytes, secret: bytes, info: bytes, length: int) -> bytes: ...
def x25519_public(private_key: bytes) -> bytes: ...
def x25519_shared(private_key: bytes, peer_public: bytes) -> bytes: ...
def link_secret(
    private_key: bytes,
    peer_public: bytes,
    own_entry: bytes,
    peer_entry: bytes,
    own_is_low: bool,
    job_secret: bytes,
    kem_secret: bytes = b"",
) -> bytes: ...
def path_secret(link: bytes, from_rank: int, to_rank: int, epoch: int, path_id: int) -> bytes: ...

@final
class PathSealer:
    def __init__(
        self, suite: str, path_secret: bytes, path_id: int, generation_bits: int
    ) -> None: ...
    @property
    def next_packet_number(self) -> int: ...
    def seal(self, aad: bytes, parts: list[bytes]) -> bytes: ...
    def begin_epoch(self, path_secret: bytes) -> None: ...

@final
class PathOpener:
    def __init__(
        self, suite: str, path_secret: bytes, path_id: int, generation_bits: int
    ) -> None: ...
    @property
    def auth_failures(self) -> int: ...
    def open(
        self, packet_number: int, aad: bytes, sealed: bytes, epoch: int = 0
    ) -> tuple[str, bytes | None]: ...
    def install_epoch(self, epoch: int, path_secret: bytes) -> None: ...

# sim

@final
class Scenario:
    """Options of one simulated job; `op`, `dtype` and `reduce_op` of None are drawn by the seed."""

    op: str | None
    dtype: str | None
    reduce_op: str | None
    ranks: int
    seed: int
    count: int
    operations: int
    concurrent: int
    sockets: int
    paths: int
    generation_bits: int
    datagram_bytes: int
    is_recorded: bool
    loss: float
    reorder: float
    duplicate: float
    corrupt: float
    rate_bits: int
    queue_bytes: int
    mtu: int
    skew_us: float
    latency_us: float
    jitter_us: float
    reorder_us: float
    loss_burst_us: float
    time_limit: float

    def __init__(self) -> None: ...
    def replay_command(self) -> str: ...

@final
class ScenarioReport:
    @property
    def ok(self) -> bool: ...
    @property
    def failures(self) -> list[str]: ...
    @property
    def trace_hash(self) -> int: ...
    @property
    def virtual_seconds(self) -> float: ...
    @property
    def traffic(self) -> dict[str, int]: ...
    @property
    def drops(self) -> dict[str, int]: ...
    @property
    def links(self) -> dict[str, int]: ...
    @property
    def suite(self) -> str: ...
    @property
    def recording(self) -> list[tuple[int, int, bytes]]: ...
    @property
    def key_log(self) -> list[tuple[bytes, bytes, bytes, int]]: ...

def simulate(scenario: Scenario) -> ScenarioReport: ...
