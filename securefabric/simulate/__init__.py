"""Run collectives of a simulated job over a faulty network, in virtual time, and check them.

    python -m securefabric.simulate --list
    python -m securefabric.simulate link-cut --seed 7
    python -m securefabric.simulate --ranks 4 --op all_reduce --count 100000 \
        --loss 0.2 --reorder 0.2 --duplicate 0.2 --corrupt 0.01 --seed 7

The ranks are the same native engines that run on sockets, keys and ciphers included; only clock and
network are simulated. Every result is compared with one computed naively, no packet number may be
sealed twice, no datagram may hold plaintext, nothing may be in flight beyond its window. The same
settings and seed give the same run, bit by bit: a failure prints the command that replays it.

``command``
    the command line
``scenario_file``
    scenarios as files: what they may say, and what is wrong with one
``measures``
    figures of a run, and whether a criterion on them is met
``workers``
    many seeds on all cores
"""

from .command import KINDS, main

__all__ = ["KINDS", "main"]
