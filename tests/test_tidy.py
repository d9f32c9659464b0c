"""The tree against its own rules: who may include what, who may touch the system, how long is long.

A ratchet: an exception is listed with its reason and its present measure. It may shrink, in which
case the list shrinks with it; a new one needs a reason that a reader accepts.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
NATIVE = ROOT / "native"

FUNCTION_LINES_MAX = 70
FILE_LINES_MAX = 600
LINE_CHARACTERS_MAX = 100

# file: (longest function, reason)
LONG_FUNCTIONS: dict[str, tuple[int, str]] = {}
# file: (lines, reason)
LONG_FILES: dict[str, tuple[int, str]] = {}

# What only some files may use: a pattern over code without comments and strings, and who may.
ALLOWED_ONLY = [
    (
        "clocks",
        r"\bclock_gettime\b|\bgettimeofday\b|\b(steady|system|high_resolution)_clock\b"
        r"|\b(std::|::)time\(|\b__rdtsc\b",
        {"native/net/clock.cc"},
    ),
    (
        "entropy",
        r"\bgetrandom\b|\bRAND_(priv_)?bytes\b|#include <random>|#include <sys/random\.h>",
        {"native/net/entropy.cc"},
    ),
    (
        "sockets and polling",
        r"#include <(sys/(socket|epoll|eventfd|timerfd|ioctl|uio)|netinet/\w+|arpa/inet|ifaddrs"
        r"|net/if|poll)\.h>",
        {"native/net/"},
    ),
    (
        "threads",
        r"#include <(thread|condition_variable|future|semaphore|barrier|sched\.h)>"
        r"|\bstd::j?thread\b|\bpthread_create\b",
        {
            "native/net/",
            "native/torch/work.h",  # wait_for_pending_works waits for others' works
        },
    ),
    (
        "locks",
        r"#include <(mutex|shared_mutex|pthread\.h)>",
        {
            "native/net/",
            "native/crypto/secret.cc",  # the arena serves every thread, and must survive fork()
            # Calls of one group may come from several threads, and go on on others.
            "native/torch/backend.h",
            "native/torch/issue_queue.h",
            "native/torch/phase.h",
            "native/torch/sparse.h",
            "native/torch/work.h",
        },
    ),
    (
        "system calls",
        r"#include <(unistd|fcntl|sys/mman|sys/stat|sys/syscall|signal)\.h>"
        r"|\b(mmap|mlock|madvise|fork|syscall)\(",
        {
            "native/net/",
            "native/crypto/secret.cc",  # memory that is locked and that no child inherits
        },
    ),
    ("torch", r"#include <(torch|ATen|c10)/|\b(c10|c10d|at)::", {"native/torch/"}),
    ("Python", r"#include <(pybind11/|Python\.h)", {"native/torch/", "native/python/"}),
    ("OpenSSL", r"#include <openssl/", {"native/crypto/"}),
    ("the environment", r"\b(secure_)?getenv\(", set()),
    ("printing", r"\b(std::)?(printf|puts)\(|\bstd::(cout|cerr)\b", set()),
    ("unseeded randomness", r"\brandom_device\b|\bs?rand(om)?\(\)|\bdrand48\b|\bmt19937", set()),
]

# Native sources without a test file of their own, and where they are tested instead.
TESTED_ELSEWHERE = {
    "net/fabric_resolve.cc": "fabric_test.cc, fabric_engines_test.cc",
    "base/check.cc": "stops the process: the death tests of bytes_test.cc and result_test.cc",
    "collective/engine.cc": "tests/native/sim: whole clusters of engines",
    "collective/engine_failures.cc": "tests/native/sim/{failures,mismatch,leaving}_test.cc",
    "collective/engine_steps.cc": "tests/native/sim/{collectives,messages}_test.cc",
    "collective/matching.cc": "tests/native/sim/messages_test.cc",
    "collective/operation.cc": "tests/native/sim/collectives_test.cc",
    "crypto/kernels_aesni.cc": "aead_fused_test.cc",
    "crypto/kernels_avx512.cc": "aead_fused_test.cc, on CPUs that have it",
    "crypto/kernels_vaes.cc": "aead_fused_test.cc, on any x86 CPU with AVX2",
    "net/socket_calls.cc": "three forwards to the kernel: udp_socket_test.cc",
    "net/socket_options.cc": "udp_socket_test.cc",
    "python/core_module.cc": "tests/test_crypto.py, tests/test_stubs.py",
    "python/crypto_bindings.cc": "tests/test_crypto.py, tests/test_vectors.py",
    "python/sim_bindings.cc": "the Python tests of the simulator",
    "sim/board.cc": "every cluster test",
    "sim/cluster.cc": "every test in tests/native/sim",
    "sim/elements.cc": "the oracle itself; call_test.cc compares it",
    "sim/event_text.cc": "scenario_knobs_test.cc",
    "sim/scenario_text.cc": "scenario_test.cc",
    "torch/arguments.cc": "tests/contract_backend.py",
    "torch/backend.cc": "whole jobs on real processes: tests/test_failures.py",
    "torch/call.cc": "as backend.cc",
    "torch/claims.cc": "tests/contract_coalesced.py",
    "torch/collectives.cc": "tests/contract_movement.py, tests/contract_reductions.py",
    "torch/device_stage.cc": "nowhere yet: it needs a GPU (docs/SUPPORT.md)",
    "torch/errors.cc": "tests/test_failures.py",
    "torch/issue_queue.cc": "tests/contract_backend.py",
    "torch/messages.cc": "tests/contract_messages.py, tests/contract_backend.py",
    "torch/module.cc": "tests/test_stubs.py, tests/test_fabric.py",
    "torch/sparse.cc": "tests/contract_backend.py",
    "torch/store_prefix.cc": "tests/test_group_identity.py",
    "torch/store.cc": "tests/test_store.py, with torch's TCPStore as oracle",
    "torch/tensors.cc": "as backend.cc",
    "torch/signals.cc": "tests/test_signals.py",
    "torch/work.cc": "as backend.cc",
}

DOCUMENTS = [
    "README.md",
    "CONTRIBUTING.md",
    "CHANGELOG.md",
    "LICENSE",
    "docs/RENDEZVOUS.md",
    "docs/SECURITY.md",
    "docs/SUPPORT.md",
    "native/ARCHITECTURE.md",
    "native/PROTOCOL.md",
]
CODE_FOLDERS = ("native", "securefabric", "tests", "bench", "examples", "tools")


def files(*suffixes: str, folders: tuple[str, ...] = CODE_FOLDERS) -> list[Path]:
    return sorted(
        path
        for folder in folders
        for path in (ROOT / folder).rglob("*")
        if path.suffix in suffixes and path.is_file() and "__pycache__" not in path.parts
    )


def name_of(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def is_allowed(name: str, owners: set[str]) -> bool:
    return any(
        name == owner or (owner.endswith("/") and name.startswith(owner)) for owner in owners
    )


# One pass that understands what a comment and a string may hide from each other.
_TOKENS = re.compile(
    r"//[^\n]*|/\*.*?\*/|R\"(\w*)\(.*?\)\1\"|\"(?:\\.|[^\"\\\n])*\"|'(?:\\.|[^'\\\n])+'", re.DOTALL
)


def without_comments(text: str) -> str:
    """C++ with comments blanked and strings emptied; every line stays on its line."""

    def blank(match: re.Match[str]) -> str:
        token = match.group()
        # An include's name and a digit separator are no strings.
        if token.startswith('"'):
            is_include = text.rfind("#include", text.rfind("\n", 0, match.start()) + 1) != -1
            line = text[text.rfind("\n", 0, match.start()) + 1 : match.start()]
            return token if is_include and line.startswith("#include") else '""'
        return "\n" * token.count("\n") if not token.startswith("'") else "' '"

    return _TOKENS.sub(blank, re.sub(r"(?<=[0-9a-fA-F])'(?=[0-9a-fA-F])", "", text))


# The edges of CMakeLists.txt


def declared_edges() -> dict[str, set[str]]:
    text = (ROOT / "CMakeLists.txt").read_text()
    rooms = re.findall(r"^sf_room\(([^)]*)\)", text, re.MULTILINE)
    edges = {words.split()[0]: set(words.split()[1:]) for words in rooms}
    # The two extensions have lists of their own; what they link brings base along.
    bound = re.search(r"set\(bound_rooms ([^)]*)\)", (NATIVE / "python/CMakeLists.txt").read_text())
    assert bound
    edges["python"] = {"base", *bound.group(1).split()}
    torch = (NATIVE / "torch/CMakeLists.txt").read_text()
    linked = re.search(r"target_link_libraries\(_C ([^)]*)\)", torch)
    assert linked
    edges["torch"] = {"base", *re.findall(r"\bsf_(\w+)", linked.group(1))} & set(edges)
    return edges


def test_rooms__every_folder_is_a_room_that_the_build_knows() -> None:
    folders = {path.name for path in NATIVE.iterdir() if path.is_dir()}
    assert folders == set(declared_edges())


def test_rooms__edges_have_no_circle() -> None:
    left = declared_edges()
    while left:
        free = [room for room, below in left.items() if not below & set(left)]
        assert free, f"a circle among {sorted(left)}"
        for room in free:
            del left[room]


def test_includes__stay_inside_the_edges() -> None:
    edges = declared_edges()
    wrong = []
    for path in files(".cc", ".h", folders=("native",)):
        room = path.relative_to(NATIVE).parts[0]
        for included in re.findall(r'#include "(\w+)/', without_comments(path.read_text())):
            if included not in edges[room] | {room}:
                wrong.append(f"{name_of(path)} includes {included}/, which {room} may not know")
    assert not wrong, "\n".join(wrong)


def test_includes__native_tests_see_their_room_and_what_it_links() -> None:
    edges = declared_edges()

    def closure(room: str) -> set[str]:
        return {room}.union(*(closure(below) for below in edges[room]))

    wrong = []
    for path in files(".cc", ".h", folders=("tests/native",)):
        room = path.relative_to(ROOT / "tests/native").parts[0]
        for included in re.findall(r'#include "(\w+)/', path.read_text()):
            if included not in closure(room):
                wrong.append(f"{name_of(path)} includes {included}/")
    assert not wrong, "\n".join(wrong)


# Who may touch what


@pytest.mark.parametrize(("what", "pattern", "owners"), ALLOWED_ONLY, ids=lambda v: str(v)[:24])
def test_native__only_the_listed_files_use(what: str, pattern: str, owners: set[str]) -> None:
    found = []
    for path in files(".cc", ".h", folders=("native",)):
        if is_allowed(name_of(path), owners):
            continue
        for number, line in enumerate(without_comments(path.read_text()).split("\n"), start=1):
            if re.search(pattern, line):
                found.append(f"{name_of(path)}:{number}: {what}: {line.strip()}")
    assert not found, "\n".join(found)


def test_python__package_starts_no_threads_and_prints_only_at_the_command_line() -> None:
    printing = {"cli.py", "launch.py", "tune.py", "command.py"}
    found = []
    for path in files(".py", folders=("securefabric",)):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr in {"Thread", "Timer"}:
                found.append(f"{name_of(path)}:{node.lineno}: {node.attr}")
            if isinstance(node, ast.Name) and node.id == "print" and path.name not in printing:
                found.append(f"{name_of(path)}:{node.lineno}: print")
    assert not found, "\n".join(found)


# Lengths


def cpp_functions(text: str) -> Iterator[tuple[int, int]]:
    """First and last line of every function body; what is nested in a function belongs to it.

    A brace opens a function when the text before it, back to the last brace or semicolon, has
    parentheses and declares no scope. That is enough for code that clang-format has laid out.
    """
    depth_of_function: int | None = None
    depth = 0
    head = ""
    line = first = 1
    for character in without_comments(text):
        if character == "\n":
            line += 1
        if character == "{":
            declares_scope = re.search(r"\b(namespace|class|struct|enum|union|extern)\b", head)
            is_value = re.search(r"=\s*$", head)
            if depth_of_function is None and "(" in head and not declares_scope and not is_value:
                depth_of_function, first = depth, line - head.strip("\n").count("\n")
            depth += 1
        elif character == "}":
            depth -= 1
            if depth == depth_of_function:
                yield first, line
                depth_of_function = None
        head = "" if character in "{};" else head + character


def test_cpp_functions__finds_what_a_reader_would() -> None:
    text = """
