"""A process that waits while its child trains with others, and says what became of it where the child cannot.

When the first of several processes is gone, JAX ends the others from within, before Python could say a word.
"""

import os
import signal
import sys
import threading
from types import FrameType
from typing import Any

from tfmusic.errors import RunError
from tfmusic.training.processes import LOST, Processes

_asked_to_end = threading.Event()


def go_on_in_a_child(processes: Processes) -> None:
    """Returns in a child process only; here it waits, and ends as the child does.

    To be called before anything starts threads.

    Raises:
        RunError: the child has lost the other processes.
        SystemExit: the child ended in any other way; it has said why.
    """
    if not processes.are_several:
        return
    sys.stdout.flush()  # what waits there would be written twice
    alive, held_open = os.pipe()  # nothing is written: it ends with the process that holds it open
    child = os.fork()
    if not child:
        os.close(held_open)
        threading.Thread(target=_end_with_parent, args=(alive,), daemon=True).start()
        signal.signal(signal.SIGTERM, _interrupt_once)
        return
    os.close(alive)
    _check(_wait(child), processes)


def _end_with_parent(alive: int) -> None:
    os.read(alive, 1)
    os._exit(1)


def _interrupt_once(number: int, frame: FrameType | None) -> None:
    """Ends the child as Ctrl-C does; a scheduler may send the signal to it as well as to what passes it on."""
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    _asked_to_end.set()
    raise KeyboardInterrupt


def check_interrupt() -> None:
    """Ends what should have ended: Python drops an exception that is raised in a destructor or while it frees memory.

    Raises:
        KeyboardInterrupt: this process has been told to end.
    """
    if _asked_to_end.is_set():
        raise KeyboardInterrupt


def _wait(child: int) -> int:
    """Returns how a child ended, as os.waitstatus_to_exitcode does; a terminal sends Ctrl-C to the child itself."""

    def pass_on(number: int, frame: FrameType | None) -> None:
        os.kill(child, number)

    handlers: dict[int, Any] = {signal.SIGINT: signal.SIG_IGN, signal.SIGTERM: pass_on}
    before = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    try:
        return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    finally:
        for number, old in before.items():
            signal.signal(number, old)


def _check(code: int, processes: Processes) -> None:
    if code == LOST or code < 0:
        name = signal.Signals(-code).name if code < 0 else ""
        how = f"was ended by {name}" if name else "has lost the connection"
        # JAX aborts where another one is gone; other signals are about this one, as SIGKILL for want of memory.
        why = ", as another one is gone" if name in ("", "SIGABRT") else ""
        raise RunError(
            f"process {processes.index} of {processes.count} {how}{why}: start all again with"
            " --resume, or without it where no epoch had ended"
        )
    raise SystemExit(code)
