"""Is this digit a 3 or a 7? Five stages, each started as `python -m stages.NAME`."""

import sys

if sys.argv[0] == "-m":  # Python is about to run a stage: guard it before its first import
    from stages import running

    running.start()
