"""Thousands of damaged and hostile inputs: each is read, or refused in one line, and does nothing else.

    python -m tests.fuzz.mutations [--cases 10000] [--kind idx] [--seed 17]

Tiny valid inputs of every kind are mutated, one at a time, and given to the programs. A case is a pure function of
its kind and seed. Cases run in processes forked from one that has everything imported; one that
fails is run again in a process of its own, and is printed so that it can be repeated.
"""

import argparse
import os
import sys
from collections import Counter

if __name__ == "__main__":
    os.environ["OMP_NUM_THREADS"] = "1"


from tests.fuzz.cases import Answer
from tests.fuzz.kinds import KINDS
from tests.fuzz.processes import run_each


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cases", type=int, default=10000, help="in total")
    parser.add_argument("--kind", choices=KINDS, action="append", help="only this kind; may be given several times")
    parser.add_argument("--seed", type=int, help="only this one")
    parser.add_argument("--first", type=int, default=0, help="the first seed")
    options = parser.parse_args()
    kinds = options.kind or list(KINDS)
    each = -(-options.cases // len(kinds))
    seeds = [options.seed] if options.seed is not None else list(range(options.first, options.first + each))
    facts: dict[str, list[Answer]] = {kind: [] for kind in kinds}
    print(
        f"{'kind':<12} {'cases':>6} {'refused':>8} {'accepted':>9} {'diverged':>9} {'slowest s':>10} {'MiB':>6} "
        f"{'failed':>7}"
    )
    failures = []
    for kind in kinds:
        failed = run_each([(kind, seed) for seed in seeds], facts[kind].append)
        failures += failed
        codes = Counter(answer.code for answer in facts[kind])
        slowest, largest = (max(getattr(a, n) for a in facts[kind]) for n in ("seconds", "bytes"))
        print(f"{kind:<12} {len(facts[kind]):>6} {codes[2]:>8} {codes[0] + codes['accepted']:>9} {codes[1]:>9} "
              f"{slowest:>10.2f} {largest >> 20:>6} {len(failed):>7}", flush=True)  # fmt: skip
        for answer in failed:
            print(f"  --kind {kind} --seed {answer.seed}: {answer.wrong}", flush=True)
    if options.seed is not None:
        for kind in kinds:
            for answer in facts[kind]:
                print(f"{answer.kind} {answer.seed}: {answer.code}, {answer.line}")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main())
