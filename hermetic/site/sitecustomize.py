"""Guard a Python process that a guarded or observed stage starts.

Python imports a module of this name at its start, here because of PYTHONPATH.
"""

import os
import sys
from importlib.machinery import PathFinder
from importlib.util import module_from_spec

FOLDER = os.path.dirname(os.path.abspath(__file__))


def _enforce() -> None:
    package = os.path.dirname(FOLDER)
    found = os.environ.get("HERMETIC_PATH", "").split(os.pathsep)
    added = [os.path.dirname(package), *filter(None, found)]
    sys.path += added
    try:
        import hermetic

        hermetic.enforce()
    except Exception as error:  # Python would only print it, and go on
        if not os.path.isdir(os.environ.get("HERMETIC_FOLDER", "/")):
            os._exit(1)  # the stage that started this has ended
        print(f"{type(error).__name__}: {error}", file=sys.stderr, flush=True)
        os._exit(1)
    finally:
        del sys.path[-len(added) :]


sys.path[:] = [path for path in sys.path if path != FOLDER]
_enforce()
# The environment may have a module of this name, too.
if spec := PathFinder.find_spec("sitecustomize"):
    spec.loader.exec_module(module_from_spec(spec))  # type: ignore[union-attr]
