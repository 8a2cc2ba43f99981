"""Searches for settings: what is tried, what goes on, what is written, and what is refused."""

import csv
import math
from argparse import Namespace
from pathlib import Path

import pytest
import yaml

import benchmark
import modelzoo
from datasets.validation import NOTICE
from records.invocation import parse
from reporting.commands import COMMANDS
from studies.grid import load_grid
from studies.search import search
from studies.search_file import Search, load_search
from tests.test_benchmark import finish
from utils.errors import TrainingError, UserError

PROJECT = Path(__file__).parent.parent
LR = {"low": 0.001, "high": 0.1, "log": True}
SEARCH = {
    "streams": ["two_digits.yaml"],
    "hyperparams": ["config/hyperparam/conv.yaml"],
    "methods": ["finetune"],
    "seeds": 1,
    "samples": 2,
    "epochs": 9,
    "validation": 0.2,
    "first_tasks": 2,
    "space": {"hp.lr": LR, "hp.batch": [8, 16], "net.width": {"low": 16, "high": 64, "step": 16}},
    "trials": 4,
    "sampler": "random",
}
HALVING = {"factor": 3, "smallest": 0.11}


@pytest.fixture(autouse=True)
def _elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("two_digits.yaml").write_text("dataset: digits\ntasks: [[0, 1], [2, 3], [4, 5]]\n")


def write(**changes):
    Path("s.yaml").write_text(yaml.safe_dump({**SEARCH, **changes}, sort_keys=False))


def optimum(config):
    """The best learning rate is 0.03; more epochs help a little."""
    return 0.9 - 0.1 * abs(math.log10(config.hp.lr / 0.03)) + 0.001 * config.hp.epochs


class Pretended:
    """Finishes runs without training: their final accuracy is a function of the configuration, seeds differ by 0.02."""

    def __init__(self, score=optimum, ends_after=math.inf):
        self.score, self.ends_after, self.runs = score, ends_after, []

    def __call__(self, jobs):
        for job in jobs:
            for run in job.runs:
                if len(self.runs) >= self.ends_after:
                    raise KeyboardInterrupt
                self.runs.append(run)
                if (score := self.score(run.config)) is not None:
                    value = score + 0.01 * (-1) ** run.config.seed
                    finish(run, run.directory.parent, (value, value), total_seconds=2.0)


def run(execute=None, store="store", **changes):
    write(**changes)
    execute = execute or Pretended()
    assert search(Namespace(config="s.yaml", store=store), execute) == 0
    with open(Path(store, "search.csv")) as file:
        return list(csv.DictReader(file)), execute


def test_trials_are_runs_with_validation_of_values_in_the_space():
    rows, done = run(seeds=[7, 8])
    assert [int(row["trial"]) for row in rows] == list(range(4))
    assert [rows[0][key] for key in SEARCH["space"]] == ["", "", ""]  # the presets
    presets = parse(["--hp_config", str(PROJECT / "config/hyperparam/conv.yaml")]).config
    assert done.runs[0].config.hp.lr == presets.hp.lr
    for row, made in zip(rows, zip(done.runs[::2], done.runs[1::2], strict=True), strict=True):
        assert {each.config.seed for each in made} == {7, 8}
        config = made[0].config
        assert (config.data.validation, config.data.first_tasks, config.hp.epochs) == (0.2, 2, 9)
        assert float(row["score"]) == pytest.approx(optimum(config))
        assert float(row["half_width"]) == pytest.approx(12.7062 * 0.01, rel=1e-4)  # t(0.975, 1) s / sqrt(2)
        assert (row["runs"], float(row["seconds"]), row["rung"]) == ("2", 4.0, "0")
        if row["hp.lr"]:
            assert config.hp.lr == float(row["hp.lr"])
            assert 0.001 <= config.hp.lr <= 0.1
            assert config.hp.batch == int(row["hp.batch"]) in (8, 16)
            assert config.net.settings.width == int(row["net.width"]) in (16, 32, 48, 64)
    assert len({row["hp.lr"] for row in rows}) == 4


