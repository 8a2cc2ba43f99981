"""child.py PARENT COMMAND...: run as a program; runs the command, which is asked to end when process PARENT dies.

It stands between the two, as Ray kills the children of its processes without asking, but not their children.
"""

import ctypes
import os
import signal
import sys
from types import FrameType

_PR_SET_PDEATHSIG = 1  # of prctl(2); exec keeps what it sets


def main() -> None:
    parent, *command = sys.argv[1:]
    _end_with(int(parent))
    me = os.getpid()
    child = os.fork()
    if not child:
        _end_with(me)
        signal.pthread_sigmask(signal.SIG_SETMASK, ())  # Ray blocks Ctrl-C
        signal.signal(signal.SIGUSR2, signal.SIG_IGN)  # a queue may send it to every process; it is for the parent
        try:
            os.execvp(command[0], command)
        except OSError as error:
            print(f"{command[0]}: {error.strerror}", file=sys.stderr, flush=True)
            os._exit(127)

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1):
        signal.signal(number, pass_on)
    signal.signal(signal.SIGUSR2, signal.SIG_IGN)
    code = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    if code < 0:  # end in the same way
        if -code != signal.SIGKILL:
            signal.signal(-code, signal.SIG_DFL)
        os.kill(me, -code)
    sys.exit(code)


def _end_with(parent: int) -> None:
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
    if os.getppid() != parent:  # it died before that
        os._exit(128 + signal.SIGTERM)


if __name__ == "__main__":
    main()
