"""A finished run as a thing to use: predict, calibrate, shrink, distill, ship.

from zoo import Zoo
Zoo.load("runs/demo").predict(images, task="rotated by 30°").labels
"""

from zoo.saved import Prediction, SavedMember, SavedTask, Zoo

__all__ = ["Prediction", "SavedMember", "SavedTask", "Zoo"]
