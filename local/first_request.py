"""Copy the local server's output, and send the first request when the server says that it serves.

    mlserverless start models/mnist-svm > >(python local/first_request.py)

The server has bound its port when it prints its address. If the port belongs to another program,
the server ends without that line and no request is sent. The request ends with the server.
"""

import re
import signal
import subprocess
import sys
from pathlib import Path

FIRST_REQUEST = Path(__file__).resolve().parent.parent / "models" / "mnist-svm" / "ask.py"
ADDRESS_PATTERN = re.compile(r"\bon (http://\S+)")

signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C ends the server, and so this
request = None
for line in sys.stdin:
    sys.stdout.write(line)
    sys.stdout.flush()
    if request is None and (found := ADDRESS_PATTERN.search(line)):
        request = subprocess.Popen([sys.executable, str(FIRST_REQUEST), found[1]])
if request is not None and request.poll() is None:  # the server has ended
    request.terminate()
    request.wait()
