"""`python -m mftadv`, and the command `mftadv`: what can go wrong before the command line itself is imported."""

import contextlib
import os
import signal
import sys
import types
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
    """Run the command line and leave with its exit status, see `mftadv.cli.main`."""
    status = 130
    try:
        for number in (signal.SIGINT, signal.SIGTERM, signal.SIGALRM):
            signal.signal(number, interrupt)
        sys.stdout, sys.stderr = (Output(stream or open(os.devnull, "w")) for stream in (sys.stdout, sys.stderr))  # noqa: SIM115
        try:
            from mftadv import cli
        except ModuleNotFoundError as error:
            print(f'mftadv: the command line needs `pip install "mftadv[cli]"` ({error})', file=sys.stderr)
            status = 2
        else:
            use_a_device_for_each_core()
            use_compilation_cache()
            status = cli.main()
    except KeyboardInterrupt:
        print("mftadv: interrupted", file=sys.stderr)
    except SystemExit as stop:
        status = stop.code if isinstance(stop.code, int) else 0
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)  # at once: the interpreter would wait for a compiler that is at work in a thread


def use_a_device_for_each_core() -> None:
    """Let each core be a device with networks of its own, see `mftadv.sweep.all_devices`, unless the user says else."""
    if "JAX_NUM_CPU_DEVICES" in os.environ or "host_platform_device_count" in os.environ.get("XLA_FLAGS", ""):
        return
    import jax

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    jax.config.update("jax_num_cpu_devices", cores or 1)


def use_compilation_cache() -> None:
    """Let compiled programs be stored for the next command, in a folder of the user's that no other user can read."""
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        return
    import jax

    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "mftadv"
    with contextlib.suppress(OSError, RuntimeError):
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & 0o077:
            jax.config.update("jax_compilation_cache_dir", str(folder))
            jax.config.update("jax_persistent_cache_min_compile_time_secs", 0.1)


if __name__ == "__main__":
    main()