namespace a {
struct S { int x = f(1); int get() const { return x; } };
int f(int a,
      int b) {
  if (a) { return 1; }  // { not this
  return "{"[0];
}
constexpr int kTable[] = {1, 2};
}
"""
    assert list(cpp_functions(text)) == [(3, 3), (4, 8)]


def longest_functions() -> dict[str, tuple[int, int]]:
    """Length and first line of each file's longest function."""
    longest = {}
    for path in files(".cc", ".h", ".py"):
        text = path.read_text()
        if path.suffix == ".py":
            spans = [
                (node.lineno, node.end_lineno or node.lineno)
                for node in ast.walk(ast.parse(text))
                if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)
            ]
        else:
            spans = list(cpp_functions(text))
        if spans:
            longest[name_of(path)] = max((last - first + 1, first) for first, last in spans)
    return longest


def test_functions__fit_on_a_screen() -> None:
    wrong = []
    for name, (lines, first) in longest_functions().items():
        allowed, _ = LONG_FUNCTIONS.get(name, (FUNCTION_LINES_MAX, ""))
        if lines > allowed:
            wrong.append(f"{name}:{first}: a function of {lines} lines, at most {allowed}")
    assert not wrong, "\n".join(wrong)


def test_files__are_one_idea_long() -> None:
    wrong = []
    for path in files(".cc", ".h", ".py", ".sh"):
        lines = len(path.read_text().splitlines())
        allowed, _ = LONG_FILES.get(name_of(path), (FILE_LINES_MAX, ""))
        if lines > allowed:
            wrong.append(f"{name_of(path)}: {lines} lines, at most {allowed}")
    assert not wrong, "\n".join(wrong)