def test_the_best_settings_are_ready_to_use():
    rows, _ = run(seeds=[1, 2])
    best = max(rows, key=lambda row: float(row["score"]))
    config = parse(["--hp_config", "store/best-conv-finetune.yaml"]).config
    assert (str(config.hp.lr), str(config.hp.batch)) == (best["hp.lr"], best["hp.batch"])
    assert str(config.net.settings.width) == best["net.width"]
    given = parse(["--hp_config", str(PROJECT / "config/hyperparam/conv.yaml")]).config
    assert (config.hp.l2_reg, config.net.model) == (given.hp.l2_reg, given.net.model)
    grid = load_grid("store/compare-conv.yaml", Path("test"))
    assert {run.label for run in grid.runs} == {"finetune", "finetune, found"}
    assert not {run.config.seed for run in grid.runs} & {1, 2}
    for run_ in grid.runs:
        found = run_.label.endswith("found")
        assert (run_.config.data.validation, run_.config.data.first_tasks) == (0, None)
        assert run_.config.hp.lr == (config.hp.lr if found else given.hp.lr)
    table = Path("store/table.md").read_text()
    assert (
        f"| {best['hp.lr']} | {best['hp.batch']} | {best['net.width']} | {float(best['score']):.4f} ± 0.1271 |" in table
    )
    assert f"| presets | presets | presets | presets | {float(rows[0]['score']):.4f} ± 0.1271 |" in table
    assert "4 trials by random: 8 runs, 72 epochs, 16 s" in table
    assert "test examples were not read, and nothing after the first 2 tasks" in table


def test_where_nothing_is_better_the_presets_are_found():
    run(Pretended(lambda config: 0.5))
    preset, found = (parse(["--hp_config", path]).config for path in
                     (str(PROJECT / "config/hyperparam/conv.yaml"), "store/best-conv-finetune.yaml"))  # fmt: skip
    assert (found.hp, found.net.settings) == (preset.hp, preset.net.settings)


