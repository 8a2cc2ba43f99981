"""Estimators with the habits of scikit-learn: a zoo, or a baseline, that is fitted to arrays in memory.

from zoo import ZooClassifier
ZooClassifier(random_state=0).fit(X, y, task).predict(X, task)
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import accuracy_score, r2_score
from sklearn.utils import check_random_state
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from datasets.arrays.scaling import ArrayPreprocess, moments
from datasets.objectives import CrossEntropy, Objective, RealNumbers
from datasets.task import TEST, TRAIN, Episode, Examples, StreamSpec, Table, Task
from evaluation.members import Member, PredictionCache
from methods import build_method
from methods.base import Context, Method
from methods.config import RunConfig
from records.commandline import PROJECT
from records.invocation import configure, with_settings
from training.monitor import Monitor
from utils.compute import Compute, pick_device, runs_in_bf16
from utils.errors import UserError

Array = np.ndarray[Any, np.dtype[Any]]
SCALES = ("task", "first", None)
# Settings of a run that have no effect here, or are parameters.
_REFUSED = ("continual", "device", "evaluate", "evaluate_every", "method", "rounds", "seed", "threads", "warm_start")


@dataclass(frozen=True)
class _Scale:
    """x -> (x - mean) / sd, by feature or channel."""

    mean: Array
    sd: Array

    @classmethod
    def of(cls, values: Array) -> "_Scale":
        """That of examples [N, D] or [N, C, ...]."""
        shape = (-1, *(1,) * (values.ndim - 2))
        return cls(*(np.array(part).reshape(shape) for part in moments(values)))

    def __call__(self, values: Array) -> Array:
        return (values - self.mean) / self.sd


@dataclass(frozen=True)
class _Known:
    """What is known of a task that was learned."""

    number: int
    features: _Scale | None
    targets: _Scale | None = None  # of real numbers
    classes: Array | None = None


class _Zoo(BaseEstimator, ABC):  # type: ignore[misc]
    """What classifiers and regressors share; the parameters are explained in ZooClassifier."""

    _shape: tuple[int, ...]  # of an example
    _known: dict[Any, _Known]  # by value of `task`, in their order
    _method: Method
    members_: list[Member]

    def __init__(
        self, method: str = "zoo", network: str = "mlp", epochs: int = 50, batch: int | str = 16, lr: float = 0.01,
        scale: str | None = "task", settings: Mapping[str, Any] | None = None, device: str = "cpu",
        random_state: Any = None,
    ) -> None:  # fmt: skip
        self.method, self.network, self.epochs, self.batch, self.lr = method, network, epochs, batch, lr
        self.scale, self.settings, self.device, self.random_state = scale, settings, device, random_state

    def fit(self, X: Any, y: Any, task: Any = None) -> Any:
        """Learn the tasks one after another, in the order of appearance, from nothing.

        Args:
            X: [N, D], or series [N, C, L].
            y: [N] classes or real numbers; real numbers also [N, K].
            task: [N] or one value: of which task an example is, any numbers or texts; None: all are of one task.
        """
        return self._learn(X, y, task, fresh=True)

    def _learn(self, X: Any, y: Any, task: Any, fresh: bool) -> Any:
        X, y = self._checked(X, y, fresh)
        if not fresh and X.shape[1:] != self._shape:
            raise ValueError(f"X has examples of shape {list(X.shape[1:])}; they were {list(self._shape)} before")
        labels = self._labels(task, len(X), 1 if fresh else len(self._known) + 1)
        order = list(dict.fromkeys(labels.tolist()))
        known = {} if fresh else self._known
        if again := [label for label in order if label in known]:
            raise ValueError(f"task {again[0]!r} has been learned; only new tasks can be added, and fit begins anew")
        parts = {label: (X[labels == label], y[labels == label]) for label in order}
        facts = {label: self._facts(label, *parts[label]) for label in order}  # before anything is trained
        if fresh:
            self._known, self._shape, self.members_ = {}, X.shape[1:], []
            self._method = self._new_method(len(order))
        for label in order:
            self._add(label, *parts[label], *facts[label])
        self.tasks_ = np.array(list(self._known))
        return self

    def _new_method(self, tasks: int) -> Method:
        if self.scale not in SCALES:
            raise UserError(f"scale is {self.scale!r}; it must be one of {', '.join(map(repr, SCALES))}")
        config = self._config(tasks)
        device = pick_device(self.device)
        spec = StreamSpec("arrays", self._shape, self._objective(), ArrayPreprocess())
        return build_method(Context(config, spec, Compute(device, runs_in_bf16(config.precision, device))))

    def _config(self, tasks: int) -> RunConfig:
        """The configuration of modelzoo.py that has these parameters."""
        seed = self.random_state
        if not isinstance(seed, (int, np.integer)):
            seed = check_random_state(seed).randint(2**31 - 1)
        own = {} if self.settings is None else self.settings
        if not isinstance(own, Mapping):
            raise UserError(f"settings is {own!r}; it must map dotted keys to values, such as {{'net.widths': [64]}}")
        for key in own:
            if key in _REFUSED or str(key).startswith("data."):
                raise UserError(f"settings: {key!r} is a parameter, or has no effect on arrays in memory; leave it out")
        given = {"hp.batch": self.batch, "hp.lr": self.lr, **own}
        return with_settings(
            configure(
                data_config=str(PROJECT / "config" / "dataset" / "arrays.yaml"),
                hp_config=str(PROJECT / "config" / "hyperparam" / f"{self.network}.yaml"),
                method=self.method, continual=True, epochs=self.epochs, seed=int(seed), device=self.device,
                set={"data.tasks": [f"task {number}" for number in range(1, tasks + 1)], **given},
            )
        )  # fmt: skip

    def _add(self, label: Any, X: Array, y: Array, targets: _Scale | None, classes: Array | None) -> None:
        """Learn one task."""
        first = next(iter(self._known.values()), None)
        features = None
        if self.scale is not None:
            features = _Scale.of(X) if first is None or self.scale == "task" else first.features
            if targets is not None and first is not None and self.scale == "first":
                targets = first.targets
        known = _Known(len(self._known) + 1, features, targets if self.scale is not None else None, classes)
        encoded = self._encoded(y, known)
        device = self._method.compute.device
        store = self._inputs(X, known)
        examples = Examples(store, torch.arange(len(X), device=device), torch.from_numpy(encoded).to(device))
        # There are no test examples here; a method wants some inputs to be asked about.
        splits = {TRAIN: examples, TEST: examples.subset(torch.arange(1))}
        names = () if classes is None else tuple(map(str, classes.tolist()))
        width = len(names) or encoded.shape[1]
        task = Task(known.number, str(label), width, Table(examples), splits, names)
        self._method.learn(Episode(known.number, (task,)), Monitor())
        for member in self._method.new_members:
            self.members_ = [*([] if member.replaces else self.members_), member]
        self._known[label] = known

    def _inputs(self, X: Array, known: _Known) -> torch.Tensor:
        scaled = X if known.features is None else known.features(X)
        return torch.from_numpy(np.ascontiguousarray(scaled, np.float32)).to(self._method.compute.device)

    def _answers(self, X: Any, task: Any) -> Iterator[tuple[_Known, Array, Array]]:
        """By task: what is known of it, the rows of its examples, and the mean of its members' predictions."""
        check_is_fitted(self, "members_")
        X = validate_data(self, X, reset=False, dtype=np.float64, allow_nd=True)
        if X.shape[1:] != self._shape:
            raise ValueError(f"X has examples of shape {list(X.shape[1:])}; fit has seen {list(self._shape)}")
        if task is None and len(self._known) > 1:
            raise ValueError(f"task= is needed: {len(self._known)} tasks have been learned")
        labels = self._labels(task, len(X), next(iter(self._known)))
        for label in dict.fromkeys(labels.tolist()):
            if label not in self._known:
                raise ValueError(f"task {label!r} has not been learned; known: {', '.join(map(repr, self._known))}")
            rows = (labels == label).nonzero()[0]
            known = self._known[label]
            inputs = self._inputs(X[rows], known)
            yield known, rows, self._mean(known.number, inputs).cpu().numpy().astype(np.float64)

    def _mean(self, number: int, inputs: torch.Tensor) -> torch.Tensor:
        """The weighted mean of the predictions of the members that have learned a task, [N, C]."""
        rows = torch.arange(len(inputs), device=inputs.device)
        examples = Examples(inputs, rows, torch.zeros_like(rows))
        answers = PredictionCache()
        for member in self.members_:
            if number in member.tasks:
                with member.net.for_task(member.task_weights.get(number, {})):
                    predictions = self._method.ask(member.net, number, examples, f"member {member.number}")
                answers.add(number, TEST, predictions, member.weights[member.tasks.index(number)])
        return answers.average(number, TEST)

    @staticmethod
    def _labels(task: Any, count: int, default: Any) -> Array:
        """The task of each example, [N]."""
        labels = np.asarray(default if task is None else task)
        if labels.ndim == 0:
            labels = np.repeat(labels, count)
        if labels.shape != (count,):
            raise ValueError(f"task has the shape {list(labels.shape)}; it must be [{count}], or one value")
        if (missing := labels != labels).any():  # NaN
            raise ValueError(f"task is missing in row {int(missing.argmax())}, from 0")
        return labels

    @abstractmethod
    def _checked(self, X: Any, y: Any, fresh: bool) -> tuple[Array, Array]:
        """X and y as arrays; ValueError if they are none of the right kind."""

    @abstractmethod
    def _objective(self) -> Objective:
        """What is learned."""

    @abstractmethod
    def _facts(self, label: Any, X: Array, y: Array) -> tuple[_Scale | None, Array | None]:
        """The scale of a task's real numbers, or its classes."""

    @abstractmethod
    def _encoded(self, y: Array, known: _Known) -> Array:
        """Targets as networks learn them."""


