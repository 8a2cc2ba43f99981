"""Small networks from a folder: they answer like torch's own modules, the best is chosen, and errors are one line."""

import hashlib
import io
import shutil
from contextlib import redirect_stderr, redirect_stdout
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file
from torch import nn

import distill
import export
import forget
import modelzoo
import predict
import report
import train_task
from datasets.synthetic.algorithms import longest_cycle, median, second_argmax
from net.sequences.handcrafted import handcrafted_2nd_argmax
from net.sequences.published import to_published
from records import Run
from records.directory import RunDirectory
from records.task_group import TaskGroup
from tests.test_sequences import RecurrentTwin, Twin
from utils.errors import UserError
from utils.seeding import seeded
from zoo import Zoo
from zoo.tiny import load, load_2nd_argmax, load_handcrafted_2nd_argmax, load_longest_cycle, load_median

FEW = [
    *("--set", "data.dev_examples=500", "--set", "data.test_examples=500", "--set", "data.train_examples=64"),
    *("--set", "data.length=3", "--set", "net.hidden_size=4", "--quiet"),
]
# An epoch has a batch of 1,000 examples and one of 500.
SHORT = ["--set", "data.epoch_examples=1500", "--set", "hp.batch=1000", "--examples", "6000"]
SEEN = [0, 1000, 1500, 3000, 6000]  # after 0, 1, 2, 4 and 8 steps


def program(main, *arguments):
    """The exit code of a program, its output, and what it said on stderr."""
    out, told = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(told):
        code = main(list(map(str, arguments)))
    return code, out.getvalue(), told.getvalue()


def train(*arguments):
    code, _, told = program(train_task.main, *FEW, *arguments)
    assert (code, told) == (0, "")


def refused(main, *arguments):
    """The one line of a program that refuses its input."""
    code, _, told = program(main, *arguments)
    assert code == 2
    assert told.count("\n") == 1
    return told


@pytest.fixture(scope="module")
def runs(tmp_path_factory):
    """Runs of two seeds."""
    folder = tmp_path_factory.mktemp("tiny") / "runs"
    train(*SHORT, "--seeds", 2, "--run_dir", folder)
    return folder


def recurrent(seed, hidden, outputs):
    with seeded(seed, "twin"):
        return RecurrentTwin(hidden, outputs, bias=False)


def handcrafted_weights(length):
    return to_published(handcrafted_2nd_argmax(length))


# Published files


@pytest.mark.parametrize(("task", "length", "outputs"), [("2nd_argmax", 5, 5), ("argmedian", 7, 7), ("median", 5, 1)])
def test_a_published_file_answers_like_torchs_modules(task, length, outputs, tmp_path):
    twin, inputs = recurrent(0, 6, outputs), torch.randn(50, length)
    torch.save(twin.state_dict(), tmp_path / f"{task}_6_{length}_1048576_3.pth")
    network = load(task, 6, length, zoo_dir=tmp_path)
    with torch.no_grad():
        torch.testing.assert_close(network(inputs), twin(inputs))
    assert (network.task, network.n_seqs, network.seed, network.training) == (task, 1 << 20, 3, False)


def test_a_published_transformer_answers_like_torchs_modules(tmp_path):
    twin, tokens = Twin(4, 6, 2, 1, 4, 4), torch.randint(4, (50, 4))
    (tmp_path / "below").mkdir()
    torch.save(twin.state_dict(), tmp_path / "below" / "longest_cycle_6_4_0_0.pth")
    with torch.no_grad():
        torch.testing.assert_close(load_longest_cycle(6, 4, 0, 0, zoo_dir=tmp_path)(tokens), twin(tokens))


