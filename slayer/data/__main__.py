"""python -m slayer.data [KEY=VALUE …]: prepares and shows the text of a run without training. `--help` explains every key."""

import sys

from slayer.launching.data import main
from slayer.secrets import guard_streams

if __name__ == "__main__":
    guard_streams()
    sys.exit(main())
