"""A finished run as a thing to use: predict, calibrate, shrink, distill, ship.

from zoo import Zoo
Zoo.load("runs/demo").predict(images, task="rotated by 30°").labels
"""

from records.members import SavedMember
from zoo.saved import Prediction, SavedTask, Zoo

__all__ = ["Prediction", "SavedMember", "SavedTask", "Zoo"]
