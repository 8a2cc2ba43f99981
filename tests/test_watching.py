"""What is asked of a network while it learns, its checkpoints, and the report of such runs."""

import contextlib
import io
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
import torch
import yaml

import modelzoo
import report
import train_task
from datasets import build_stream
from datasets.objectives import CrossEntropy, RealNumbers
from datasets.synthetic.algorithms import ALGORITHMS
from datasets.task import Preprocess, StreamSpec, Table, Task
from evaluation.questions import EVALUATIONS
from evaluation.regions import compared
from evaluation.subject import Subject
from net import build_net, settings_class
from net.sequences.handcrafted import handcrafted_2nd_argmax
from records import Run
from records.configuration import saved_config
from records.task_config import TaskRunConfig
from records.task_group import TaskGroup
from reporting.task_analysis import handcrafted
from tests.test_report import Tables, figure
from tests.toys import CPU, table
from utils.errors import UserError

PROJECT = Path(__file__).parent.parent
LENGTH = 4


def numbers(count=300):
    return torch.randn(count, LENGTH, generator=torch.Generator().manual_seed(1))


def subject(net, inputs, targets, objective):
    examples = table(inputs, targets)
    task = Task(1, "toy", net.head_sizes[1], Table(examples), {"train": examples, "test": examples})
    return Subject(net.eval(), task, StreamSpec("toy", tuple(inputs.shape[1:]), objective, Preprocess()), CPU)


def network(model="rnn", outputs=LENGTH, **settings):
    torch.manual_seed(3)
    return build_net(model, (LENGTH,), settings_class(model)(**settings), {1: outputs})


def steps(net, numbers, held=None):
    """The states of the recurrence after each number of one sequence, with one neuron held at 0, in float64."""
    weights = {name: value.detach().double().numpy() for name, value in net.state_dict().items()}
    into, recurrent = (weights[f"trunk.rnn.weight_{kind}_l0"] for kind in ("ih", "hh"))
    bias = sum(weights.get(f"trunk.rnn.bias_{kind}_l0", np.zeros(len(into))) for kind in ("ih", "hh"))
    state, states = np.zeros(len(into)), []
    for number in numbers.double().numpy():
        state = np.maximum(0, into[:, 0] * number + recurrent @ state + bias)
        if held is not None:
            state[held] = 0
        states.append(state)
    return states, weights["weight"] @ state + weights.get("bias", 0)


@pytest.mark.parametrize("bias", [False, True])
def test_ablation_holds_each_neuron_of_the_state_at_0_at_all_times(bias):
    net, inputs = network(hidden_size=5, bias=bias), numbers()
    targets = ALGORITHMS["2nd_argmax"].answer(inputs)
    found = EVALUATIONS["ablation"].ask(subject(net, inputs, targets, CrossEntropy()))
    right = [
        np.mean([steps(net, x, held)[1].argmax() == y for x, y in zip(inputs, targets.tolist(), strict=True)])
        for held in (None, *range(5))
    ]
    assert found["accuracy with all"].value == pytest.approx(right[0], abs=1e-9)
    without = [found[f"accuracy without {neuron}"].value for neuron in range(5)]
    assert without == pytest.approx(right[1:], abs=1e-9)
    assert len(set(without)) > 1
    assert next(iter(found)) == "largest_drop"
    assert found["largest_drop"].value == pytest.approx(right[0] - min(right[1:]), abs=1e-9)


def test_ablation_of_a_number_that_is_to_be_small():
    net, inputs = network(hidden_size=3, outputs=1), numbers()
    targets = ALGORITHMS["median"].answer(inputs)
    found = EVALUATIONS["ablation"].ask(subject(net, inputs, targets, RealNumbers()))
    errors = [
        np.sqrt(np.mean([(steps(net, x, held)[1] - y.item()) ** 2 for x, y in zip(inputs, targets, strict=True)]))
        for held in (None, 0, 1, 2)
    ]
    assert [found[f"rmse without {neuron}"].value for neuron in range(3)] == pytest.approx(errors[1:], rel=1e-4)
    assert found["largest_drop"].value == pytest.approx(max(errors[1:]) - errors[0], abs=1e-5)