def test_the_longest_trained_and_of_these_the_best_seed_is_chosen(tmp_path):
    for seed in range(3):
        torch.save(recurrent(seed, 4, 3).state_dict(), tmp_path / f"2nd_argmax_4_3_2048_{seed}.pth")
    for seed in (1, 2):
        torch.save(handcrafted_weights(3), tmp_path / f"2nd_argmax_4_3_2048_{seed}.pth")
    torch.save(handcrafted_weights(3), tmp_path / "2nd_argmax_4_3_1024_0.pth")
    torch.save(recurrent(7, 4, 5).state_dict(), tmp_path / "2nd_argmax_4_5_4096_0.pth")
    chosen = load_2nd_argmax(4, 3, zoo_dir=tmp_path)
    assert (chosen.n_seqs, chosen.seed) == (2048, 1)  # of equals the first
    assert load_2nd_argmax(4, 3, seed=0, zoo_dir=tmp_path).n_seqs == 2048
    assert load_2nd_argmax(4, 3, 1024, zoo_dir=tmp_path).seed == 0
    assert load_2nd_argmax(hidden_size=4, length=5, zoo_dir=str(tmp_path)).n_seqs == 4096


def test_the_best_median_has_the_smallest_error(tmp_path):
    far, zero = recurrent(0, 2, 1), recurrent(0, 2, 1)
    with torch.no_grad():
        for twin, head in ((far, 1000.0), (zero, 0.0)):
            for parameter in twin.parameters():
                parameter.fill_(1.0)
            twin.linear.weight.fill_(head)
    torch.save(far.state_dict(), tmp_path / "median_2_3_8_0.pth")
    torch.save(zero.state_dict(), tmp_path / "median_2_3_8_1.pth")
    assert load_median(2, 3, zoo_dir=tmp_path).seed == 1


@pytest.mark.parametrize("length", [2, 3, 10])
def test_handcrafted_networks_find_the_second_largest(length):
    inputs = torch.randn(4000, length)
    network = load_handcrafted_2nd_argmax(length)
    assert (network(inputs).argmax(-1) == inputs.argsort(-1)[:, -2]).float().mean() > 0.98
    assert (network.n_seqs, network.seed) == (None, None)


# Runs


def test_a_checkpoint_of_a_run_is_found_by_the_examples_it_has_seen(runs):
    inputs = torch.randn(20, 3)
    for step, seen in zip((0, 1, 2, 4, 8), SEEN, strict=True):
        network = load_2nd_argmax(4, 3, seen, 1, zoo_dir=runs.parent)
        state = load_file(runs / "seed1" / "checkpoints" / f"step_{step:012d}.safetensors")
        twin = nn.RNN(1, 4, nonlinearity="relu", bias=False, batch_first=True)
        twin.load_state_dict({name.rpartition(".")[2]: value for name, value in state.items() if name != "weight"})
        with torch.no_grad():
            expected = twin(inputs.unsqueeze(-1))[0][:, -1] @ state["weight"].T
            torch.testing.assert_close(network(inputs), expected)


def test_the_best_seed_of_runs(runs):
    """By accuracy on the 65,536 development examples that all runs share, whatever a run has used of them."""
    chosen = load_2nd_argmax(4, 3, zoo_dir=runs)
    inputs = torch.randn(50000, 3, generator=torch.Generator().manual_seed(0))
    right = [(load_2nd_argmax(4, 3, seed=seed, zoo_dir=runs)(inputs).argmax(-1) == second_argmax(inputs)).sum()
             for seed in (0, 1)]  # fmt: skip
    assert abs(right[0] - right[1]) > 1000  # far more than chance
    assert (chosen.n_seqs, chosen.seed) == (6000, int(right[1] > right[0]))


def test_files_and_runs_stand_side_by_side(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "own")
    torch.save(handcrafted_weights(3), tmp_path / "2nd_argmax_4_3_6000_4.pth")
    assert load_2nd_argmax(4, 3, zoo_dir=tmp_path).seed == 4
    assert load_2nd_argmax(4, 3, seed=0, zoo_dir=tmp_path).path.parent.parent == tmp_path / "own"


# What is refused