def test_of_each_rung_the_best_third_goes_on():
    """As a brute-force simulation says, which compares a trial with those that came to its rung before."""
    rows, done = run(halving=HALVING, trials=12, space={"hp.lr": LR})
    assert {run.config.hp.epochs for run in done.runs} == {1, 3, 9}
    reached = ([], [])  # scores at each rung
    for row in rows:
        lr = float(row["hp.lr"] or 0.01)
        rung = 0
        while rung < 2:
            score = 0.9 - 0.1 * abs(math.log10(lr / 0.03)) + 0.001 * 3**rung
            reached[rung].append(score)
            best = sorted(reached[rung], reverse=True)[: max(1, len(reached[rung]) // 3)]
            if row["trial"] != "0" and score < best[-1]:
                break
            rung += 1
        assert int(row["rung"]) == rung, row
        assert row["state"] == ("complete" if rung == 2 else "ended")
        assert int(row["length"]) == 3**rung
        assert int(row["runs"]) == rung + 1


@pytest.mark.parametrize("more", [{"trials": 12}, {"trials": 6, "halving": HALVING, "at_once": 4}])
def test_a_search_that_was_ended_goes_on(more):
    """It makes the runs that were not finished, and finds what an undisturbed one finds."""
    more = {**more, "sampler": "tpe"}
    whole, alone = run(store="alone", **more)
    for end in (2, 8):
        with pytest.raises(KeyboardInterrupt):
            run(Pretended(ends_after=end), store=f"ended{end}", **more)
        with open(f"ended{end}/search.journal", "ab") as journal:
            journal.write(b'{"op_code": 5, "worker')  # killed while it wrote
        rows, rest = run(store=f"ended{end}", **more)
        assert rows == whole
        assert len(rest.runs) == len(alone.runs) - end
    again, nothing = run(store="alone", **more)
    assert again == whole
    assert not nothing.runs


def test_a_search_that_was_killed_at_any_line_of_its_journal_goes_on():
    """Also where a trial was half drawn, or known to end but not ended."""
    space = {key: SEARCH["space"][key] for key in ("net.width", "hp.lr")}
    more = {"trials": 2, "halving": HALVING, "space": space}
    whole, _ = run(Pretended(lambda config: config.hp.lr == 0.01), **more)
    assert [row["state"] for row in whole] == ["complete", "ended"]
    path = Path("store/search.journal")
    lines = path.read_bytes().splitlines(keepends=True)
    known = [place for place, line in enumerate(lines) if b'"trial_id":1' in line.replace(b" ", b"")]
    for end in known:
        path.write_bytes(b"".join(lines[:end]))
        assert run(**more)[0] == whole, end


def test_tpe_finds_better_values_than_chance():
    """Means over trials, which only a sampler that learns raises."""
    space = {"hp.lr": {"low": 1.0e-6, "high": 1.0, "log": True}}
    means = {}
    for sampler in ("random", "tpe"):
        rows, _ = run(store=sampler, sampler=sampler, trials=20, space=space)
        means[sampler] = sum(float(row["score"]) for row in rows[12:]) / 8
    assert means["tpe"] > means["random"] + 0.03


def test_a_trial_that_diverges_is_the_worst():
    rows, _done = run(Pretended(lambda config: None if config.hp.lr > 0.02 else 0.5), halving=HALVING, trials=6)
    failed = [row for row in rows if row["state"] == "failed"]
    assert failed
    assert all(float(row["hp.lr"]) > 0.02 for row in failed)
    assert all(float(row["hp.lr"] or 0) <= 0.02 for row in rows if row not in failed)
    again, rest = run(halving=HALVING, trials=6)
    assert again == rows
    assert not rest.runs
    with pytest.raises(TrainingError, match="conv, finetune: the presets cannot be run"):
        run(Pretended(lambda config: None), store="other")


def test_values_that_do_not_go_together_are_a_failed_trial(capsys):
    """A network may accept each of two values with the presets, but not both."""
    changes = {"space": {"hp.lr": LR, "hp.batch": [8, 16]}}

    class Refused(Pretended):
        def __call__(self, jobs):
            assert all(run_.config.hp.batch != 8 for job in jobs for run_ in job.runs)
            super().__call__(jobs)

    whole = Search.plan

    def plan(self, subject, values, share=1.0):
        if len(values) == 2 and values["hp.batch"] == 8:
            raise UserError("batch 8 does not go with this rate")
        return whole(self, subject, values, share)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Search, "plan", plan)
        rows, _ = run(Refused(), trials=8, **changes)
    failed = {row["trial"] for row in rows if row["state"] == "failed"}
    assert failed == {row["trial"] for row in rows if row["hp.batch"] == "8"} != set()
    assert capsys.readouterr().err.count("failed: conv, finetune: batch 8 does not go with this rate") == len(failed)


@pytest.mark.parametrize(
    ("entry", "draw", "value"),
    [
        ({"low": 0.9, "high": 0.99999}, 0.999987, 0.99999),  # four digits would be 1
        ({"low": 0.12344, "high": 0.9}, 0.12344, 0.12344),
        ({"low": 0.001, "high": 0.1}, 0.0123456, 0.01235),
        ({"low": 0.0, "high": 0.9, "step": 0.00005}, 0.12345, 0.12345),
        ({"low": 0.1, "high": 0.9, "step": 0.1}, 0.1 + 2 * 0.1, 0.3),
    ],
)
def test_drawn_numbers_are_short_and_in_the_space(entry, draw, value):
    write(space={"hp.beta1": entry})
    assert load_search("s.yaml", Path("store")).space[0].value(draw) == value


def test_lower_is_better_for_errors():
    class Errors(Pretended):
        def __call__(self, jobs):
            for run_ in (run_ for job in jobs for run_ in job.runs):
                error = 1 - optimum(run_.config)
                more = {"metric": "rmse", "higher_is_better": False, "avg_rmse_final": error, "total_seconds": 1.0}
                finish(run_, "store", (error, error), **more)

    rows, _ = run(Errors())
    best = min(rows, key=lambda row: float(row["score"]))
    assert str(parse(["--hp_config", "store/best-conv-finetune.yaml"]).config.hp.lr) == best["hp.lr"]


def test_each_method_is_searched_for_itself():
    rows, _ = run(methods=["finetune", {"method": "er", "label": "replay", "memory_per_class": 1}], trials=3,
                  space={"hp.lr": LR})  # fmt: skip
    assert [(row["method"], row["trial"]) for row in rows] == [
        (name, str(n)) for name in ("finetune", "replay") for n in range(3)
    ]
    labels = {run_.label for run_ in load_grid("store/compare-conv.yaml", Path("test")).runs}
    assert labels == {"finetune", "finetune, found", "replay", "replay, found"}


def test_what_is_found_is_compared_on_test_examples_wherever_validation_stands():
    """In an entry as in the file."""
    own = {"validation": 0.2, "data.first_tasks": 2}
    run(trials=2, validation=0.1, streams=[{"stream": "two_digits.yaml", **own}],
        hyperparams=[{"hp_config": "config/hyperparam/conv.yaml", "validation": 0.3}],
        methods=[{"method": "finetune", **own}])  # fmt: skip
    for run_ in load_grid("store/compare-conv.yaml", Path("test")).runs:
        assert (run_.config.data.validation, run_.config.data.first_tasks) == (0, None)


def test_train_task_is_searched_on_a_generated_task():
    changes = {
        "program": "train_task", "streams": [str(PROJECT / "config/dataset/median.yaml")], "seeds": 2,
        "hyperparams": [str(PROJECT / "config/hyperparam/rnn.yaml")], "examples": 4096, "space": {"hp.lr": LR},
        "trials": 2, "halving": {"factor": 4, "smallest": 0.25}, "validation": 0.1,
    }  # fmt: skip
    content = {key: value for key, value in {**SEARCH, **changes}.items() if key not in ("methods", "epochs", "samples",
                                                                                        "first_tasks")}  # fmt: skip
    Path("s.yaml").write_text(yaml.safe_dump(content))
    config = load_search("s.yaml", Path("store"))
    (subject,) = config.subjects
    runs = config.plan(subject, {"hp.lr": 0.02}, 0.25).runs
    assert [run_.config.hp.examples for run_ in runs] == [1024, 1024]
    assert {(run_.config.hp.lr, run_.config.data.validation) for run_ in runs} == {(0.02, 0.1)}


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"validation": 0}, "validation is 0, so that finetune would be tuned on test examples"),
        ({"space": {}}, "space must map settings to values"),
        ({"space": {"hp.lr": {"low": 0.1}}}, "space: hp.lr must be a list of values, or low, high"),
        ({"space": {"hp.lr": {"low": 0.1, "high": 0.01}}}, "low must be below high"),
        ({"space": {"hp.lr": {"low": 0.0, "high": 0.1, "log": True}}}, "with log: true low is above 0"),
        ({"space": {"hp.lr": {"low": -0.1, "high": 0.1}}}, "finetune, lr -0.1: .*it must be a number"),
        ({"space": {"hp.lrr": [0.1]}}, "unknown key 'lrr'"),
        ({"space": {"hp.batch": {"low": 8, "high": 32, "step": 2.5}}}, "step is 2.5; between whole numbers it is one"),
        ({"space": {"data.validation": [0.1, 0]}}, "settings that begin with net., hp., settings. can be searched"),
        ({"methods": [{"method": "finetune", "hp.lr": 0.1}]}, "hp.lr has no effect: conv, finetune sets it itself"),
        ({"vary": {"hp.lr": [0.1]}}, "vary is for grids; what a search varies stands in space"),
        ({"program": ["modelzoo"]}, "program: unknown program"),
        ({"space": {"hp.lr": {"low": 0.1, "high": math.inf}}}, "space: hp.lr: high is inf; it must be a number"),
        ({"sampler": "grid"}, "unknown sampler 'grid'"),
        ({"trials": 0}, "trials is 0"),
        ({"halving": {"factor": 3}}, "halving must have the keys factor and smallest"),
        ({"halving": {"factor": 3, "smallest": 0.01}}, "9 epochs have no share of 0.012"),
        ({"methods": ["finetune", "finetune"]}, "conv, finetune is searched for twice"),
    ],
)
def test_what_cannot_be_searched_is_refused_in_one_line(changes, words):
    write(**changes)
    with pytest.raises(UserError, match=words) as refused:
        search(Namespace(config="s.yaml", store="store"), Pretended())
    assert "\n" not in str(refused.value)
    assert not Path("store/search.csv").exists()