@pytest.mark.parametrize("heads", ["task", "identity"])
def test_ablation_of_other_networks_holds_each_feature_at_0(heads):
    torch.manual_seed(0)
    settings = settings_class("mlp")(widths=(9, 6 if heads == "task" else LENGTH))
    net = build_net("mlp", (LENGTH,), settings, {1: LENGTH}, heads).eval()
    inputs = numbers()
    targets = inputs.argmax(1)
    found = EVALUATIONS["ablation"].ask(subject(net, inputs, targets, CrossEntropy()))
    features = net.trunk(inputs).detach()
    for number in range(features.shape[1]):
        held = features.clone()
        held[:, number] = 0
        outputs = held if heads == "identity" else held @ net.weight.T + net.bias
        right = (outputs.argmax(1) == targets).double().mean().item()
        assert found[f"accuracy without {number}"].value == pytest.approx(right, abs=1e-9)
    assert len(found) == 2 + features.shape[1]


def test_ablation_of_many_examples_asks_about_some_of_all_classes():
    net, inputs = network(hidden_size=2), numbers(20_000)
    inputs = inputs[inputs.argmax(1).argsort()]
    found = EVALUATIONS["ablation"].ask(subject(net, inputs, inputs.argmax(1), CrossEntropy()))["accuracy with all"]
    right = net(inputs, torch.ones(20_000, dtype=torch.int64)).argmax(1) == inputs.argmax(1)
    assert found.n == 8192
    assert found.value == pytest.approx(right.double().mean().item(), abs=4 * found.stderr)


def patterns(net, inputs):
    """Which neurons are above 0 at which time, for each sequence."""
    return [tuple(tuple(state > 0) for state in steps(net, x)[0]) for x in inputs]


@pytest.mark.parametrize("hidden", [2, 24])  # 24 neurons at 4 times do not fit in one word
def test_regions_are_the_patterns_of_positive_neurons(hidden):
    net, inputs = network(hidden_size=hidden), numbers()
    targets = ALGORITHMS["2nd_argmax"].answer(inputs)
    found = EVALUATIONS["regions"].ask(subject(net, inputs, targets, CrossEntropy()))
    seen = patterns(net, inputs)
    counts = Counter(seen)
    assert found["regions"].value == len(counts) > 1
    sizes = sorted(counts.values(), reverse=True)
    for top in (1, 10, 100):
        assert found[f"share in the top {top}"].value == pytest.approx(sum(sizes[:top]) / len(inputs))
    if sizes[0] > sizes[1]:
        first = [place for place, pattern in enumerate(seen) if counts[pattern] == sizes[0]]
        right = [steps(net, inputs[place])[1].argmax() == targets[place].item() for place in first]
        assert found["accuracy in the top 1"].value == pytest.approx(np.mean(right))
        assert found["accuracy in the top 1"].n == len(first)
    if len(counts) <= 100:
        whole = (net(inputs, torch.ones(len(inputs), dtype=torch.int64)).argmax(1) == targets).double().mean()
        assert found["accuracy in the top 100"].value == pytest.approx(whole.item())


def test_another_network_is_compared_region_by_region():
    inputs = numbers()[:, :3]
    targets = ALGORITHMS["2nd_argmax"].answer(inputs)
    torch.manual_seed(3)
    net, other = build_net("rnn", (3,), settings_class("rnn")(hidden_size=2), {1: 3}), handcrafted_2nd_argmax(3)
    whole, *parts = compared(subject(net, inputs, targets, CrossEntropy()), other, 1000)
    seen = patterns(net, inputs)
    own, others = (np.array([steps(one, x)[1].argmax() for x in inputs]) for one in (net, other))
    assert whole.other_right > 0.97  # in exact arithmetic the handcrafted one is almost always right
    expected = []
    for pattern in dict.fromkeys(seen):
        chosen = np.array([one == pattern for one in seen])
        answers = (own[chosen] == targets.numpy()[chosen], others[chosen] == targets.numpy()[chosen])
        expected.append((int(chosen.sum()), *(a.mean() for a in answers), (own[chosen] == others[chosen]).mean()))
    found = [(part.examples, part.right, part.other_right, part.same) for part in parts]
    assert [part[0] for part in found] == sorted((part[0] for part in found), reverse=True)
    np.testing.assert_allclose(sorted(found), sorted(expected))
    same = compared(subject(other, inputs, targets, CrossEntropy()), other, 3)
    assert all(part.same == 1 and part.right == part.other_right for part in same)


TINY = ["--set", "data.length=3", "--set", "net.hidden_size=3", "--set", "data.dev_examples=600", "--set",
        "data.test_examples=500", "--set", "hp.batch=64", "--set", "hp.warmup=10", "--quiet"]  # fmt: skip


