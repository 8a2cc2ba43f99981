"""README, "Use the zoo": every command, run in its order on a small demo, prints what is shown but for the numbers."""

import importlib
import re
import shlex
import subprocess
from pathlib import Path

import pytest

PROJECT = Path(__file__).parent.parent
SECTION = (PROJECT / "README.md").read_text().split("## Use the zoo\n")[1].split("\n## ")[0]


def blocks():
    """(command, expected output) in order; the Python example as a command as well."""
    found = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)
    for (kind, text), (_, after) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind == "python":
            yield text, after
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield command, output


def without_numbers(text):
    return [" ".join(re.sub(r"[-+]?\d[\d.,e+-]*", "#", line).split()) for line in text.splitlines()]


def run(command):
    """In this process where it is one of our programs: importing torch takes longer than they do."""
    if match := re.match(r"python (\w+)\.py ", command):
        assert importlib.import_module(match[1]).main(shlex.split(command)[2:]) == 0, command
    elif "\n" in command:
        exec(command, {})
    else:
        print(subprocess.run(["bash", "-c", command], check=True, capture_output=True, text=True).stdout, end="")


def test_the_commands_do_what_the_readme_shows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    demo = re.search(r"^DEMO := (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)[1]
    demo = demo.replace("config/", f"{PROJECT}/config/").replace("--epochs 20", "--epochs 1 --quiet")
    for more in ("--method isolated --run_dir runs/demo-isolated", "--run_dir runs/demo"):
        run(f"python modelzoo.py {demo} {more}")
    commands = list(blocks())
    assert len(commands) == 11
    for program in ("predict", "modelzoo", "distill", "export", "forget"):
        assert any(command.startswith(f"python {program}.py") for command, _ in commands)
    for command, expected in commands:
        capsys.readouterr()
        run(command)
        out, err = capsys.readouterr()
        assert err == "", command
        assert without_numbers(out) == without_numbers(expected), command


@pytest.mark.parametrize("program", ["predict", "distill", "export", "forget"])
def test_every_program_explains_itself(program, capsys):
    with pytest.raises(SystemExit) as end:
        importlib.import_module(program).main(["-h"])
    assert end.value.code == 0
    assert "RUN" in capsys.readouterr().out
