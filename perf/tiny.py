"""Tiny networks on a generated task: one alone, and several seeds as one computation.

    python perf/tiny.py [--repeats 3]

The second largest of 10 numbers with 16 hidden units, and of 3 numbers with 4: recurrent networks with ReLU, batches of
1,024 fresh examples, AdamW. On the CPU; sequences a second, of all seeds together.
run: inside the training loop of train_task.py, with as many threads as it takes.
bare: the same arithmetic in a plain loop that draws its examples too; by units: with the units of an example side by
side in memory, as is usual, not the examples of a batch.
usual: nn.RNN, AdamW and a scheduler as they are by default, answers by sorting, and loss and accuracy read in every
step, as in the published code of AlgZoo.
"""

import statistics
import tempfile
from collections.abc import Callable
from functools import partial

import common
import torch
import torch.nn.functional as F
from torch import Tensor, nn

import train_task
from datasets.synthetic.algorithms import second_argmax
from net.sequences.rnn import RNN
from records.run import Run
from records.task_invocation import configure

BATCH, SEEDS, STEPS, DRAWN = 1024, 5, 1024, 64
CASES = ((16, 10), (4, 3))  # hidden units and length


def run(hidden: int, length: int, seeds: int) -> float:
    """Sequences a second in the training loop of train_task.py."""
    with tempfile.TemporaryDirectory() as folder:
        changes = {
            "data.length": length, "net.hidden_size": hidden, "data.dev_examples": 64, "data.test_examples": 64,
        }  # fmt: skip
        invocation = configure(
            set=changes, steps=STEPS, seeds=seeds, checkpoints="none", run_dir=f"{folder}/run", quiet=True,
            device="cpu",
        )  # fmt: skip
        with common.silent():
            paths = train_task.run(invocation)
        return seeds * BATCH * STEPS / float(Run.load(paths[0]).summary["train_seconds"])


def by_units(names: dict[str, nn.Parameter], inputs: Tensor) -> Tensor:
    """The last states of the networks, [S, B, h], as RNN.stacked has them, with another order in memory."""
    driving, recurrent = (names[f"rnn.weight_{kind}_l0"].transpose(1, 2) for kind in ("ih", "hh"))
    state = (inputs[..., :1] * driving).relu()
    for number in inputs.split(1, -1)[1:]:
        state = torch.baddbmm(number * driving, state, recurrent).relu()
    return state


def bare(hidden: int, length: int, seeds: int, *, units: bool = False) -> float:
    """The same arithmetic in a plain loop; examples are drawn DRAWN batches at a time."""

    def parameter(*shape: int) -> nn.Parameter:
        return nn.Parameter(torch.empty(seeds, *shape).uniform_(-(hidden**-0.5), hidden**-0.5))

    names = {"rnn.weight_ih_l0": parameter(hidden, 1), "rnn.weight_hh_l0": parameter(hidden, hidden)}
    head = parameter(length, hidden)
    optimizer = torch.optim.AdamW([*names.values(), head], 1e-3, weight_decay=1e-3, fused=True)
    pending: list[tuple[Tensor, Tensor]] = []

    def step() -> None:
        if not pending:
            inputs = torch.randn(seeds, DRAWN * BATCH, length)
            answers = second_argmax(inputs.flatten(0, 1)).view(seeds, -1)
            pending.extend(zip(inputs.split(BATCH, 1), answers.split(BATCH, 1), strict=True))
        inputs, answers = pending.pop()
        if units:
            outputs = torch.bmm(by_units(names, inputs), head.transpose(1, 2))
            loss = seeds * F.cross_entropy(outputs.flatten(0, 1), answers.flatten())
        else:
            outputs = torch.bmm(head, RNN.stacked(names, inputs).transpose(1, 2))
            loss = F.cross_entropy(outputs, answers, reduction="none").mean(1).sum()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return rate(step, seeds)


class Usual(nn.Module):
    """The network as nn.RNN and nn.Linear."""

    def __init__(self, hidden: int, length: int) -> None:
        super().__init__()
        self.rnn = nn.RNN(1, hidden, nonlinearity="relu", bias=False, batch_first=True)
        self.linear = nn.Linear(hidden, length, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        states, _ = self.rnn(inputs.unsqueeze(-1))
        return self.linear(states[:, -1])


def usual(hidden: int, length: int) -> float:
    """One network, trained as is usual."""
    net = Usual(hidden, length)
    optimizer = torch.optim.AdamW(net.parameters(), 1e-3, weight_decay=1e-3)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0)

    def step() -> tuple[float, float]:
        inputs = torch.randn(BATCH, length)
        answers = inputs.argsort(-1)[:, -2]
        outputs = net(inputs)
        loss = F.cross_entropy(outputs, answers)
        accuracy = (outputs.argmax(-1) == answers).float().mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        scheduler.step()
        return loss.item(), accuracy.item()

    return rate(step, 1)


def with_threads(threads: int, measure: Callable[..., float], *arguments: int) -> float:
    """A measurement with so many threads."""
    torch.set_num_threads(threads)
    return measure(*arguments)


def rate(step: Callable[[], object], seeds: int) -> float:
    """Sequences a second of steps on a batch for each seed."""
    return seeds * BATCH / common.seconds_a_call(step, torch.device("cpu"), seconds=2.0)


def main() -> None:
    options, most = common.options(__doc__, repeats=3), torch.get_num_threads()
    print(f"Tiny networks: sequences/s. {common.title(torch.device('cpu'))}")
    for hidden, length in CASES:
        measures = [
            lambda h=hidden, n=length: with_threads(most, usual, h, n),
            lambda h=hidden, n=length: with_threads(1, bare, h, n, 1),
            lambda h=hidden, n=length: run(h, n, 1),
            lambda h=hidden, n=length: with_threads(most if h > 4 else 1, bare, h, n, SEEDS),
            lambda h=hidden, n=length: run(h, n, SEEDS),
            lambda h=hidden, n=length: with_threads(most if h > 4 else 1, partial(bare, units=True), h, n, SEEDS),
        ]  # fmt: skip
        columns = common.in_turn(measures, options.repeats)
        one, five = columns[2], columns[4]
        common.line(f"{hidden} hidden units, length {length}", "sequences/s", "over usual", "over bare")
        names = ["usual, one seed", "bare, one seed", "run, one seed", "bare, five seeds", "run, five seeds"]
        names.append("bare, five seeds, by units")
        beside = {2: columns[1], 4: columns[3]}
        for place, (name, column) in enumerate(zip(names, columns, strict=True)):
            over = f"{common.ratio(column, beside[place]):.2f}" if place in beside else ""
            median = f"{statistics.median(column):,.0f}"
            common.line(f"  {name}", median, f"{common.ratio(column, columns[0]):.2f}", over)
        common.line("  cost of five over cost of one", f"{SEEDS * common.ratio(one, five):.2f}")


if __name__ == "__main__":
    main()