def trained(folder, *more):
    """Three seeds of a tiny recurrent network."""
    given = [*TINY, "--steps", "40", "--evaluate", "ablation,regions", "--run_dir", str(folder), *more]
    with contextlib.redirect_stdout(io.StringIO()):
        return train_task.main(given)


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Three seeds."""
    folder = tmp_path_factory.mktemp("watching") / "seeds"
    assert trained(folder, "--seeds", "3") == 0
    return folder


@pytest.fixture(scope="module")
def begun(tmp_path_factory):
    """A run that has stopped before its end."""
    folder = tmp_path_factory.mktemp("watching") / "begun"

    def stop(group):
        raise UserError("stopped here")

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("records.task_group._SECONDS", -1.0)  # what was recorded is saved each time
        patch.setattr(TaskGroup, "finish", stop)
        assert trained(folder) == 2
    return folder


@pytest.mark.parametrize("program", [train_task, modelzoo])
def test_regions_are_refused_of_networks_that_have_none_before_anything_is_written(program, tmp_path, capsys):
    given = ["--data_config", str(PROJECT / "config/dataset/split_digits.yaml"), "--hp_config",
             str(PROJECT / "config/hyperparam/mlp.yaml"), "--evaluate", "dormant,regions", "--epochs", "1",
             "--run_dir", str(tmp_path / "run")]  # fmt: skip
    assert program.main([*given, *(["--task", "1"] if program is train_task else ["--continual"])]) == 2
    told = capsys.readouterr()
    assert told.err.count("\n") == 1
    assert "--evaluate regions: only networks with states" in told.err
    assert not (tmp_path / "run").exists()


def test_too_many_features_are_refused(tmp_path, capsys):
    given = [*TINY, "--set", "net.hidden_size=257", "--evaluate", "ablation", "--steps", "1"]
    assert train_task.main([*given, "--run_dir", str(tmp_path / "run")]) == 2
    assert "--evaluate ablation: the network has 257 features, and at most 256 are possible" in capsys.readouterr().err


@pytest.mark.parametrize("which", ["finished", "unfinished"])
def test_checkpoints_give_the_networks_of_their_moments(which, runs, begun):
    run = Run.load(runs / "seed1" if which == "finished" else begun)
    assert run.finished == (which == "finished")
    assert list(run.checkpoints) == [0, 1, 2, 4, 8, 16, 32, 40]
    rows = run.metrics.query("split == 'dev' and slice == '' and metric == 'accuracy' and scenario == 'anytime'")
    accuracies = rows.set_index("step").value
    dev = task_of(run).splits["dev"]
    for step, checkpoint in run.checkpoints.items():
        assert (checkpoint.step, checkpoint.examples) == (step, 64 * step)
        net = checkpoint.network()
        assert not net.training
        assert all(torch.equal(net.state_dict()[name], value) for name, value in checkpoint.weights().items())
        outputs = net(dev.store[dev.rows], torch.ones(600, dtype=torch.int64))
        assert accuracies[step] == pytest.approx((outputs.argmax(1) == dev.targets).double().mean().item())
    assert len(set(accuracies)) > 1


def task_of(run):
    """The task of a run, made from its config.yaml."""

    config = saved_config("config.yaml", yaml.safe_load((run.path / "config.yaml").read_text()), TaskRunConfig)
    return build_stream(config.data, config.seed, torch.device("cpu")).tasks[0]


def test_a_run_of_modelzoo_has_no_checkpoints_and_one_without_measurements_is_none(tmp_path):
    given = ["--data_config", str(PROJECT / "config/dataset/split_digits.yaml"), "--samples", "2", "--epochs", "1"]
    with contextlib.redirect_stdout(io.StringIO()):
        assert modelzoo.main([*given, "--continual", "--quiet", "--run_dir", str(tmp_path / "zoo")]) == 0
    assert dict(Run.load(tmp_path / "zoo").checkpoints) == {}
    (tmp_path / "empty").mkdir()
    (tmp_path / "empty/config.yaml").write_text("method: train_task\n")
    with pytest.raises(UserError, match="no episode is complete yet"):
        Run.load(tmp_path / "empty")


def test_a_run_without_results_is_left_out_of_a_report_of_several(tmp_path, capsys, undrawn):
    assert trained(tmp_path / "one") == 0
    (tmp_path / "empty").mkdir()
    shutil.copy(tmp_path / "one/config.yaml", tmp_path / "empty")
    assert report.main([str(tmp_path)]) == 0
    assert f"{tmp_path / 'empty'} has no results yet and is left out" in capsys.readouterr().err
    assert report.main([str(tmp_path / "empty")]) == 2


def test_a_missing_or_damaged_checkpoint_is_one_line(tmp_path, capsys):
    assert trained(tmp_path / "run") == 0
    run = Run.load(tmp_path / "run")
    file = tmp_path / "run/checkpoints/step_000000000004.safetensors"
    file.write_bytes(file.read_bytes()[:-1] + b"!")
    with pytest.raises(UserError, match=r"step_000000000004.safetensors is damaged .its checksum is wrong") as error:
        run.checkpoints[4].network()
    assert "\n" not in str(error.value)
    file.unlink()
    with pytest.raises(UserError, match=r"step_000000000004.safetensors is missing"):
        run.checkpoints[4].weights()
    assert report.main([str(tmp_path / "run")]) == 2
    assert "step_000000000004.safetensors is missing" in capsys.readouterr().err


ALWAYS = {"learning_curves", "loss_curves", "by_answer", "by_gap", "ablation", "ablation_over_training", "regions",
          "handcrafted", "weights_w_ih", "weights_w_hh", "weights_w_out"}  # fmt: skip


def made(capsys, *given):
    capsys.readouterr()
    assert report.main([str(one) for one in given]) == 0
    path = Path(capsys.readouterr().out.strip())
    page = path.read_text()
    for name in ALWAYS:
        assert f'<figure id="{name}">' in page
        for ending in ("png", "svg", "csv"):
            assert (path.parent / "figures" / f"{name}.{ending}").stat().st_size > 0
    return path


def test_the_report_of_a_run_follows_from_its_rows(runs, capsys):
    path = made(capsys, runs / "seed1")
    assert path == runs / "seed1/report.html"
    assert min(file.stat().st_size for file in (path.parent / "figures").iterdir()) > 50
    run, tables = Run.load(runs / "seed1"), Tables(path.read_text())
    metrics, summary = run.metrics, run.summary
    tiles = tables.tiles
    assert float(tiles["test accuracy"]) == pytest.approx(100 * summary["avg_acc_final"], abs=0.01)
    loss = metrics.query(
        "split == 'test' and slice == '' and scenario == 'task-incremental' and metric == 'loss'"
    ).value
    assert float(tiles["loss over uninformed loss"]) == pytest.approx(loss.item() / np.log(3), abs=6e-3)
    assert (float(tiles["chance"]), tiles["parameters"]) == (pytest.approx(100 / 3, abs=0.01), str(3 + 9 + 9))
    dev = metrics.query("split == 'dev' and slice == '' and scenario == 'anytime'")
    curve = figure(path, "learning_curves")
    assert curve.accuracy.tolist() == dev[dev.metric == "accuracy"].value.tolist()
    assert curve.examples.tolist() == [64 * step for step in run.checkpoints]
    assert figure(path, "loss_curves").loss.tolist() == dev[dev.metric == "loss"].value.tolist()
    bars = figure(path, "ablation").accuracy
    last = metrics.query("scenario == 'ablation' and step == 40").set_index("metric").value
    assert bars.tolist() == [last[f"accuracy without {neuron}"] for neuron in range(3)]
    gaps = figure(path, "by_gap")
    assert set(gaps["slice"]) == {f"gap {part} of 4" for part in range(1, 5)}
    weights = figure(path, "weights_w_hh").query("step == 40").value.to_numpy().reshape(3, 3)
    np.testing.assert_allclose(weights, run.checkpoints[40].weights()["trunk.rnn.weight_hh_l0"], rtol=1e-6)
    header, row = tables.tables[0]
    shown = dict(zip(header, row, strict=True))
    assert float(shown["development"]) == pytest.approx(summary["dev"], abs=1e-4)
    assert float(shown["± error"]) == pytest.approx(summary["test_stderr"], abs=1e-4)
    assert float(shown["test there"]) == pytest.approx(summary["best_test"], abs=1e-4)
    assert shown["best checkpoint"] == f"{64 * summary['best_step']:,}"


def test_the_report_of_several_seeds_says_which_is_best_on_development_examples(runs, capsys, undrawn):
    path = made(capsys, runs)
    assert path == runs / "report.html"
    summaries = {seed: Run.load(runs / f"seed{seed}").summary for seed in range(3)}
    best = max(summaries, key=lambda seed: summaries[seed]["dev"])
    page = path.read_text()
    assert f"<b>seed {best}</b>" in page
    assert page.count("<b>seed") == 1
    assert f"Inside the network of seed {best}, the best on development examples" in page
    curves = figure(path, "learning_curves")
    assert sorted(set(curves.run)) == ["seed 0", "seed 1", "seed 2"]
    last = curves[curves.step == 40].set_index("run").accuracy
    assert last.to_dict() == {f"seed {seed}": summary["dev"] for seed, summary in summaries.items()}
    _, *rows, foot = Tables(page).tables[0]
    assert float(foot[3]) == pytest.approx(np.median([float(row[3]) for row in rows]), abs=1e-4)
    weights = figure(path, "weights_w_ih").query("step == 40").value
    expected = Run.load(runs / f"seed{best}").checkpoints[40].weights()["trunk.rnn.weight_ih_l0"].ravel()
    np.testing.assert_allclose(weights, expected, rtol=1e-6)


def test_the_report_of_an_unfinished_run(begun, capsys, undrawn):
    path = made(capsys, begun)
    page = path.read_text()
    assert f"{begun} is not finished: this is its state after 2,560 examples." in page
    assert "test accuracy" not in Tables(page).tiles
    assert Tables(page).tables[0][0] == ["run", "examples", "development"]


def test_the_share_of_the_handcrafted_network_is_that_on_the_development_examples(runs):
    run = Run.load(runs / "seed1")
    table = handcrafted(run)
    assert isinstance(table, pd.DataFrame)
    whole = table.iloc[0]
    assert (whole.region, whole.examples, whole.share) == ("all", 600, 1.0)
    assert whole.network == pytest.approx(run.summary["dev"])
    assert whole.handcrafted > 0.97
    regions = run.metrics.query("scenario == 'regions' and step == 40").set_index("metric").value
    assert table.share.iloc[1] == pytest.approx(regions["share in the top 1"])
    assert table.share.iloc[1:11].sum() == pytest.approx(regions["share in the top 10"])
    assert table.network.iloc[1] == pytest.approx(regions["accuracy in the top 1"])


def test_other_networks_and_answers_have_reports_too(tmp_path, capsys):
    """Tokens without a handcrafted network, and numbers, of which lower errors are better."""
    for name, model, more in (
        ("longest_cycle", "attention_only", ["net.width=4", "net.layers=1"]),
        ("median", "rnn", []),
    ):
        given = [arg for change in (*more, "data.length=3", "data.dev_examples=300", "data.test_examples=300",
                                    "hp.batch=64") for arg in ("--set", change)]  # fmt: skip
        run = tmp_path / name
        assert train_task.main([
            "--data_config", str(PROJECT / f"config/dataset/{name}.yaml"), "--hp_config",
            str(PROJECT / f"config/hyperparam/{model}.yaml"), "--steps", "8", "--evaluate", "ablation", "--quiet",
            "--run_dir", str(run), *given]) == 0  # fmt: skip
        capsys.readouterr()
        assert report.main([str(run)]) == 0
        page = (run / "report.html").read_text()
        assert '<figure id="handcrafted">' not in page
        assert '<figure id="learning_curves">' in page
    assert (tmp_path / "longest_cycle/figures/weights_attns_a_in_proj_weight.csv").exists()
    tiles = Tables((tmp_path / "median/report.html").read_text()).tiles
    assert (float(tiles["zero"]), float(tiles["sample mean"])) == pytest.approx((0.670, 0.340), abs=1e-3)


def test_runs_of_both_programs_have_no_report_together(runs, tmp_path, capsys):
    given = ["--data_config", str(PROJECT / "config/dataset/split_digits.yaml"), "--samples", "2", "--epochs", "1"]
    assert modelzoo.main([*given, "--continual", "--quiet", "--run_dir", str(tmp_path / "zoo")]) == 0
    capsys.readouterr()
    assert report.main([str(runs / "seed0"), str(tmp_path / "zoo"), "--out", str(tmp_path)]) == 2
    told = capsys.readouterr().err
    assert told.count("\n") == 1
    assert "zoo is a run of modelzoo.py, others are of train_task.py" in told
    assert report.main([str(runs / "seed0"), "--isolated", str(tmp_path / "zoo")]) == 2
    assert "--isolated is for runs of modelzoo.py" in capsys.readouterr().err
    assert report.main([str(runs), "--format", "md"]) == 0
    assert "train_task" in capsys.readouterr().out
