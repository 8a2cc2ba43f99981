"""What all programs share: output that cannot be written, Ctrl-C at any moment, a lack of memory or threads."""

import os
import subprocess
import sys
import threading
from pathlib import Path

import pytest
import torch

from reporting import one_line_errors
from utils.errors import UserError, run_program

PROJECT = Path(__file__).parent.parent
PROGRAM = """
import sys
from utils.startup import prepare
prepare(__name__, computes=False)
import atexit, os, signal
from utils.errors import UserError, run_program
def interrupt():
    os.kill(os.getpid(), signal.SIGINT)
def body():
    {body}
{loading}
sys.exit(run_program("p.py", body))
"""


def program(body, loading="", **how):
    """Exit code and stderr of a program."""
    Path("p.py").write_text(PROGRAM.format(body=body, loading=loading))
    how = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE, **how}
    environment = {**os.environ, "PYTHONPATH": f"{PROJECT}:.", "PYTHONUNBUFFERED": ""}
    process = subprocess.Popen([sys.executable, "p.py"], env=environment, **how)
    if process.stdout is not None:
        process.stdout.close()
    told = process.stderr.read().decode() if process.stderr is not None else ""
    return process.wait(), told


@pytest.fixture(autouse=True)
def here(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="this system has no /dev/full")
@pytest.mark.parametrize("body", ["print('result')", "print('result', flush=True)", "[print(n) for n in range(9999)]"])
def test_a_full_stdout_is_one_line_and_a_full_stderr_stops_nothing(body):
    with open("/dev/full", "wb") as full:
        assert program(body, stdout=full) == (1, "p.py: stdout cannot be written: No space left on device\n")
        assert program("raise UserError('wrong')", stdout=subprocess.DEVNULL, stderr=full) == (2, "")
        assert program(f"print('a', file=sys.stderr); {body}", stdout=subprocess.DEVNULL, stderr=full) == (0, "")


def test_a_program_whose_output_nobody_reads_ends_without_a_word():
    for handler in ("Exception", "OSError"):  # as if writing a file had failed
        body = f"try: [print('x' * 9999) for _ in range(99)]\n    except {handler}: raise UserError('f is damaged')"
        assert program(body) == (141, "")


def test_a_closed_stdout_or_stderr_does_not_get_into_the_files_of_the_program():
    body = "f = open('f', 'w'); os.write({0}, b'noise'); print('a'); print('b', file=sys.stderr); f.write('mine')"
    for number in (1, 2):
        how = {"stdout": subprocess.DEVNULL, "preexec_fn": lambda number=number: os.close(number)}
        assert program(body.format(number), **how)[0] == 0
        assert Path("f").read_text() == "mine"


@pytest.mark.parametrize(
    ("body", "loading"),
    [
        ("pass", "interrupt()"),
        ("interrupt()", ""),
        ("try: interrupt()\n    finally: os.close(2)  # what a program does before it ends is done", ""),
        ("atexit.register(interrupt)", ""),
        ("pass", "os.close(2); interrupt()"),
    ],
)
def test_ctrl_c_at_any_moment_is_one_line(body, loading):
    told = "" if "close" in body + loading else "p.py: interrupted\n"
    assert program(body, loading, stdout=subprocess.DEVNULL) == (130, told)


def test_a_lack_of_memory_while_modules_load_is_one_line():
    loading = "raise ImportError('libtorch.so: failed to map segment from shared object')"
    assert program("pass", loading) == (1, "p.py: not enough memory\n")


def test_without_fcntl_nothing_starts():
    Path("sitecustomize.py").write_text("import sys; sys.modules['fcntl'] = None")
    code, told = program("pass")
    assert code == 2
    assert told.startswith("p.py: this system has no fcntl")
    assert told.count("\n") == 1


def no_more_threads():
    raise RuntimeError("can't start new thread")


@pytest.mark.parametrize(
    ("action", "words"),
    [
        (lambda: bytearray(1 << 62), "not enough memory"),
        (lambda: torch.empty(1 << 50), "not enough memory (it asked for 4503599627370496 bytes more)"),
        (no_more_threads, "no more threads can be started; ulimit -u limits them"),
        (lambda: open("/dev/null/file"), "/dev/null/file: Not a directory"),  # noqa: SIM115
    ],
)
def test_a_lack_of_memory_or_threads_ends_any_program_with_one_line(action, words, capsys):
    assert run_program("p.py", action) == 1
    assert capsys.readouterr().err == f"p.py: {words}\n"
    if "not" in words.split() or "threads" in words:
        with pytest.raises((MemoryError, RuntimeError)), one_line_errors("run", "run"):  # it does not blame the run
            action()


def test_a_report_does_not_blame_writing_for_what_cannot_be_read():
    refused = PermissionError(13, "Permission denied", "secret")
    with pytest.raises(UserError, match=r"^secret cannot be read or"), one_line_errors("secret", "page"):
        raise refused


def test_a_program_runs_in_a_process_without_output(monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    monkeypatch.setattr("sys.stderr", None)
    assert run_program("p.py", lambda: print("a")) == 0


def test_a_program_in_a_notebook_leaves_its_signals_and_errors_alone():
    body = "print(signal.getsignal(2) is signal.default_int_handler, sys.excepthook is sys.__excepthook__)"
    Path("sitecustomize.py").write_text("import sys; sys.ps1 = '>>> '")
    with open("told", "wb") as told:
        assert program("pass", body, stdout=told) == (0, "")
    assert Path("told").read_text() == "True True\n"


def test_an_error_in_a_program_keeps_its_traceback():
    with pytest.raises(ZeroDivisionError):
        run_program("p.py", lambda: 1 // 0)


def test_control_characters_and_bidirectional_marks_do_not_reach_the_terminal(capsys):
    assert run_program("p.py", lambda: print("a\x1b[2J\u202eb\u2067\r\x9bé\tend")) == 0
    assert capsys.readouterr().out == "a\\x1b[2J\\u202eb\\u2067\\r\\x9bé\tend\n"

    def refused():
        raise UserError("x\x1b[2J\n\u202ey is wrong")

    assert run_program("p.py", refused) == 2
    assert capsys.readouterr().err == "p.py: x\\x1b[2J \\u202ey is wrong\n"


def test_a_program_can_run_in_a_thread(capsys):
    thread = threading.Thread(target=run_program, args=("p.py", lambda: print("done")))
    thread.start()
    thread.join()
    assert capsys.readouterr().out == "done\n"
