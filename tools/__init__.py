"""Tools for people, such as `python -m tools.check`."""

import sys

if sys.hexversion < 0x30B0000:  # it could not parse what is imported below
    sys.exit("Python 3.11 to 3.14 is needed: activate .venv, which make creates")

from stages.plumbing import runtime

if sys.argv[0] == "-m":  # while Python looks for the tool to run
    runtime.explain_errors("tools")  # until the tool gives its own name
