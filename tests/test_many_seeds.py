"""Autoencoders of several seeds that train as one computation, and the examples that they draw."""

import itertools
import math
import statistics

import pytest
import torch

import train_task
from datasets import build_stream
from datasets.synthetic.superposition import FreshFeatures, Law
from net import build_net, settings_class
from records.invocation import configure
from records.run import Run
from reporting.task_page import of_task_runs
from tests.toys import CPU
from training.loop import Training
from training.recipe import Recipe
from training.stacked import StackedTraining
from utils.files import side_by_side
from utils.seeding import generator, seeded


def network(seed):
    with seeded(seed, "net"):
        return build_net("autoencoder", (6,), settings_class("autoencoder")(), {1: 6}, "identity")


@pytest.mark.parametrize(("fresh", "batch"), [("true", 16), ("false", 16), ("false", "full")])
def test_networks_that_train_together_are_those_that_train_alone(fresh, batch, tmp_path):
    content = f"{{dataset: superposition, tasks: [sparse], fresh: {fresh}, train_examples: 40, epoch_examples: 40}}"
    (tmp_path / "d.yaml").write_text(content)
    config = configure(data_config=str(tmp_path / "d.yaml"), hp_config="config/hyperparam/autoencoder.yaml").config
    streams = [build_stream(config.data, seed, CPU.device) for seed in range(3)]
    sources = [[(1, stream.tasks[0].train)] for stream in streams]
    recipe = Recipe(steps=11, batch=batch, lr=0.1, optimizer="adam")
    together = [network(seed) for seed in range(3)]
    StackedTraining(together, sources, streams[0].spec, recipe, CPU, range(3), ("member",)).complete()
    for seed, (own, found) in enumerate(zip(sources, together, strict=True)):
        alone = network(seed)
        Training(alone, own, streams[0].spec, recipe, CPU, seed, ("member",)).complete()
        for name, value in alone.state_dict().items():
            torch.testing.assert_close(found.state_dict()[name], value, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("values", ["uniform", "ones"])
@pytest.mark.parametrize(("kind", "share"), [("sparse", 0.3), ("k_hot", 1 / 6)])
def test_values_of_features_that_are_there(kind, share, values):
    law = Law(features=6, probability=0.3, values=values)
    examples = FreshFeatures(kind, law, 1, CPU.device).draw(60_000, generator(0, kind))
    there = examples.store > 0
    assert there.double().mean(0).sub(share).abs().max() < 5 * math.sqrt(share / 60_000)
    if kind == "k_hot":
        assert (there.sum(1) == 1).all()
    found = examples.store[there].double()
    if values == "ones":
        assert (found == 1).all()
        return
    ranks = (torch.arange(len(found)) + 0.5) / len(found)  # Kolmogorov and Smirnov: 1.95 / sqrt(n) once in a thousand
    assert (found.sort().values - ranks).abs().max() < 1.95 / math.sqrt(len(found))
    assert torch.equal(examples.targets[:, 0], examples.store)


def test_what_is_written_side_by_side_comes_back_in_order_and_errors_are_raised():
    assert side_by_side(lambda number: 2 * number, range(50)) == [2 * number for number in range(50)]
    assert side_by_side(str, ()) == []

    def failing(number):
        raise OSError(number)

    with pytest.raises(OSError, match="0"):
        side_by_side(failing, range(3))


def test_of_many_seeds_the_best_are_listed_and_all_are_summed_up(tmp_path, capsys):
    arguments = [
        "--data_config", "config/dataset/superposition.yaml", "--hp_config", "config/hyperparam/autoencoder.yaml",
        "--steps", "30", "--seeds", "30", "--checkpoints", "none", "--run_dir", str(tmp_path / "runs"),
        "--set", "data.dev_examples=50", "--set", "data.test_examples=50",
    ]  # fmt: skip
    assert train_task.main(arguments) == 0
    runs = [Run.load(tmp_path / "runs" / f"seed{seed}") for seed in range(30)]
    development = {run.config["seed"]: run.summary["dev"] for run in runs}
    best = sorted(sorted(development, key=development.__getitem__)[:24])
    printed = capsys.readouterr().out.split("± error")[1].splitlines()[1:]
    assert [int(line.split()[0]) for line in itertools.takewhile(bool, printed)] == best
    tests = sorted(run.summary["avg_loss_final"] for run in runs)
    assert f"{tests[0]:.4f} to {tests[-1]:.4f}, median {statistics.median(tests):.4f}" in "\n".join(printed)
    page = of_task_runs(runs, "report.py")
    (table, *_) = page.sections[0].tables
    assert [row[0].text for row in table.rows] == [f"seed {seed}" for seed in best]
    assert len(table.data) == 30
    assert len(page.configuration) == 1
    assert "seeds 0 to 29" in page.lead[0]
