"""Wrong input to train_task.py: one line that says what would be right, exit code 2, and nothing written."""

from pathlib import Path

import pytest

import modelzoo
import train_task
from tests.test_bad_input import NOTHING_THERE, contents
from tests.test_train_task import CYCLE, DIGITS, PROJECT, RNN, TINY

CONFIG = PROJECT / "config"
RESUME = ["--resume", "--run_dir", "runs", "--seeds", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two finished runs of train_task.py, and one of modelzoo.py on the same task."""
    folder = tmp_path_factory.mktemp("input")
    given = [*TINY, *RNN, "--steps", "2", "--threads", "1", "--quiet"]
    data = [
        "--data_config",
        str(CONFIG / "dataset/2nd_argmax.yaml"),
        "--hp_config",
        str(CONFIG / "hyperparam/rnn.yaml"),
    ]
    assert train_task.main([*given, "--seeds", "2", "--run_dir", str(folder / "runs")]) == 0
    assert modelzoo.main([*data, *given, "--method", "isolated", "--continual", "--run_dir", str(folder / "zoo")]) == 0
    (folder / "notes").mkdir()
    (folder / "notes/a.txt").write_text("mine")
    (folder / "two.yaml").write_text("dataset: algorithmic\ntasks: [argmax, 2nd_argmax]\nlength: 3\n")
    return folder


CASES = {
    "misspelt option": (["--exampels", "3"], "unknown option --exampels; did you mean --examples?"),
    "not an option here": (["--method", "er"], "unknown option --method"),
    "every network learns alone": (["--continual"], "unknown option --continual"),
    "policy of checkpoints": (["--checkpoints", "sometimes"], "--checkpoints is 'sometimes'; it must be powers_of_two"),
    "no steps between": (["--checkpoints", "every:0"], "--checkpoints is 'every:0'"),
    "policy of evaluations": (["--evaluate_at", "log:"], "--evaluate_at is 'log:'"),
    "too many evaluations": (["--steps", "2^30", "--evaluate_at", "every:1"], "every:1 is more than 1,000,000 times"),
    "no seeds": (["--seeds", "0"], "--seeds is 0; it must be a whole number at least 1"),
    "seeds in words": (["--seeds", "two"], "--seeds is 'two'"),
    "several lengths": (["--steps", "3", "--epochs", "1"], "epochs and steps are given"),
    "settings of a method": (["--set", "settings.strength=1"], "settings.strength: these are settings of a method"),
    "what stands for a method": (["--set", "method=zoo"], "unknown key 'method'"),
    "misspelt key": (["--set", "data.lenght=3"], "did you mean 'length'?"),
    "misspelt key of a network": (["--set", "net.hidden=3"], "did you mean 'hidden_size'?"),
    "evaluation": (["--evaluate", "domant"], "did you mean 'dormant'?"),
    "tokens to rnn": (CYCLE[:2], "rnn takes numbers of torch.float32; the inputs are torch.int64"),
    "numbers to attention": (CYCLE[2:4], "attention_only takes numbers of torch.int64"),
    "numbers to a network for images": (DIGITS[2:], "model: conv takes images"),
    "several tasks": (["--data_config", "two.yaml"], "two.yaml has 2 tasks; say which with --task NUMBER or NAME"),
    "unknown task": (["--data_config", "two.yaml", "--task", "max"], "unknown task 'max'", "1 argmax, 2 2nd_argmax"),
    "unknown number": (["--data_config", "two.yaml", "--task", "3"], "unknown task '3'"),
    "unknown task where there is one": (["--task", "2"], "unknown task '2'", "1 2nd_argmax"),
    "CUDA without a device": (["--device", "cuda"], "no CUDA devices"),
    "used by a run": (["--run_dir", "runs/seed0"], "runs/seed0 already holds a run; resume it with --resume"),
    "used by one of the runs": (["--run_dir", "runs", "--seeds", "3"], "runs/seed0 already holds a run"),
    "folder of runs": (["--run_dir", "runs"], "--run_dir runs is not empty and not a run"),
    "used by something else": (["--run_dir", "notes", "--overwrite"], "notes is not empty and not a run"),
    "resume and overwrite": (["--resume", "--overwrite"], "--resume and --overwrite contradict each other"),
    "resume nothing": (["--resume"], "--resume: run holds no run"),
    "resume nothing, several": (["--resume", "--seeds", "2"], "--resume: run/seed0 holds no run"),
    "resume with another rate": ([*RESUME, "--set", "hp.lr=1"], "runs/seed0/config.yaml has another hp.lr"),
    "resume with other checkpoints": ([*RESUME, "--checkpoints", "none"], "has another checkpoints"),
    "resume with another length": ([*RESUME, "--steps", "3"], "has another steps"),
    "resume with another task": ([*RESUME, "--data_config", "two.yaml", "--task", "1"], "has another data_config"),
    "resume a run of modelzoo": (["--resume", "--run_dir", "zoo"], "zoo is a run of modelzoo.py; resume it with that"),
    "verify with others": (["--verify", "runs", "--seeds", "2"], "--verify only checks a run; leave --seeds out"),
    "verify nothing": (["--verify", "notes"], "notes has no manifest.json: it is no run"),
}  # fmt: skip
OF_MODELZOO = {
    "resume": (["--resume", "--run_dir", "runs/seed0"], "runs/seed0 is a run of train_task.py; resume it with that"),
    "extend": (["--extend", "runs/seed0", "--data_config", "two.yaml", "--run_dir", "more"],
               "runs/seed0 is a run of train_task.py, which learns a single task"),
    "compare": (["--isolated", "runs/seed0", "--run_dir", "more"], "runs/seed0 is a run of --method train_task"),
}  # fmt: skip


def refused(program, name, arguments, words, folder, monkeypatch, capsys):
    monkeypatch.chdir(folder)
    for variable, value in NOTHING_THERE.items():
        monkeypatch.setenv(variable, value)
    before = contents(folder)
    assert program.main(arguments) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert told.err.startswith(f"{name}: ")
    assert len(told.err.splitlines()) == 1
    assert [word for word in words if word not in told.err] == [], told.err
    assert contents(folder) == before


@pytest.mark.parametrize("case", CASES)
def test_wrong_input_is_refused_in_one_line(case, folder, monkeypatch, capsys):
    arguments, *words = CASES[case]
    where = [] if {"--run_dir", "--verify"} & {*arguments} else ["--run_dir", "run"]
    refused(train_task, "train_task.py", [*arguments, *where], words, folder, monkeypatch, capsys)


@pytest.mark.parametrize("case", OF_MODELZOO)
def test_modelzoo_refuses_what_is_not_its_own(case, folder, monkeypatch, capsys):
    arguments, *words = OF_MODELZOO[case]
    refused(modelzoo, "modelzoo.py", arguments, words, folder, monkeypatch, capsys)


def test_a_damaged_run_is_neither_verified_nor_resumed(folder, monkeypatch, capsys, tmp_path):
    monkeypatch.chdir(tmp_path)
    given = [*TINY, *RNN, "--steps", "2", "--threads", "1", "--quiet", "--seeds", "2", "--run_dir", "runs"]
    assert train_task.main(given) == 0
    capsys.readouterr()
    path = Path("runs/seed1/checkpoints/step_000000000001.safetensors")
    path.write_bytes(path.read_bytes()[:-1])
    for arguments in (["--verify", "runs"], ["--resume", *given]):
        assert train_task.main(arguments) == 2
        assert f"{path} is damaged" in capsys.readouterr().err


def test_the_program_says_what_is_wrong_without_a_trace(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert train_task.main(["--seeds", "0"]) == 2
    out, error = capsys.readouterr()
    assert out == ""
    assert error == "train_task.py: --seeds is 0; it must be a whole number at least 1 and at most 1000\n"
    assert list(tmp_path.iterdir()) == []
