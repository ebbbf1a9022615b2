"""Say what changed between two revisions, and whether it is more than chance.

`python -m tools.compare [REV] [REV] [--html FILE]` compares HEAD with the workspace, a
revision with the workspace, or two revisions: commits, branches, tags or experiments.
The models of both classify the validation images that both have. Nothing is trained:
models and tensors come from DVC's cache, or from a remote.
"""

import argparse
import os
import signal

from stages.plumbing import artifacts, runtime
from tools.compare.difference import compare
from tools.compare.revision import WORKSPACE, load
from tools.compare.text import format_text


def main() -> None:
    """Print a comparison, and write it as a page if that is asked for."""
    parser = argparse.ArgumentParser(
        "python -m tools.compare", description=__doc__.splitlines()[0]
    )
    rev_help = "a commit, branch, tag or experiment; HEAD and workspace unless given"
    parser.add_argument("revs", nargs="*", metavar="REV", help=rev_help)
    html_help = "write the comparison as a page, too, with pictures"
    parser.add_argument("--html", metavar="FILE.html", help=html_help)
    arguments = parser.parse_args()
    if len(arguments.revs) > 2:
        parser.error("more than two revisions")
    if not (arguments.html or ".html").endswith(".html"):
        parser.error("the name of the page has to end in .html")
    first, second = [*(arguments.revs or ["HEAD"]), WORKSPACE][:2]
    comparison = compare(load(first), load(second))
    if arguments.html:
        from tools.compare.page import render  # here, since it takes 0.1 s

        page = render(comparison)
        artifacts.publish({os.path.abspath(arguments.html): page})
    print(format_text(comparison))


if __name__ == "__main__":
    runtime.explain_errors("compare")
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # `| head` ends it without a word
    main()
