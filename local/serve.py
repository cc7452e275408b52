"""Serve the digits model, and send it the first request as soon as it serves: `make serve`.

The server has bound its port when it prints its address. If the port belongs to another program,
the server ends without that line, and no request is sent. Server and request end with this
program, on Ctrl-C and SIGTERM too.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

FOLDER = "models/mnist-svm"
FIRST_REQUEST = Path(__file__).resolve().parent.parent / FOLDER / "ask.py"
ADDRESS_PATTERN = re.compile(r"\bon (http://\S+)")


def main() -> int:
    """Copy the server's output and return its exit status."""
    command = [sys.executable, "-m", "mlserverless.cli", "start", FOLDER]
    server = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the server by itself
    signal.signal(signal.SIGTERM, lambda *_: server.terminate())
    request = None
    for line in server.stdout or ():
        sys.stdout.write(line)
        sys.stdout.flush()
        if request is None and (found := ADDRESS_PATTERN.search(line)):
            request = subprocess.Popen([sys.executable, str(FIRST_REQUEST), found[1]])
    if request is not None:  # the server has ended
        request.terminate()
        request.wait()
    status = server.wait()
    return status if status >= 0 else 128 - status  # as a shell reports a signal


if __name__ == "__main__":
    sys.exit(main())