class ZooClassifier(ClassifierMixin, _Zoo):  # type: ignore[misc]
    """A Model Zoo, or another method, that classifies arrays of one task or of several, which arrive one after another.

    Without `task` all examples are of one task. A task is told apart by its value of `task`, in `fit` and in
    `predict`; each has classes of its own. Networks are trained as by modelzoo.py --continual, in memory.

    Args:
        method: zoo, or a baseline (docs/baselines.md).
        network: a file of config/hyperparam/ without .yaml, such as mlp, or conv1d for series.
        epochs, batch, lr: how long and how each network is trained.
        scale: features are scaled by mean and sd of the training examples of their task ("task"), of the first task
            ("first"), or not at all (None).
        settings: other settings of modelzoo.py by their dotted keys (docs/running.md), such as
            {"net.widths": [64], "hp.optimizer": "adam", "tasks_per_round": 3, "memory": 200}.
        device: auto, cpu, cuda, cuda:N or mps.
        random_state: a whole number gives the same networks each time.

    Attributes:
        classes_: the classes of all tasks, sorted: the columns of predict_proba.
        tasks_: the values of `task` that were learned, in their order.
        members_: the networks that answer.

    Wrong arrays raise ValueError, wrong settings utils.errors.UserError, and training that diverges TrainingError.

    Source: Ramesh & Chaudhari, "Model Zoo: A Growing Brain That Learns Continually" (2022).
    """

    _announced: list[Array]  # classes that will come
    classes_: Array

    def partial_fit(self, X: Any, y: Any, classes: Any = None, task: Any = None) -> "ZooClassifier":
        """Learn new tasks after those known; `classes`: others that will come, for `classes_`; the rest as in fit.

        Without `task` the examples are one new task, called by its number from 1.
        """
        fresh = not hasattr(self, "members_")
        self._announced = [*getattr(self, "_announced", ()), *(() if classes is None else [np.asarray(classes)])]
        return self._learn(X, y, task, fresh)  # type: ignore[no-any-return]

    def fit(self, X: Any, y: Any, task: Any = None) -> Any:
        self._announced = []
        return super().fit(X, y, task)

    fit.__doc__ = _Zoo.fit.__doc__

    def _learn(self, X: Any, y: Any, task: Any, fresh: bool) -> Any:
        super()._learn(X, y, task, fresh)
        self.classes_ = np.unique(np.concatenate([*self._classes(), *self._announced]))
        return self

    def _classes(self) -> list[Array]:
        """The classes of each task that is known."""
        return [known.classes for known in self._known.values() if known.classes is not None]

    def predict_proba(self, X: Any, task: Any = None) -> Array:
        """Probabilities of `classes_`, [N, C]; 0 for classes that the task of an example does not have."""
        found = [*self._answers(X, task)]
        probabilities = np.zeros((sum(len(rows) for _, rows, _ in found), len(self.classes_)))
        for known, rows, mean in found:
            assert known.classes is not None
            probabilities[np.ix_(rows, np.searchsorted(self.classes_, known.classes))] = mean
        return probabilities

    def predict(self, X: Any, task: Any = None) -> Array:
        """The likeliest class of each example, [N]; `task` as in fit, needed where several were learned."""
        chosen = self.predict_proba(X, task).argmax(1)
        return self.classes_[chosen]  # type: ignore[no-any-return]

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """The accuracy, see `predict`."""
        return float(accuracy_score(y, self.predict(X, task), sample_weight=sample_weight))

    def _checked(self, X: Any, y: Any, fresh: bool) -> tuple[Array, Array]:
        X, y = validate_data(self, X, y, reset=fresh, dtype=np.float64, allow_nd=True)
        check_classification_targets(y)
        before = [*([] if fresh else self._classes()), *self._announced]
        if len({classes.dtype.kind in "OUS" for classes in (y, *before)}) > 1:
            raise ValueError("some classes are numbers and others texts; make all of them texts")
        return X, y

    def _objective(self) -> Objective:
        return CrossEntropy()

    def _facts(self, label: Any, X: Array, y: Array) -> tuple[_Scale | None, Array | None]:
        classes = np.unique(y)
        if len(classes) < 2:
            raise ValueError(f"task {label!r} has one class, {classes[0].item()!r}; a task needs at least two classes")
        return None, classes

    def _encoded(self, y: Array, known: _Known) -> Array:
        assert known.classes is not None
        return np.searchsorted(known.classes, y)