@pytest.mark.parametrize(
    ("asked", "line"),
    [
        (("argmax", 4, 3), "{} has no network of task argmax; it has task 2nd_argmax"),
        (("2nd_argmax", 5, 3), "{} has no network of hidden_size 5 with task 2nd_argmax; it has hidden_size 4"),
        (("2nd_argmax", 4, 2), "{} has no network of length 2 with task 2nd_argmax, hidden_size 4; it has length 3"),
        (
            ("2nd_argmax", 4, 3, 7),
            "{} has no network of n_seqs 7 with task 2nd_argmax, hidden_size 4, length 3; it has n_seqs 0, 1000, 1500, "
            "3000, 6000",
        ),
        (
            ("2nd_argmax", 4, 3, 0, 9),
            "{} has no network of seed 9 with task 2nd_argmax, hidden_size 4, length 3; it has seed 0, 1",
        ),
    ],
)
def test_errors_list_what_there_is(runs, asked, line):
    with pytest.raises(UserError) as error:
        load(*asked, zoo_dir=runs)
    assert str(error.value) == line.format(runs)


def test_folders_without_networks_are_refused(tmp_path):
    with pytest.raises(UserError, match="is not a folder"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path / "nowhere")
    with pytest.raises(UserError, match="has neither runs of"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path)
    with pytest.raises(UserError, match="lengths 2, 3 and 10"):
        load_handcrafted_2nd_argmax(4)


def test_two_networks_of_one_seed_are_told_apart_by_their_folders(runs, tmp_path):
    for name in ("one", "two"):
        shutil.copytree(runs / "seed0", tmp_path / name)
    with pytest.raises(UserError, match=r"has several networks with .*one/.* and .*two/.*smaller folder"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path)
    assert load_2nd_argmax(4, 3, zoo_dir=tmp_path / "two").seed == 0


