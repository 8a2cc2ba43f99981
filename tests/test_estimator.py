"""The estimators: scikit-learn's own checks, and the runs of modelzoo.py that they must equal."""

import pickle
from pathlib import Path

import numpy as np
import pytest
from sklearn import config_context
from sklearn.base import clone
from sklearn.datasets import load_breast_cancer, load_digits, load_wine
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import accuracy_score
from sklearn.model_selection import GridSearchCV, StratifiedKFold, cross_val_score, train_test_split
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import check_estimator

import modelzoo
from records import Run, configure
from utils.errors import UserError
from zoo import ZooClassifier, ZooRegressor

PROJECT = Path(__file__).parent.parent
SMALL = {"epochs": 5, "lr": 0.1, "settings": {"net.widths": [16]}, "random_state": 0}
# Networks compute in single precision, in which a matrix product depends on the batch in the seventh digit.
ROUNDED = {
    "check_methods_subset_invariance": "equal to 1e-6, not to the 1e-7 of the check",
    "check_methods_sample_order_invariance": "equal to 1e-6, not to the 1e-9 of the check",
}


@pytest.mark.filterwarnings("ignore")  # of scikit-learn, about what its checks try
@pytest.mark.parametrize("kind", [ZooClassifier, ZooRegressor])
def test_the_checks_of_scikit_learn(kind):
    results = check_estimator(kind(**SMALL), expected_failed_checks=ROUNDED, on_skip=None)
    assert sum(result["status"] == "passed" for result in results) > 45


def tables():
    """Three tables of 13 columns as tasks: X, y and the task of each row."""
    parts = []
    for name, load, first in (("wine", load_wine, 0), ("cancer", load_breast_cancer, 0), ("digits", load_digits, 20)):
        data = load()
        labels = [f"{name} {label}" for label in np.asarray(data.target_names)[data.target]]
        parts.append((data.data[:180, first : first + 13], np.array(labels)[:180], np.repeat(name, len(labels))[:180]))
    return tuple(np.concatenate(columns) for columns in zip(*parts, strict=True))


@pytest.fixture(scope="module")
def halves():
    X, y, task = tables()
    return train_test_split(X, y, task, random_state=0, stratify=y)


@pytest.fixture(scope="module")
def fitted(halves):
    X, _, y, _, task, _ = halves
    return ZooClassifier(**{**SMALL, "epochs": 10}).fit(X, y, task)


def test_tables_are_tasks(fitted, halves):
    """About as good as logistic regression on each table; all answers are classes of the task."""
    X, X_test, y, y_test, task, task_test = halves
    assert sorted(fitted.tasks_) == ["cancer", "digits", "wine"]
    answers, proba = fitted.predict(X_test, task_test), fitted.predict_proba(X_test, task_test)
    assert fitted.classes_.tolist() == sorted({*y})
    assert proba.shape == (len(X_test), len(fitted.classes_))
    np.testing.assert_allclose(proba.sum(1), 1, atol=1e-5)
    assert (fitted.classes_[proba.argmax(1)] == answers).all()
    assert fitted.score(X_test, y_test, task_test) == accuracy_score(y_test, answers)
    for name in fitted.tasks_:
        here, there = task == name, task_test == name
        assert all(answer.startswith(name) for answer in answers[there])
        assert (fitted.predict(X_test[there], name) == answers[there]).all()
        twin = make_pipeline(StandardScaler(), LogisticRegression()).fit(X[here], y[here])
        reached = fitted.score(X_test[there], y_test[there], name)
        assert reached > twin.score(X_test[there], y_test[there]) - 0.12


def test_the_features_of_a_task_are_scaled_by_its_own_examples(fitted, halves):
    """Another unit of one task changes nothing, but for rounding."""
    X, X_test, y, _, task, task_test = halves
    unit = np.where(task == "wine", 1000.0, 1.0)[:, None]
    other = clone(fitted).fit(X * unit, y, task)
    unit = np.where(task_test == "wine", 1000.0, 1.0)[:, None]
    there, same = other.predict_proba(X_test * unit, task_test), fitted.predict_proba(X_test, task_test)
    np.testing.assert_allclose(there, same, atol=1e-3)