class ZooRegressor(RegressorMixin, _Zoo):  # type: ignore[misc]
    """A Model Zoo, or another method, that predicts one or several real numbers of each example.

    Tasks, parameters and errors are those of ZooClassifier. Targets are scaled as features are, and predictions scaled
    back.
    """

    _flat: bool  # whether y is [N]
    _numbers: int  # of a target

    def partial_fit(self, X: Any, y: Any, task: Any = None) -> "ZooRegressor":
        """Learn new tasks after those known, see `fit`; without `task` one, called by its number from 1."""
        return self._learn(X, y, task, not hasattr(self, "members_"))  # type: ignore[no-any-return]

    def predict(self, X: Any, task: Any = None) -> Array:
        """The numbers of each example, [N] or [N, K]; `task` as in fit, needed where several were learned."""
        found = [*self._answers(X, task)]
        predictions = np.zeros((sum(len(rows) for _, rows, _ in found), found[0][2].shape[1]))
        for known, rows, mean in found:
            predictions[rows] = mean if known.targets is None else mean * known.targets.sd + known.targets.mean
        return predictions[:, 0] if self._flat else predictions

    def score(self, X: Any, y: Any, task: Any = None, sample_weight: Any = None) -> float:
        """R², see `predict`."""
        return float(r2_score(y, self.predict(X, task), sample_weight=sample_weight))

    def __sklearn_tags__(self) -> Any:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _checked(self, X: Any, y: Any, fresh: bool) -> tuple[Array, Array]:
        X, y = validate_data(
            self, X, y, reset=fresh, dtype=np.float64, allow_nd=True, multi_output=True, y_numeric=True
        )  # fmt: skip
        found = np.asarray(y, np.float64).reshape(len(y), -1)
        if fresh:
            self._flat, self._numbers = y.ndim == 1, found.shape[1]
        if found.shape[1] != self._numbers:
            raise ValueError(f"y has {found.shape[1]} numbers for an example; it had {self._numbers} before")
        return X, found

    def _objective(self) -> Objective:
        return RealNumbers()

    def _facts(self, label: Any, X: Array, y: Array) -> tuple[_Scale | None, Array | None]:
        return _Scale.of(y), None

    def _encoded(self, y: Array, known: _Known) -> Array:
        return (y if known.targets is None else known.targets(y)).astype(np.float32)
