"""`python -m mftadv`, and the command `mftadv`: the process of a command, and how it ends when something goes wrong."""

import contextlib
import os
import re
import signal
import sys
import traceback
import types
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def interrupt(number: int, frame: types.FrameType | None) -> None:
    """Raise KeyboardInterrupt: soon, where JAX is called by the garbage collector and would lose it, else at once."""
    while frame is not None:
        if frame.f_code.co_name == "_xla_gc_callback":
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            return
        frame = frame.f_back
    raise KeyboardInterrupt


class Output:
    """Standard output that, once it is closed, takes what is printed in silence: no reason to lose a run."""

    def __init__(self, stream: Any):
        self._stream = stream

    def write(self, text: str) -> int:
        try:
            return self._stream.write(text.encode(self.encoding, "replace").decode(self.encoding))
        except (OSError, ValueError):
            return len(text)

    def flush(self) -> None:
        try:
            self._stream.flush()
        except (OSError, ValueError):
            return

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    @property
    def encoding(self) -> str:
        return getattr(self._stream, "encoding", None) or "utf-8"


def main() -> None:
    """Run the command line and leave with its exit status."""
    status = 130
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, interrupt)
        sys.stdout, sys.stderr = (Output(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
        use_a_device_for_each_core()
        use_compilation_cache()
        status = command_line(sys.argv[1:])
    except KeyboardInterrupt:
        print("mftadv: interrupted", file=sys.stderr)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    except Exception:
        traceback.print_exc()
        status = 4
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # at once: the interpreter would wait for a compiler that is at work in a thread


def command_line(arguments: Sequence[str]) -> int:
    """Run a command; what goes wrong is one line.

    Returns:
        The exit status: 0 when every claim that should hold holds (or is underpowered), 1 when one fails and for
        nothing else, 2 for bad usage, 3 when the machine fails (memory, disk), 4 for an error in this program, 130 for
        an interruption.
    """
    if arguments == ["--version"]:
        from mftadv import __version__

        print(f"mftadv {__version__}")
        return 0
    try:
        from mftadv import cli
        from mftadv.experiments import EXPERIMENTS
    except ModuleNotFoundError as error:
        print(f'mftadv: the command line needs `pip install "mftadv[cli]"` ({error})', file=sys.stderr)
        return 2
    try:
        return cli.main(arguments)
    except (Exception, KeyboardInterrupt) as error:
        status, message = failure(error, options=bool(EXPERIMENTS.keys() & arguments[:1]))
        print(message, file=sys.stderr)
        return status


def failure(error: BaseException, options: bool) -> tuple[int, str]:
    """The exit status, see `command_line`, and what is to be printed.

    Args:
        error: what was raised.
        options: whether the arguments that it names are options of the command.
    """
    match error:
        case KeyboardInterrupt():
            status, message = 130, "interrupted; the same command goes on from what is stored"
        case ValueError():
            status, message = 2, _with_options(str(error)) if options else str(error)
        case OSError() | MemoryError() | OverflowError() | RuntimeError():
            status, message = 3, f"{type(error).__name__}: {error}"[:300]
        case _:
            return 4, "".join(traceback.format_exception(error)).rstrip()
    return status, f"mftadv: {' '.join(message.split())}"


def _with_options(message: str) -> str:
    """A message "ARGUMENTS: expected ..." with the options that the arguments are."""
    names, expected, rest = message.partition(": expected")
    if re.fullmatch(r"\w+(, \w+)*", names):
        names = re.sub("positive_slope, negative_slope|(positive|negative)_slope", "slopes", names)
        names = re.sub(r"\w+", lambda name: "--" + name[0].replace("folder", "out").replace("_", "-"), names)
    return names + expected + rest


def use_a_device_for_each_core() -> None:
    """Let each core be a device with networks of its own, see `mftadv.sweep.all_devices`, unless the user says else."""
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    from mftadv.sweep import available_cores

    jax.config.update("jax_num_cpu_devices", available_cores())


def use_compilation_cache() -> None:
    """Let compiled programs be stored for the next command, in a folder of the user's that no other user can read."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    with contextlib.suppress(OSError, RuntimeError):  # a user without a home, for one
        folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mftadv"
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o077:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


if __name__ == "__main__":
    main()
