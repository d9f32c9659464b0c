"""The README against the code: its examples run, its commands exist, its tables are complete."""

from __future__ import annotations

import argparse
import dataclasses
import importlib.util
import re
import shlex
from pathlib import Path

import pytest
import torch.distributed as dist
from ranks import run_ranks

from securefabric import cli, errors, launch
from securefabric._torch_autoload import STRICT
from securefabric.options import Options
from securefabric.statistics import Stats

ROOT = Path(__file__).resolve().parent.parent
README = (ROOT / "README.md").read_text()


def blocks(text: str, kind: str) -> list[str]:
    """The fenced blocks of a page that are marked with this word or these words."""
    return re.findall(rf"^```{kind}\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)


def commands(text: str) -> list[list[str]]:
    """Every command line of the shell blocks, without its comment."""
    lines = [line for block in blocks(text, "bash") for line in block.splitlines()]
    return [words for line in lines if (words := shlex.split(line, comments=True))]


EXAMPLES = blocks(README, "python test")


def _run_examples(_rank: int, sources: list[str]) -> None:
    for source in sources:
        exec(compile(source, "README.md", "exec"), {"__name__": "__main__"})
        if dist.is_initialized():
            dist.destroy_process_group()


def test_examples__run_on_two_ranks(key_file: str) -> None:
    # One job for all of them, to be quick; the settings of a process are those of its first group.
    sources = sorted(EXAMPLES, key=lambda source: "pg_options" not in source)
    outcomes = run_ranks(_run_examples, 2, sources, key_file=key_file)
    assert [outcome.error for outcome in outcomes] == [None, None], outcomes


def test_examples__there_are_some() -> None:
    assert len(EXAMPLES) >= 4
    for source in blocks(README, "python"):
        compile(source, "README.md", "exec")


def make_targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


def parse(parser: argparse.ArgumentParser, arguments: list[str]) -> None:
    try:
        parser.parse_args(arguments)
    except SystemExit as stop:
        raise AssertionError(f"{parser.prog} does not take {arguments}") from stop


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md"])
def test_commands__exist(page: str) -> None:
    seen = set()
    for words in commands((ROOT / page).read_text()):
        seen.add(words[0])
        if words[0] == "make":
            assert {word for word in words[1:] if "=" not in word} <= make_targets(), words
        elif words[0] == "securefabric":
            parse(cli._parser(), words[1:])
        if "securefabric.launch" in words:
            parse(launch._parser(), words[words.index("securefabric.launch") + 1 :])
        if "-m" in words and words[words.index("-m") + 1].startswith("securefabric."):
            assert importlib.util.find_spec(words[words.index("-m") + 1]), words
        for word in words:
            if "/" in word and word.endswith(".py"):
                assert (ROOT / word).exists(), words
    assert "make" in seen


def test_variables__are_all_known() -> None:
    twins = {field.metadata["twin"] for field in dataclasses.fields(Options)}
    named = set(re.findall(r"\bSECUREFABRIC_[A-Z_]+[A-Z]\b", README))
    elsewhere = {"SECUREFABRIC_STORE", "SECUREFABRIC_STORE_BIND", STRICT}  # no options yet
    assert named == twins | elsewhere


def test_options_table__is_complete_and_right(clean_environment: pytest.MonkeyPatch) -> None:
    rows = re.findall(r"^\| (`.*?) \| (`.*?) \| (.*?) \|", README, re.MULTILINE)
    listed = {}
    for names, twins, default in rows:
        for name, twin in zip(names.split(", "), twins.split(", "), strict=True):
            listed[name.strip("`")] = (twin.strip("`"), default.strip("`"))
    options = Options()
    for field in dataclasses.fields(Options):
        twin, default = listed.pop(field.name)
        assert twin == field.metadata["twin"]
        value = getattr(options, field.name)
        if isinstance(value, bool):
            assert default == str(int(value))
        elif value != "":
            assert default == f"{value:g}" if isinstance(value, float) else str(value)
    assert not listed


def test_error_samples__name_classes_that_exist() -> None:
    named = set(re.findall(r"^(\w+): ", "\n".join(blocks(README, "text")), re.MULTILINE))
    assert len(named) >= 5
    for name in named:
        assert issubclass(getattr(errors, name), errors.SecureFabricError)


def test_statistics__names_counters_that_exist() -> None:
    assert {"suite", "drops"} <= {field.name for field in dataclasses.fields(Stats)}
    for name in re.findall(r"counted\.(\w+)", README):
        assert hasattr(Stats, name) or name in {field.name for field in dataclasses.fields(Stats)}
