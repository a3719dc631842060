"""Progress on stderr for what takes longer than two seconds."""

import sys
import time

QUIET_S = 2.0
EVERY_S = 0.5


class Progress:
    """Shows the latest message on one line of stderr, once two seconds have passed."""

    def __init__(self) -> None:
        self.started = self.shown = time.monotonic()
        self.width = 0

    def __call__(self, message: str) -> None:
        """Show a message unless one was shown a moment ago."""
        now = time.monotonic()
        if now - self.started < QUIET_S or now - self.shown < EVERY_S:
            return
        self.shown = now
        if sys.stderr.isatty():
            print(f"\r{message:{self.width}}", end="", file=sys.stderr, flush=True)
            self.width = len(message)
        else:
            print(message, file=sys.stderr, flush=True)

    def done(self) -> None:
        """Clear the line."""
        if self.width:
            print("\r" + " " * self.width + "\r", end="", file=sys.stderr, flush=True)
