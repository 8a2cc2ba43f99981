"""README, "Use the zoo": every command, run in its order on a small demo, prints what is shown but for the numbers."""

import os
import re
import subprocess
import sys
from pathlib import Path

PROJECT = Path(__file__).parent.parent
SECTION = (PROJECT / "README.md").read_text().split("## Use the zoo\n")[1].split("\n## ")[0]


def blocks():
    """(command, expected output) in order; the Python example as a command as well."""
    found = re.findall(r"```(\w*)\n(.*?)```", SECTION, re.DOTALL)
    for (kind, text), (_, after) in zip(found, [*found[1:], ("", "")], strict=True):
        if kind == "python":
            yield f"python - <<'END'\n{text}END", after
        if kind == "console":
            for part in re.split(r"^\$ ", text, flags=re.MULTILINE)[1:]:
                command, _, output = part.partition("\n")
                yield command, output


def without_numbers(text):
    """Numbers, and words that stand for what another training may change: classes and tasks that were found."""
    text = re.sub(r"[-+]?\d[\d.,e+-]*", "#", text)
    return [" ".join(line.split()) for line in text.splitlines()]


def test_the_commands_do_what_the_readme_shows(tmp_path):
    for program in PROJECT.glob("*.py"):
        (tmp_path / program.name).symlink_to(program)
    environment = {**os.environ, "PYTHONPATH": str(PROJECT), "OMP_NUM_THREADS": "1",
                   "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}  # fmt: skip

    def run(command):
        return subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True)

    demo = re.search(r"^DEMO := (.*)$", (PROJECT / "Makefile").read_text(), re.MULTILINE)[1]
    demo = demo.replace("config/", f"{PROJECT}/config/").replace("--epochs 20", "--epochs 1 --quiet")
    for more in ("--method isolated --run_dir runs/demo-isolated", "--run_dir runs/demo"):
        assert run(f"python modelzoo.py {demo} {more}").returncode == 0
    commands = list(blocks())
    for program in ("predict", "modelzoo", "distill", "export", "forget"):
        assert any(command.startswith(f"python {program}.py") for command, _ in commands)
    assert len(commands) == 11
    for command, expected in commands:
        done = run(command)
        assert (done.returncode, done.stderr) == (0, ""), command
        assert without_numbers(done.stdout) == without_numbers(expected), command
