"""entries_fuzz.py under atheris; takes libFuzzer's options and corpora."""

from __future__ import annotations

import sys

import atheris

with atheris.instrument_imports(include=["securefabric", "entries_fuzz"]):
    import entries_fuzz

atheris.Setup(sys.argv, entries_fuzz.check)
atheris.Fuzz()