class Trap:
    """An object whose pickle makes a folder when it is read."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return Path.mkdir, (self.path,)


@pytest.mark.parametrize(
    ("content", "line"),
    [
        ([1, 2], "holds no weights by name"),
        ({"rnn.weight_ih_l0": 3}, "holds no weights by name"),
        ({"weight": torch.zeros(2, 2)}, "not a published network"),
        (recurrent(0, 5, 3).state_dict(), "hidden size is 5 in its weights; its name says 4"),
        (recurrent(0, 4, 4).state_dict(), "outputs is 4 in its weights; its name says 3"),
        (Twin(3, 4, 1, 1, 3, 3).state_dict(), "a network of the kind attention_only cannot learn 2nd_argmax"),
        (Twin(5, 4, 1, 1, 3, 3).state_dict(), "length is 5 in its weights; its name says 3"),
    ],
)
def test_files_that_are_not_what_their_name_says_are_refused(content, line, tmp_path):
    path = tmp_path / "2nd_argmax_4_3_8_0.pth"
    torch.save(content, path)
    with pytest.raises(UserError, match=f"{path}.*{line}"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path)


def test_code_in_a_file_does_not_run(tmp_path):
    path, made = tmp_path / "2nd_argmax_4_3_8_0.pth", tmp_path / "made"
    torch.save({"rnn.weight_ih_l0": Trap(made)}, path)
    with pytest.raises(UserError, match=r"holds more than weights; only state dicts are read$"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path)
    assert not made.exists()
    path.write_bytes(b"PK\x03\x04 cut")
    with pytest.raises(UserError, match="is damaged"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path)


def test_a_damaged_checkpoint_is_named(runs, tmp_path):
    shutil.copytree(runs / "seed0", tmp_path / "seed0")
    path = tmp_path / "seed0" / "checkpoints" / "step_000000000008.safetensors"
    path.write_bytes(path.read_bytes()[:-4] + b"\0\0\0\1")
    with pytest.raises(UserError, match=f"{path} is damaged"):
        load_2nd_argmax(4, 3, zoo_dir=tmp_path)


# train_task.py --zoo_dir


def test_a_handcrafted_network_is_asked_all_questions(tmp_path):
    run = tmp_path / "run"
    train("--zoo_dir", "handcrafted", "--evaluate_only", "--evaluate", "dormant", "--run_dir", run)
    state = load_file(run / "checkpoints" / "step_000000000000.safetensors")
    assert [path.name for path in (run / "checkpoints").iterdir()] == ["step_000000000000.safetensors"]
    crafted = handcrafted_2nd_argmax(3).state_dict()
    assert state.keys() == crafted.keys()
    assert all(torch.equal(state[name], crafted[name]) for name in state)
    rows = Run.load(run).rows
    found = {(row.split, row.scenario): row.main for row in rows if "accuracy" in row.scores and not row.slice}
    assert found.keys() == {("dev", "anytime"), ("test", "task-incremental")}
    assert min(found.values()) > 0.995
    assert {row.step for row in rows} == {0}
    assert any(row.scenario == "dormant" for row in rows)
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["begun_from"], config["begun_from_sha256"]) == ("handcrafted", None)
    assert program(train_task.main, "--resume", "--run_dir", run)[0] == 0
    assert program(train_task.main, "--verify", run)[0] == 0
    assert program(report.main, run)[0] == 0
    page = (run / "report.html").read_text()
    assert "without training, with the weights of handcrafted" in page
    drawn = {path.stem for path in (run / "figures").glob("*.svg")}
    assert "handcrafted" in drawn
    assert "learning_curves" not in drawn  # there is a single point


def test_training_begins_with_a_downloaded_network(tmp_path):
    folder, run = tmp_path / "zoo", tmp_path / "run"
    folder.mkdir()
    twins = [recurrent(seed, 4, 3) for seed in (0, 1)]
    for seed, twin in enumerate(twins):
        torch.save(twin.state_dict(), folder / f"2nd_argmax_4_3_64_{seed}.pth")
        torch.save(recurrent(9, 4, 3).state_dict(), folder / f"2nd_argmax_4_3_128_{seed}.pth")
    train(*SHORT, "--zoo_dir", folder, "--n_seqs", "2^6", "--seeds", 2, "--run_dir", run)
    for seed, twin in enumerate(twins):
        path = folder / f"2nd_argmax_4_3_64_{seed}.pth"
        config = yaml.safe_load((run / f"seed{seed}" / "config.yaml").read_text())
        assert config["begun_from"] == str(path)
        assert config["begun_from_sha256"] == hashlib.sha256(path.read_bytes()).hexdigest()
        first, last = (
            load_file(run / f"seed{seed}" / "checkpoints" / f"step_{step:012d}.safetensors") for step in (0, 8)
        )
        assert torch.equal(first["weight"], twin.linear.weight)
        assert torch.equal(first["trunk.rnn.weight_hh_l0"], twin.rnn.weight_hh_l0)
        assert not torch.equal(first["weight"], last["weight"])
    with pytest.raises(UserError, match="has neither runs"):  # what such a network has seen is not known
        load_2nd_argmax(4, 3, zoo_dir=run)


def stop_at(monkeypatch, owner, name, call):
    """Let the given call of a method raise KeyboardInterrupt."""
    before, calls = getattr(owner, name), []

    def stopped(self, *arguments):
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return before(self, *arguments)

    monkeypatch.setattr(owner, name, stopped)


def test_a_resumed_run_does_not_need_the_folder(tmp_path):
    folder = tmp_path / "zoo"
    folder.mkdir()
    torch.save(recurrent(3, 4, 3).state_dict(), folder / "2nd_argmax_4_3_64_0.pth")
    train(*SHORT, "--zoo_dir", folder, "--run_dir", tmp_path / "whole")
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, TaskGroup, "record", 2)
        assert program(train_task.main, *FEW, *SHORT, "--zoo_dir", folder, "--run_dir", tmp_path / "cut")[0] == 130
    shutil.rmtree(folder)
    assert program(train_task.main, "--resume", "--run_dir", tmp_path / "cut", "--quiet")[0] == 0
    for name in ("step_000000000000", "step_000000000008"):
        whole, cut = (load_file(tmp_path / run / "checkpoints" / f"{name}.safetensors") for run in ("whole", "cut"))
        assert all(torch.equal(whole[key], cut[key]) for key in whole)


def test_a_run_that_has_lost_its_first_weights_is_not_begun_with_others(tmp_path):
    with pytest.MonkeyPatch.context() as patch:
        stop_at(patch, RunDirectory, "add_checkpoint", 1)
        begin = [*FEW, *SHORT, "--zoo_dir", "handcrafted", "--run_dir", tmp_path / "cut"]
        assert program(train_task.main, *begin)[0] == 130
    assert "begin it again with --overwrite" in refused(train_task.main, "--resume", "--run_dir", tmp_path / "cut")
    assert program(train_task.main, *begin, "--overwrite")[0] == 0


@pytest.mark.parametrize(
    ("options", "line"),
    [
        (["--zoo_dir", "handcrafted", "--set", "data.length=4"], "lengths 2, 3 and 10"),
        (["--zoo_dir", "handcrafted", "--set", "net.hidden_size=5"], "hidden_size is 4; --hp_config and --set say 5"),
        (["--zoo_dir", "handcrafted", "--set", "net.bias=true"], "bias is False; --hp_config and --set say True"),
        (["--zoo_dir", "handcrafted", "--set", "data.tasks=[argmax]"], "handcrafted networks for 2nd_argmax, not arg"),
        (["--zoo_dir", "nowhere"], "nowhere is not a folder"),
        (["--zoo_dir", "{runs}", "--seed", 5], "has no network of seed 5"),
        (["--zoo_dir", "{runs}", "--n_seqs", 5], "has no network of n_seqs 5"),
        (["--n_seqs", 5], "name one with --zoo_dir"),
        (["--zoo_dir", "handcrafted", "--n_seqs", 5], "name one with --zoo_dir"),
        (["--zoo_dir", "{runs}", "--n_seqs", "2^x"], "a power such as 2^24"),
        (["--evaluate_only", "--examples", "2^4"], "--evaluate_only trains nothing; leave --examples out"),
        (["--zoo_dir", "{runs}", "--resume", "--run_dir", "{runs}/seed0"], "began with weights that were drawn"),
    ],
)
def test_a_network_that_does_not_fit_is_refused_before_anything_is_written(options, line, runs, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    found = [str(option).replace("{runs}", str(runs)) for option in options]
    assert line in refused(train_task.main, *FEW, *found)
    assert not list(tmp_path.iterdir())


def test_other_networks_have_no_folder(tmp_path):
    digits = ["--data_config", "config/dataset/split_digits.yaml", "--hp_config", "config/hyperparam/mlp.yaml"]
    line = refused(train_task.main, *digits, "--task", 1, "--zoo_dir", tmp_path, "--run_dir", tmp_path / "run")
    assert "rnn and attention_only networks on algorithms; this one is mlp on digits" in line


# The other programs


def test_checkpoints_are_exported_as_published(runs, tmp_path):
    out = tmp_path / "out"
    code, told, _ = program(export.main, runs / "seed1", "--format", "published", "--out", out)
    assert code == 0
    assert {path.name for path in out.iterdir()} == {f"2nd_argmax_4_3_{seen}_1.pth" for seen in SEEN}
    assert told.count("\n") == len(SEEN)
    twin, inputs = RecurrentTwin(4, 3, bias=False), torch.randn(30, 3)
    twin.load_state_dict(torch.load(out / "2nd_argmax_4_3_3000_1.pth", weights_only=True))
    with torch.no_grad():
        torch.testing.assert_close(load_2nd_argmax(4, 3, 3000, 1, zoo_dir=runs)(inputs), twin(inputs))
    assert "exists; remove it" in refused(export.main, runs / "seed1", "--format", "published", "--out", out)
    more = ["--out", tmp_path / "more", "--format", "published"]
    assert "leave --task and comb" in refused(export.main, runs / "seed1", *more, "--task", 1)
    assert "leave --task and comb" in refused(export.main, runs / "seed1", *more, "--combine", "weighted")
    assert "has no config.yaml" in refused(export.main, runs, *more)
    assert not (tmp_path / "more").exists()


def test_a_run_is_a_zoo_of_one_member(runs, tmp_path):
    inputs = torch.randn(40, 3)
    expected = load_2nd_argmax(4, 3, seed=0, zoo_dir=runs)(inputs).softmax(-1)
    zoo = Zoo.load(runs / "seed0", "cpu")
    torch.testing.assert_close(zoo.predict(inputs, 1).probabilities, expected)
    assert zoo.predict(inputs, "2nd_argmax").labels == [str(label) for label in expected.argmax(-1).tolist()]
    with pytest.raises(UserError, match="has saved no predictions on test examples"):
        zoo.test_scores()
    assert program(export.main, runs / "seed0", "--format", "torch", "--out", tmp_path / "out")[0] == 0
    module = torch.export.load(tmp_path / "out" / "model.pt2").module()
    torch.testing.assert_close(module(inputs)["task_1"], expected)


def test_programs_for_zoos_refuse_the_network_of_one_task(runs, tmp_path):
    run, one = runs / "seed0", "is a run of train_task.py, one network of one task; name a run of modelzoo.py"
    assert one in refused(forget.main, run, "--task", 1, "--run_dir", tmp_path / "out")
    assert one in refused(distill.main, run, "--run_dir", tmp_path / "out")
    assert "takes inputs of shape [3], no files" in refused(predict.main, run, tmp_path, "--task", 1)
    assert "train_task" in refused(modelzoo.main, "--resume", "--run_dir", run)
    assert not (tmp_path / "out").exists()


def test_networks_for_tokens_and_numbers(tmp_path):
    """A transformer is a zoo that cannot be exported, a regression answers numbers; both are networks of a folder."""
    few = ["--steps", 2, "--checkpoints", "none", "--set", "hp.batch=50", "--quiet"]
    few += [part for split in ("dev", "test") for part in ("--set", f"data.{split}_examples=100")]
    cycle, numbers = tmp_path / "cycle", tmp_path / "median"
    tokens = ["--data_config", "config/dataset/longest_cycle.yaml"]
    tokens += ["--hp_config", "config/hyperparam/attention_only.yaml"]
    sizes = ["--set", "data.length=4", "--set", "net.width=2"]
    assert program(train_task.main, *tokens, *sizes, *few, "--run_dir", cycle)[0] == 0
    median_of = ["--data_config", "config/dataset/median.yaml", "--set", "data.length=4", "--set", "net.hidden_size=2"]
    assert program(train_task.main, *median_of, *few, "--run_dir", numbers)[0] == 0
    maps, values = torch.randint(4, (30, 4)), torch.randn(30, 4)
    answers = load_longest_cycle(2, 4, zoo_dir=tmp_path)(maps)
    assert answers.shape == (30, *longest_cycle(maps).shape[1:], 4)
    assert Zoo.load(cycle, "cpu").predict(maps, 1).chosen.tolist() == answers.argmax(-1).tolist()
    assert load_median(2, 4, 100, 0, zoo_dir=tmp_path)(values).shape == median(values).shape
    out = ["--out", tmp_path / "out"]
    assert "cannot be exported" in refused(export.main, cycle, *out)
    assert "RealNumbers" in refused(export.main, numbers, *out)
    assert "run of train_task.py" in refused(distill.main, numbers)
    torch.testing.assert_close(
        Zoo.load(numbers, "cpu").numbers(values, 1), load_median(2, 4, 100, 0, zoo_dir=tmp_path)(values)
    )
    for run, name in ((cycle, "longest_cycle_2_4_100_0.pth"), (numbers, "median_2_4_100_0.pth")):
        assert program(export.main, run, "--format", "published", "--out", tmp_path / "published" / name)[0] == 0
        assert (tmp_path / "published" / name / name).exists()
    heads = ["--set", "net.heads=2", "--run_dir", tmp_path / "heads"]
    assert program(train_task.main, *tokens, *sizes, *few, *heads)[0] == 0
    assert "2 attention heads" in refused(export.main, tmp_path / "heads", "--format", "published", *out)
