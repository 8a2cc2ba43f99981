"""README: every command, run in its order in one folder, works, and prints what is shown but for the numbers."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from tests.standins import write_cifar100

PROJECT = Path(__file__).parent.parent
README = (PROJECT / "README.md").read_text()
SMALL = "--epochs 1 --quiet"
# Beginnings of commands, and what is appended to them: they would take minutes or hours, or end with Ctrl-C only.
APPENDED = {
    "make demo": SMALL,
    # Stand-in images of the same format and the small net; the download has 169 MB.
    "python modelzoo.py --data_config config/dataset/coarse": f"--hp_config config/hyperparam/conv.yaml {SMALL}",
    "python train_task.py": "--examples 2^14",
    "tensorboard": "--inspect",
}
SKIPPED = {"make test"}  # this is one of the tests that it runs


def blocks():
    """(command, expected output or None) in order; the Python example is a command as well."""
    found = re.findall(r"```(\w*)\n(.*?)```", README, re.DOTALL)
    for (kind, text), (_, after) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind == "python":
            yield text, after
        elif kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield command, output
        else:
            for line in re.findall(r"^(?:make|python|tensorboard) .*", text, re.MULTILINE):
                yield line.partition(" #")[0].strip(), None


def without_numbers(text):
    return [" ".join(re.sub(r"[-+]?\d[\d.,e+-]*", "#", line).split()) for line in text.splitlines()]


def recipe(target):
    """The commands of a target of the Makefile."""
    text = (PROJECT / "Makefile").read_text()
    settings = dict(re.findall(r"^(\w+) :?= (.*)$", text, re.MULTILINE))
    lines = re.search(rf"^{target}:.*\n((?:\t.*\n)+)", text, re.MULTILINE)[1]
    for line in re.findall(r"\$\(BIN\)/(python .*)", lines):
        yield re.sub(r"\$\((\w+)\)", lambda match: settings[match[1]], line)


def run(command, more=""):
    """In this process where it is one of our programs: importing torch takes longer than they do."""
    if match := re.match(r"python (\w+)\.py ", command):
        assert importlib.import_module(match[1]).main(shlex.split(f"{command} {more}")[2:]) == 0, command
    elif match := re.match(r"make (\w+)$", command):
        for line in recipe(match[1]):
            run(line, more if "modelzoo.py" in line else "")
    elif "\n" in command:
        exec(command, {})
    else:
        tools = f"PATH={shlex.quote(str(Path(sys.executable).parent))}:$PATH; "
        done = subprocess.run(["bash", "-c", f"{tools}{command} {more}"], check=True, capture_output=True, text=True)
        print(done.stdout, end="")


def test_the_commands_do_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "config").symlink_to(PROJECT / "config")
    write_cifar100(tmp_path / "data")
    commands = [command for command in blocks() if command[0] not in SKIPPED]
    assert all(any(command.startswith(begin) for command, _ in commands) for begin in APPENDED)
    for program in ("modelzoo", "train_task", "report", "predict", "distill", "export", "forget"):
        assert any(command.startswith(f"python {program}.py") for command, _ in commands)
    for command, expected in commands:
        capsys.readouterr()
        run(command, next((more for begin, more in APPENDED.items() if command.startswith(begin)), ""))
        out, err = capsys.readouterr()
        assert "Traceback" not in err, command
        if expected is not None:
            assert err == "", command
            assert without_numbers(out) == without_numbers(expected), command
    assert json.loads(Path("runs/demo-without-3/summary.json").read_text())["stored_bytes"] is None
    assert "without-3" in Path("runs/report.html").read_text()


@pytest.mark.parametrize("program", ["predict", "distill", "export", "forget"])
def test_every_program_explains_itself(program, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(program).main(["-h"])
    assert end.value.code == 0
    assert "RUN" in capsys.readouterr().out