def test_a_task_that_arrives_later_is_the_same_as_one_in_the_same_call(fitted, halves):
    X, X_test, y, _, task, task_test = halves
    later = clone(fitted)
    for name in fitted.tasks_:
        later.partial_fit(X[task == name], y[task == name], task=str(name))
        assert set(later.classes_) <= set(fitted.classes_)
    assert (later.predict_proba(X_test, task_test) == fitted.predict_proba(X_test, task_test)).all()
    with pytest.raises(ValueError, match="task 'wine' has been learned"):
        later.partial_fit(X[task == "wine"], y[task == "wine"], task="wine")
    with pytest.raises(ValueError, match="task= is needed: 3 tasks"):
        later.predict(X_test)
    with pytest.raises(ValueError, match="task 'beer' has not been learned"):
        later.predict(X_test, "beer")
    with pytest.raises(ValueError, match="task has the shape"):
        later.predict(X_test, ["wine"])


def test_copies_answer_alike(fitted, halves):
    X, X_test, y, _, task, task_test = halves
    expected = fitted.predict_proba(X_test, task_test)
    assert (pickle.loads(pickle.dumps(fitted)).predict_proba(X_test, task_test) == expected).all()
    assert (clone(fitted).fit(X, y, task).predict_proba(X_test, task_test) == expected).all()
    other = clone(fitted).set_params(random_state=1).fit(X, y, task).predict_proba(X_test, task_test)
    assert not np.allclose(other, expected)
    search = GridSearchCV(clone(fitted), {"lr": [0.1, 1e-6]}, cv=2).fit(X[task == "wine"], y[task == "wine"])
    assert search.best_params_ == {"lr": 0.1}


def test_tasks_pass_through_cross_validation(halves):
    X, _, y, _, task, _ = halves
    small, folds = ZooClassifier(**{**SMALL, "epochs": 2}), StratifiedKFold(2)
    with config_context(enable_metadata_routing=True):
        small.set_fit_request(task=True).set_score_request(task=True)
        found = cross_val_score(small, X, y, params={"task": task}, cv=folds)
    (train, test), _ = folds.split(X, y)
    assert found[0] == clone(small).fit(X[train], y[train], task[train]).score(X[test], y[test], task[test])


@pytest.mark.parametrize("method", ["zoo", "derpp", "packnet", "closed_form"])
def test_it_is_the_run_of_the_program(method, halves, tmp_path, monkeypatch):
    """The same predictions on the same arrays, but for the order in which members are added up."""
    monkeypatch.chdir(tmp_path)
    X, X_test, y, y_test, task, task_test = halves
    keep, keep_test = task != "digits", task_test != "digits"
    X, X_test = np.concatenate([X[keep], X_test[keep_test]]).round(2), X_test[keep_test].round(2)
    split = np.repeat(["train", "test"], [keep.sum(), keep_test.sum()])
    both = np.concatenate([task[keep], task_test[keep_test]])
    np.savez("a.npz", X=X, y=np.concatenate([y[keep], y_test[keep_test]]), task=both, split=split)
    Path("d.yaml").write_text("{dataset: arrays, file: a.npz, data_dir: ., scale: false}")
    options = {"zoo": {"replay_frac": 0.5}, "derpp": {"memory": 20}}.get(method, {})
    usual = {"data_config": "d.yaml", "hp_config": str(PROJECT / "config/hyperparam/mlp.yaml"), "epochs": 1,
             "continual": True, "quiet": True, "threads": 1, "run_dir": "run"}  # fmt: skip
    more = {"net.widths": [8], "hp.lr": 1e-4}
    done = Run.load(modelzoo.run(configure(**usual, **options, method=method, seed=3, set=more)))
    settings = {"net.widths": [8], **options}
    found = ZooClassifier(method, epochs=1, lr=1e-4, scale=None, settings=settings, random_state=3)
    training = split == "train"
    found.fit(X[training], y[keep], both[training])
    for number, name in enumerate(found.tasks_, 1):
        own = found.predict_proba(X_test[task_test[keep_test] == name], name)
        np.testing.assert_allclose(own[:, own.any(0)], done.predictions(number, "test"), rtol=0, atol=1e-7)


