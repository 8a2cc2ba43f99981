"""The project itself: imports go one way, the two lists of pins agree."""

import ast
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
# Rooms from the ground up: each may import itself and those in the rows before its own. Rooms of one row do not import
# each other, but for what is named beside them.
FLOORS: list[dict[str, tuple[str, ...]]] = [
    {"utils": ()},
    {"datasets": (), "net": ()},
    {"training": (), "evaluation": ("training",)},
    {"methods": ()},
    {"records": ()},
    {"studies": ("zoo",), "zoo": (), "reporting": ("studies",)},
    {
        "modelzoo": (),
        "train_task": (),
        "report": (),
        "predict": (),
        "forget": (),
        "export": (),
        "distill": ("modelzoo",),
        "benchmark": (),
        "describe": (),
    },
]
MAY_IMPORT: dict[str, set[str]] = {}
for floor in FLOORS:
    below = set(MAY_IMPORT)
    MAY_IMPORT |= {room: {room, *below, *beside} for room, beside in floor.items()}
FILES = [path for part in MAY_IMPORT for path in [*PROJECT.glob(f"{part}.py"), *PROJECT.glob(f"{part}/**/*.py")]]


def imported(path):
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield node.module


@pytest.mark.parametrize("path", FILES, ids=lambda path: str(path.relative_to(PROJECT)))
def test_imports_go_one_way(path):
    part = path.relative_to(PROJECT).parts[0].removesuffix(".py")
    ours = {name.split(".")[0] for name in imported(path)} & MAY_IMPORT.keys()
    assert ours <= MAY_IMPORT[part]


def test_conda_and_pip_have_the_same_pins():
    pins, optional = (
        [line for line in (PROJECT / name).read_text().splitlines() if line and not line.startswith("#")]
        for name in ("requirements.txt", "requirements-optional.txt")
    )
    environment = yaml.safe_load((PROJECT / "env.yaml").read_text())
    assert environment["dependencies"][-1]["pip"] == pins
    assert all("==" in pin for pin in [*pins, *optional])


def test_no_method_is_named_in_the_driver():
    driver = ast.parse((PROJECT / "modelzoo.py").read_text())
    texts = {node.value for node in ast.walk(driver) if isinstance(node, ast.Constant)}
    assert not texts & {"zoo", "isolated"}
