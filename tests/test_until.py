"""--until: a run stops at the first evaluation at which it is good enough on development examples."""

import pytest
from safetensors.torch import load_file

from tests.test_train_task import DIGITS, MEDIAN, RNN, TINY, checkpoints, here, settings, summary, train, whole

__all__ = ["here"]
LEARNING = [*RNN, *TINY, *settings(data__length=2, hp__lr=0.03), "--steps", "300", "--evaluate_at", "every:20"]


def first_at_least(scores, goal):
    return next(step for step, score in sorted(scores.items()) if score >= goal)


def test_the_run_is_the_whole_one_until_there():
    whole_run = train("whole", *LEARNING, "--checkpoints", "every:20")
    goal = 0.98
    stop = first_at_least(whole(whole_run), goal)
    assert 0 < stop < 300
    run = train("stopped", *LEARNING, "--until", str(goal))
    found = whole(run)
    assert found == {step: score for step, score in whole(whole_run).items() if step <= stop}
    told = summary(run)
    assert told["reached"] == told["steps"] == stop
    assert told["examples"] == 32 * stop
    assert told["dev"] == found[stop]
    (member,) = (run / "members").glob("*.safetensors")
    kept = checkpoints(whole_run)[stop]
    assert all((value == kept[name]).all() for name, value in load_file(member).items())


def test_each_of_several_seeds_stops_for_itself():
    folder = train("together", *LEARNING, "--until", "0.9", "--seeds", "4")
    stops = {}
    for seed in range(4):
        alone, run = train(f"alone{seed}", *LEARNING, "--until", "0.9", "--seed", str(seed)), folder / f"seed{seed}"
        stops[seed] = summary(run)["reached"]
        assert stops[seed] == summary(alone)["reached"]
        assert summary(run)["avg_acc_final"] == pytest.approx(summary(alone)["avg_acc_final"], abs=0.02)
        assert whole(run).keys() == whole(alone).keys()
    assert len(set(stops.values())) > 1  # or this tests nothing


def test_a_goal_that_is_never_reached_changes_nothing():
    usual, run = train("usual", *LEARNING), train("until", *LEARNING, "--until", "1.5")
    assert whole(usual) == whole(run)
    assert summary(run)["reached"] is None
    assert summary(run)["avg_acc_final"] == summary(usual)["avg_acc_final"]


def test_an_error_is_to_fall_to_the_goal():
    options = [*MEDIAN, *TINY, *settings(data__length=2, hp__lr=0.1), "--steps", "200", "--evaluate_at", "every:20"]
    run = train("median", *options, "--until", "0.65")
    errors = whole(run, metric="rmse")
    stop = summary(run)["reached"]
    assert stop == max(errors) < 200
    assert all((error <= 0.65) == (step == stop) for step, error in errors.items())


def test_test_examples_do_not_stop_a_run(capsys):
    train("digits", *DIGITS, "--task", "1", "--epochs", "1", "--until", "0.9", code=2)
    assert "there are no development examples" in capsys.readouterr().err
