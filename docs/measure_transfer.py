"""Transfer of the zoo: rotated digits, ten images a class, the zoo against isolated networks, five seeds.

python docs/measure_transfer.py              # about 3 minutes on two cores; prints a Markdown table
"""

from __future__ import annotations

import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parent))

import numpy as np
from measure_deviations import SEEDS, interval, summary_of


def measure(seed: int) -> dict[str, float]:
    """Results of both methods with one seed."""
    isolated = summary_of(["--method", "isolated"], seed)
    zoo = summary_of([], seed)
    alone = np.array(isolated["per_task_acc"])
    return {
        "accuracy at the end, zoo": zoo["avg_acc_final"],
        "accuracy at the end, isolated": isolated["avg_acc_final"],
        "difference": zoo["avg_acc_final"] - isolated["avg_acc_final"],
        "backward transfer": zoo["bwt"],
        "forward transfer": float((np.array(zoo["per_task_learning_acc"]) - alone)[1:].mean()),
    }


def main() -> None:
    """Train in two processes of one thread each and print a table."""
    with ProcessPoolExecutor(2) as pool:
        seeds = list(pool.map(measure, SEEDS))
    print(f"| n = {len(seeds)} seeds | mean ± 95 % interval |\n| --- | --- |")
    for name in seeds[0]:
        print(f"| {name} | {interval(np.array([values[name] for values in seeds]))} |")


if __name__ == "__main__":
    main()
