"""Every method through the driver, on the digits, with all and with little of its memory: results and ledger."""

import json

import pytest

import modelzoo
from methods import METHODS
from tests.tables import read_metrics

SAMPLES, TASKS, CLASSES = 4, 5, 2
KEEPING = [name for name, method in METHODS.items() if "memory" in method.options]
LIMITS = {name: [[], ["--memory_per_class", "1"], ["--memory", "7"]] for name in KEEPING}
CASES = [(name, limit) for name in METHODS for limit in LIMITS.get(name, [[]])]


def allowed(method, limit):
    """Training examples that may be kept after all tasks."""
    everything = SAMPLES * CLASSES * TASKS
    if limit:
        return int(limit[1]) * (CLASSES * TASKS if limit[0] == "--memory_per_class" else 1)
    return everything if method == "cumulative" or method in KEEPING else 0


@pytest.mark.parametrize(("method", "limit"), CASES, ids=lambda value: "".join(value))
def test_every_method_runs_on_the_digits_and_accounts_for_itself(method, limit, tmp_path):
    mode = ["--continual"] if "continual" in METHODS[method].modes else []
    code = modelzoo.main([
        *mode, "--method", method, "--samples", str(SAMPLES), "--epochs", "2", "--run_dir", str(tmp_path / "run"),
        "--set", "net.width=32", "--quiet", *limit,
    ])  # fmt: skip
    assert code == 0
    summary = json.loads((tmp_path / "run/summary.json").read_text())
    # Memories without a limit from here have ten examples of each class, more than there are.
    assert summary["stored_examples"] == allowed(method, limit)
    images = 8 * 8 + 8  # uint8 pixels and an int64 label
    answers = 4 * CLASSES if method in ("der", "derpp") else 0
    assert summary["stored_bytes"] == summary["stored_examples"] * (images + answers)
    assert summary["images_trained"] > 0
    if method == "closed_form":
        assert summary["sample_gradients"] == 0
    else:
        assert summary["sample_gradients"] >= summary["images_trained"]
    network = summary["parameters_per_prediction"] / summary["members_per_prediction"]
    assert summary["parameters_total"] >= network > 15_000
    assert 0 < summary["train_seconds"] < summary["total_seconds"]
    rows = read_metrics(tmp_path / "run").query("scenario == 'task-incremental' and split == 'test' and episode > 0")
    assert len(rows) == (TASKS * (TASKS + 1) // 2 if mode else TASKS * rows.episode.nunique())
    assert summary["avg_acc_final"] == pytest.approx(rows.query(f"episode == {rows.episode.max()}").accuracy.mean())
    assert summary["avg_acc_final"] > 0.4