def test_exceptions__are_still_needed() -> None:
    longest = longest_functions()
    stale = [
        name for name in LONG_FUNCTIONS if longest.get(name, (0, 0))[0] <= FUNCTION_LINES_MAX
    ] + [
        name
        for name in LONG_FILES
        if not (ROOT / name).exists()
        or len((ROOT / name).read_text().splitlines()) <= FILE_LINES_MAX
    ]
    assert not stale, f"take these off the lists: {stale}"


def test_lines__fit_the_page() -> None:
    wrong = [
        f"{name_of(path)}:{number}: {len(line)} characters"
        for path in files(".cc", ".h", ".py", ".pyi", ".sh")
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if len(line) > LINE_CHARACTERS_MAX
    ]
    assert not wrong, "\n".join(wrong)


# Words, tests and documents


def all_texts() -> list[Path]:
    documents = [ROOT / name for name in DOCUMENTS if (ROOT / name).exists()]
    build = [ROOT / name for name in ("CMakeLists.txt", "Makefile", "pyproject.toml")]
    code = files(".cc", ".h", ".py", ".pyi", ".sh", ".txt", ".md", folders=CODE_FOLDERS)
    return sorted({*documents, *build, *code})


def test_texts__hold_no_unfinished_business() -> None:
    mark = re.compile(r"\b(TO" + r"DO|FIX" + r"ME|XX" + r"X|HA" + r"CK)\b")
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in all_texts()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if mark.search(line)
    ]
    assert not found, "\n".join(found)