def test_regression_in_the_unit_of_the_targets():
    rng = np.random.default_rng(0)
    X, task = rng.normal(size=(300, 3)), np.repeat([1, 2], 150)
    y = np.stack([X[:, 0] * 100 + 1000 * task, X[:, 1] - X[:, 2]], 1)
    found = ZooRegressor(**{**SMALL, "epochs": 15}).fit(X, y, task)
    assert found.predict(X, task).shape == y.shape
    assert found.score(X, y, task) > 0.97
    one = ZooRegressor(**{**SMALL, "epochs": 15, "scale": "first"}).fit(X, y[:, 0], task)
    assert one.predict(X, task).shape == (300,)
    assert one.score(X, y[:, 0], task) > 0.97
    inputs, targets = StandardScaler().fit(X[task == 1]), StandardScaler().fit(y[task == 1, :1])  # of the first task
    twin = clone(one).set_params(scale=None).fit(inputs.transform(X), targets.transform(y[:, :1]), task)
    expected = targets.inverse_transform(twin.predict(inputs.transform(X), task))[:, 0]
    np.testing.assert_allclose(one.predict(X, task), expected, rtol=1e-3)


def test_arrays_that_do_not_fit(fitted, halves):
    X, _, y, _, _, _ = halves
    with pytest.raises(ValueError, match="task is missing in row 1, from 0"):
        clone(fitted).fit(X, y, np.where(np.arange(len(y)) == 1, np.nan, 2.0))
    one = ZooClassifier(**SMALL).fit(X[:, :2], np.arange(len(X)) % 2)
    with pytest.raises(ValueError, match="some classes are numbers and others texts"):
        one.partial_fit(X[:, :2], y)
    assert one.fit(X[:, :2], y).classes_.tolist() == sorted({*y})  # from nothing
    numbers = ZooRegressor(**SMALL).fit(X[:, :2], X[:, 2])
    with pytest.raises(ValueError, match="y has 2 numbers for an example; it had 1 before"):
        numbers.partial_fit(X[:, :2], X[:, 2:4])


def test_series_and_wrong_settings():
    rng = np.random.default_rng(0)
    y = np.arange(60) % 2
    X = np.sin(np.arange(20) * (0.3 + y[:, None]) + rng.uniform(0, 6, (60, 1)))[:, None]
    found = ZooClassifier(network="conv1d", settings={"net.width": 8}, epochs=10, lr=0.05, random_state=0).fit(X, y)
    assert found.score(X, y) > 0.9
    with pytest.raises(ValueError, match=r"X has examples of shape \[1, 19\]; fit has seen \[1, 20\]"):
        found.predict(X[..., 1:])
    for wrong, (value, line) in {
        "settings": ({"net.wide": 3}, "unknown key 'wide'"), "method": ("zo", "unknown method 'zo'"),
        "scale": ("no", "scale is 'no'"), "network": ("lp", "lp.yaml does not exist"), "lr": (-1, "lr is -1"),
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=line):
            ZooClassifier(**{wrong: value}).fit(X, y)
    for value, line in (
        ({"seed": 3}, "'seed' is a parameter, or has no effect"),
        ({"data.hold_out": 0.1}, "'data.hold_out' is a parameter, or has no effect"),
        ([3], r"settings is \[3\]; it must map"),
    ):
        with pytest.raises(UserError, match=line):
            ZooClassifier(settings=value).fit(X, y)
