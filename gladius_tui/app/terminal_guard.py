"""End the app in order on SIGTERM, SIGHUP or the loss of its terminal."""

from __future__ import annotations

import asyncio
import contextlib
import signal
import sys

from textual.app import App

TERMINATED = 128 + signal.SIGTERM
HUNG_UP = 128 + signal.SIGHUP
_POLL_SECONDS = 1.0


class TerminalGuard:
    """Ends the app in order, so that the terminal is restored."""

    def __init__(self, app: App[int]) -> None:
        self._app = app

    def start(self) -> None:
        """Handle the signals, and watch the terminal. Call this in the app's event loop."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.add_signal_handler(signal.SIGTERM, self._app.exit, TERMINATED)
            loop.add_signal_handler(signal.SIGHUP, self._app.exit, HUNG_UP)
        self._poll_terminal()

    def stop(self) -> None:
        """Restore the default signal handlers."""
        loop = asyncio.get_running_loop()
        with contextlib.suppress(ValueError, RuntimeError, NotImplementedError):
            loop.remove_signal_handler(signal.SIGTERM)
            loop.remove_signal_handler(signal.SIGHUP)

    def _poll_terminal(self) -> None:
        """Exit when the terminal is gone, also without a signal (a lost ssh connection under
        nohup, a pty that is no controlling terminal): reading from it would spin."""
        import select

        if self._app.is_headless or sys.__stdin__ is None or not sys.__stdin__.isatty():
            return
        terminal = select.poll()
        terminal.register(sys.__stdin__.fileno(), select.POLLHUP)

        def poll() -> None:
            if any(event & (select.POLLHUP | select.POLLERR) for _, event in terminal.poll(0)):
                self._app.exit(HUNG_UP)

        self._app.set_interval(_POLL_SECONDS, poll)
