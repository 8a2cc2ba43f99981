"""The project itself: imports go one way, the two lists of pins agree."""

import ast
from pathlib import Path

import pytest
import yaml

PROJECT = Path(__file__).parent.parent
# Each part may import those after it, and itself.
MAY_IMPORT = {
    "benchmark": {"methods", "datasets", "net", "reporting", "utils"},
    "modelzoo": {"zoo", "methods", "datasets", "net", "utils"},
    "distill": {"modelzoo", "zoo", "methods", "datasets", "net", "utils"},
    "predict": {"zoo", "methods", "datasets", "net", "utils"},
    "forget": {"zoo", "methods", "utils"},
    "export": {"zoo", "utils"},
    "zoo": {"zoo", "methods", "datasets", "net", "utils"},
    "methods": {"methods", "datasets", "net", "utils"},
    "datasets": {"datasets", "utils"},
    "net": {"net", "utils"},
    "report": {"reporting", "utils"},
    "reporting": {"reporting", "utils"},
    "utils": {"utils"},
}
FILES = [path for part in MAY_IMPORT for path in [*PROJECT.glob(f"{part}.py"), *PROJECT.glob(f"{part}/*.py")]]


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
    lines = (PROJECT / "requirements.txt").read_text().splitlines()
    pins = [line for line in lines if line and not line.startswith("#")]
    environment = yaml.safe_load((PROJECT / "env.yaml").read_text())
    assert environment["dependencies"][-1]["pip"] == pins
    assert all("==" in pin for pin in pins)


def test_no_method_is_named_in_the_driver():
    driver = ast.parse((PROJECT / "modelzoo.py").read_text())
    texts = {node.value for node in ast.walk(driver) if isinstance(node, ast.Constant)}
    assert not texts & {"zoo", "isolated"}
