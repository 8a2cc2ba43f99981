"""Using a saved run: prediction, calibration, fewer members, distillation, export, forgetting a task.

from zoo import Zoo
Zoo.load("runs/demo").predict(images, task="rotated by 30°").labels

And from arrays in memory: ZooClassifier and ZooRegressor, with the habits of scikit-learn.
"""

from typing import Any

from records.members import SavedMember
from zoo.saved import Prediction, SavedTask, Zoo

__all__ = ["Prediction", "SavedMember", "SavedTask", "Zoo", "ZooClassifier", "ZooRegressor"]


def __getattr__(name: str) -> Any:
    """The estimators, when they are first asked for: scikit-learn is slow to import."""
    if name not in ("ZooClassifier", "ZooRegressor"):
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import zoo.estimator

    return getattr(zoo.estimator, name)
