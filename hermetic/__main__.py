"""The command line: `hermetic run`, `hermetic observe` and `hermetic check`."""

import sys

USAGE = """usage: hermetic run [--stage NAME] -- COMMAND [ARGUMENT …]
       hermetic observe [TARGET …]
       hermetic check [TARGET …]"""


def main() -> int:
    """Run a command, and return its exit status."""
    match sys.argv[1:]:
        case ["run", "--", name, *arguments]:
            from .command import run

            return run([name, *arguments])
        case ["run", "--stage", stage, "--", name, *arguments]:
            from .command import run

            return run([name, *arguments], stage)
        case ["observe", *targets]:
            from .observe import observe

            return observe(targets)
        case ["check", *targets]:
            from .observe import check

            return check(targets)
    print(USAGE, file=sys.stderr)
    return 2


if __name__ == "__main__":
    sys.exit(main())
