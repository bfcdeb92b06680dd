"""What tests of runs share: an observer that remembers, and a process that is killed at a moment of its choice."""

import os
import signal
import sys
from collections.abc import Callable

from mftadv.sweep import Observer


class Told(Observer):
    """Remembers what it is told."""

    def __init__(self):
        self.lines, self.shares = [], []

    def say(self, line):
        self.lines.append(line)

    def progress(self, share, doing):
        self.shares.append(share)


def run_killed(path: str, work: Callable[[], int], last: int | None = None) -> int:
    """The exit status of a fork that does some work, killed before the change number `last` of a folder.

    Args:
        path: of the folder; where nothing is killed, the number of its changes is written to PATH.changes.
        work: returns the exit status.
        last: None for no kill.
    """
    if child := os.fork():
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    done = 0

    def change(event, arguments):
        nonlocal done
        writes = event in ("os.rename", "os.mkdir", "os.remove") or (event == "open" and arguments[2] & os.O_CREAT)
        if writes and str(arguments[0]).startswith(path):
            if done == last:
                os.kill(os.getpid(), signal.SIGKILL)
            done += 1

    sys.addaudithook(change)
    status = work()
    if last is None:
        with open(path + ".changes", "w") as file:
            file.write(str(done))
    os._exit(status)