def test_texts__name_no_path_of_one_machine() -> None:
    path_of_a_machine = re.compile(r"(?<![\w.])/(home|root|work|Users|mnt|scratch)/\w")
    found = [
        f"{name_of(path)}:{number}: {line.strip()}"
        for path in all_texts()
        for number, line in enumerate(path.read_text().splitlines(), start=1)
        if path_of_a_machine.search(line)
    ]
    assert not found, "\n".join(found)


def test_native_sources__have_their_test_file() -> None:
    untested = set()
    for path in files(".cc", folders=("native",)):
        inside = path.relative_to(NATIVE)
        if not (ROOT / "tests/native" / inside.parent / f"{inside.stem}_test.cc").exists():
            untested.add(inside.as_posix())
    missing = sorted(untested - set(TESTED_ELSEWHERE))
    assert not missing, f"no test file, and no word on where they are tested: {missing}"
    stale = sorted(set(TESTED_ELSEWHERE) - untested)
    assert not stale, f"take these off TESTED_ELSEWHERE: {stale}"


@pytest.mark.parametrize("name", DOCUMENTS)
def test_documents__are_there(name: str) -> None:
    assert (ROOT / name).stat().st_size > 500


@pytest.mark.parametrize("name", [name for name in DOCUMENTS if name.endswith(".md")])
def test_documents__name_files_that_exist(name: str) -> None:
    text = (ROOT / name).read_text()
    named = set(re.findall(r"`([\w./-]+/[\w.-]+\.(?:cc|h|py|sh|md|txt|toml|pyi))`", text))
    links = set(re.findall(r"\]\((?!https?:|#)([^)#]+)", text))
    places = (ROOT, (ROOT / name).parent, ROOT / "native")
    missing = [
        target
        for target in sorted(named | links)
        if not any((place / target).exists() for place in places)
    ]
    assert not missing, f"{name} names {missing}"


def test_architecture__describes_every_room() -> None:
    text = (NATIVE / "ARCHITECTURE.md").read_text()
    missing = [room for room in declared_edges() if f"`{room}`" not in text]
    assert not missing


def test_protocol__has_the_sections_that_the_code_cites() -> None:
    headings = set(re.findall(r"^#+ ([0-9.]+)", (NATIVE / "PROTOCOL.md").read_text(), re.MULTILINE))
    headings = {heading.rstrip(".") for heading in headings}
    cited = {
        (name_of(path), number)
        for path in files(".cc", ".h", ".py")
        for number in re.findall(r"PROTOCOL\.md §([0-9]+(?:\.[0-9]+)?)", path.read_text())
    }
    assert cited
    wrong = sorted(f"{name} cites §{number}" for name, number in cited if number not in headings)
    assert not wrong


def test_changelog__starts_with_the_present_version() -> None:
    version = re.search(r'__version__ = "(.+?)"', (ROOT / "securefabric/_version.py").read_text())
    assert version
    first = re.search(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)
    assert first
    assert version.group(1).startswith(first.group(1))
