"""Options that programs for a saved zoo share."""

from __future__ import annotations

import argparse

from utils.options import whole
from zoo.combine import COMBINE, TEMPERATURES
from zoo.saved import Zoo


def add_combination(
    parser: argparse.ArgumentParser,
    budget: str = "at most K members answer, chosen on held-out examples (default: all)",
) -> None:
    """--combine, --temperature and --budget, of which `budget` is the help; see `combined`."""
    add = parser.add_argument
    add("--combine", metavar="NAME", default="mean", help=f"how members become one answer: {', '.join(COMBINE)}; all "
        "but mean are fitted on held-out examples (default: mean)")  # fmt: skip
    add("--temperature", metavar="NAME", default="none",
        help=f"calibrate on held-out examples: {', '.join(TEMPERATURES)} (default: none)")  # fmt: skip
    add("--budget", metavar="K", help=budget)


def combined(options: argparse.Namespace, device: str) -> Zoo:
    """The zoo of options.run, combined as the options say.

    Raises:
        UserError: an option is wrong, or the zoo cannot be read.
    """
    budget = None if options.budget is None else whole("--budget", options.budget)
    return Zoo.load(options.run, device).combined(options.combine, options.temperature, budget)
