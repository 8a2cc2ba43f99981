"""The model card of an exported zoo: what a stranger has to know before using it. The template is card.md."""

import importlib.metadata
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined

from datasets.arrangement import arranged
from evaluation.accuracy import MIXED_EXAMPLES
from evaluation.measurements import WITHOUT_TASK, mean_over_tasks
from methods import METHODS
from records.configuration import hyperparameters
from records.directory import CONFIG, read_config
from records.manifest import reading
from records.tables import METRICS, read_measurements
from utils.errors import one_line
from zoo.saved import PLAIN, SavedTask, Zoo

# These stand in other sections of the card.
_ELSEWHERE = ("data.samples", "data.samples_per_task", "data.hold_out", "data.normalize", "data.pad")
_CHANNELS = {1: "grey", 3: "red, green and blue"}
_PACKAGES = {"model.onnx": ("onnx", "onnxruntime"), "model.pt2": ("torch",)}


def model_card(zoo: Zoo, outputs: Mapping[str, SavedTask], parameters: int, files: Sequence[str]) -> str:
    """The model card in Markdown of a zoo combined as it is exported; `outputs`: the task of each output, by name."""
    config, raw = zoo.config, read_config(zoo.path)
    tasks = arranged(config.data, config.seed).tasks
    rows = [row for row in read_measurements(zoo.path, zoo.manifest)[0] if row.episode == zoo.manifest.episode]
    numbers = [task.number for task in outputs.values()]
    used = {member for number in numbers for member in zoo.combinations[number].members}
    trained = config if config.method in METHODS else replace(config, method="joint")  # as a student is
    recipe = {key: value for key, value in hyperparameters(trained).items() if key not in _ELSEWHERE}
    recipe |= {"method": config.method, "precision": config.precision}
    with reading(zoo.path, CONFIG):
        commit = raw["commit"] or "not known"
        recipe["commit"] = f"{commit}, with changes" if raw["uncommitted_changes"] else commit
        recipe["versions"] = ", ".join(f"{name} {version}" for name, version in raw["versions"].items())
    loader = FileSystemLoader(Path(__file__).parent)
    environment = Environment(loader=loader, trim_blocks=True, lstrip_blocks=True, undefined=StrictUndefined)
    environment.filters["text"] = plain_text
    environment.globals["thing"] = "image" if zoo.images else "input"
    as_trained = zoo.combined_as == PLAIN
    with reading(zoo.path, METRICS):
        # Figures of each task on its test images: as the run measured them, or of another combination than the run's.
        found = {row.task: row.scores for row in rows if row.is_test} if as_trained else zoo.test_scores()
        lines = [{"task": task, "output": output, "networks": len(zoo.combinations[task.number].members),
                  **found[task.number]} for output, task in outputs.items()]  # fmt: skip
    scenarios = WITHOUT_TASK if as_trained and len(numbers) == len(zoo.tasks) > 1 else ()  # else not measured
    return environment.get_template("card.md").render(
        zoo=zoo, config=config, lines=lines, files=files, parameters=parameters,
        networks=len(used), recipe=recipe, name=zoo.path.absolute().name,
        dataset=" ".join([config.data.dataset, Path(getattr(config.data.settings, "root", "")).name]),
        channels=_CHANNELS.get(zoo.input_shape[0], "channels"), episode=rows[0].episode, mixed=MIXED_EXAMPLES,
        label_noise={number: tasks[number - 1].label_noise for number in numbers},
        samples_per_task=getattr(config.data.settings, "samples_per_task", None),
        versions={name: importlib.metadata.version(name) for file in files for name in _PACKAGES[file]},
        recomputed=not as_trained,
        task_not_given={name: mean for name in scenarios if (mean := mean_over_tasks(rows, name)) is not None},
    )  # fmt: skip


def plain_text(text: object) -> str:
    """Text on one line with Markdown's special characters escaped: names of tasks and classes are not trusted."""
    return re.sub(r"([\\`*_\[\]<>|~&$#])", r"\\\1", one_line(text))
