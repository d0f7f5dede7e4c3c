"""Exit code 0 when the server of this container does its work."""

import os
import sys
import urllib.request

URL = f"http://127.0.0.1:{os.environ.get('PDS_PORT', '2583')}/xrpc/_health"

try:
    with urllib.request.urlopen(URL, timeout=5) as answer:
        sys.exit(0 if answer.status == 200 else 1)
except OSError as error:
    print(f"{URL}: {error}", file=sys.stderr)
    sys.exit(1)
