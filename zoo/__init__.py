"""Using a saved run: prediction, calibration, fewer members, distillation, export, forgetting a task.

from zoo import Zoo
Zoo.load("runs/demo").predict(images, task="rotated by 30°").labels
"""

from records.members import SavedMember
from zoo.saved import Prediction, SavedTask, Zoo

__all__ = ["Prediction", "SavedMember", "SavedTask", "Zoo"]