def test_a_store_keeps_one_search():
    run(trials=2)
    with pytest.raises(UserError, match=r"store has another search for conv, finetune than .*; name another --store"):
        run(space={"hp.lr": [0.1, 0.2]})
    rows, _ = run(trials=3)  # more of the same
    assert len(rows) == 3
    Path("two_digits.yaml").write_text("dataset: digits\ntasks: [[0, 1], [2, 4], [6, 5]]\n")
    with pytest.raises(UserError, match="another search"):
        run(trials=3)


def test_a_search_is_a_command(capsys):
    """Trials whose runs are finished start no process."""
    run(trials=2)
    assert benchmark.main(["search", "--config", "s.yaml", "--store", "store"]) == 0
    assert "store/table.md" in capsys.readouterr().out
    assert benchmark.main(["search", "--config", "s.yaml", "--store", "store", "--jobs", "0"]) == 2
    assert "--jobs is 0" in capsys.readouterr().err


def test_a_real_search_reads_no_test_examples(capsys, monkeypatch):
    """Runs of modelzoo.py, for which the test half of the digits does not exist."""
    import datasets.images.digits as digits

    loaded = digits.load

    def without_test():
        def fail():
            raise AssertionError("test examples were read")

        return loaded()[0], fail

    monkeypatch.setattr(digits, "load", without_test)

    def execute(jobs):
        for job in jobs:
            assert modelzoo.main(list(job.arguments)) == 0

    changes = {"hyperparams": [str(PROJECT / "config/hyperparam/linear.yaml")], "space": {"hp.lr": LR}}
    run(execute, trials=2, epochs=1, first_tasks=1, **changes)
    assert NOTICE in capsys.readouterr().out
    write(**changes, validation=0)
    with pytest.raises(UserError, match="validation is 0"):
        search(Namespace(config="s.yaml", store="other"), execute)


def test_searches_that_ship_are_accepted():
    for path in (PROJECT / "config/benchmark").glob("search*.yaml"):
        assert load_search(str(path), Path("store")).subjects


def test_a_search_from_the_command_line(capsys):
    """Nothing is wrong with its options but the name of the engine; and then its file has no space."""
    write(space={})
    assert COMMANDS["search"](["--config", "s.yaml", "--store", "store", "--engine", "locale"]) == 2
    assert capsys.readouterr().err.startswith("benchmark.py: --engine: unknown engine 'locale'; did you mean 'local'?")
    assert COMMANDS["search"](["--config", "s.yaml", "--store", "store", "--jobs", "2"]) == 2
    assert capsys.readouterr().err.startswith("benchmark.py: s.yaml: space ")
