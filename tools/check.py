"""Check params.yaml before DVC starts a stage, in 0.2 s: `python -m tools.check`.

DVC deletes a stage's outputs before it starts the stage: if the stage then rejects a
parameter, they are gone. So `make` and a pre-commit hook run this first. Prints the
first error of each section, with the stage's own message.
"""

import os
import sys
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any

import hermetic
from stages import download, model
from stages.evaluation import outputs
from stages.plumbing import artifacts, npz, parameters, runtime
from stages.plumbing.errors import UserError

SECTIONS = [*parameters.Section.__subclasses__(), parameters.settings(model.init)]


def check_archive() -> None:
    """Raise UserError unless download.url names archives with the right digests.

    An http(s) URL is not fetched. A local archive may be missing if dvc.lock has its
    digest: DVC then takes the download's output from the cache or the remote.
    """
    for url, digest in parameters.load(parameters.Download).digests.items():
        _check_archive(url, digest)


def _check_archive(url: str, digest: str) -> None:
    path = os.path.realpath(url)
    for stage, out in _outs():
        both_exist = os.path.exists(path) and os.path.exists(out)
        same = both_exist and os.path.samefile(path, out)
        if same or f"{path}/".startswith(f"{os.path.realpath(out)}/"):
            raise UserError(
                f"download.url: {url} is an output of the stage {stage}, which "
                "DVC deletes before it starts the stage: copy the archive elsewhere, "
                "and write that path"
            )
    if not os.path.exists(path) and _locked("download"):
        return
    if archive := download.find_archive(url):
        download.check_digest(archive, url, digest)


def check_loss() -> None:
    """Raise UserError if the loss is only for two classes, and there are more."""
    count = len(parameters.load(parameters.Data).classes)
    loss = parameters.load(parameters.Train).loss
    outputs.outputs_of(loss, outputs.output_count(count))


def check_batch_size() -> None:
    """Raise UserError if a batch is larger than the training set.

    Passes if data/tensors.npz was not made with the current parameters.
    """
    batch_size = parameters.load(parameters.Train).batch_size
    made = _locked("download") and _locked("preprocess")
    if not made or not os.path.exists(artifacts.TENSORS):
        return
    sizes = {out["path"]: out["size"] for out in made["outs"]}
    if sizes.get(artifacts.TENSORS) != os.path.getsize(artifacts.TENSORS):
        return
    dtypes = {"train_labels": "uint8"}
    arrays = npz.load_arrays(artifacts.TENSORS, dtypes, verify=False)
    if batch_size > (count := len(arrays["train_labels"])):
        raise UserError(
            f"train.batch_size: {batch_size} exceeds the number of training images: "
            f"use 1 to {count}"
        )


def _outs() -> Iterator[tuple[str, str]]:
    """Yield every stage of dvc.yaml with the path of every output."""
    try:
        for name, stage in hermetic.read_params("stages", "dvc.yaml").items():
            for kind in ("outs", "metrics", "plots"):
                for out in stage.get(kind, []):  # with options, a mapping of one key
                    path = out if isinstance(out, str) else next(iter(out))
                    yield name, os.path.join(stage.get("wdir", ""), path)
    except Exception:  # DVC reports errors in dvc.yaml, and deletes nothing
        return


def _locked(stage: str) -> dict[str, Any] | None:
    """Return a stage's entry in dvc.lock; None if its parameters have changed since."""
    try:
        entry = hermetic.read_params("stages", "dvc.lock")[stage]
        for file, values in entry["params"].items():
            # Skip dotted keys (data.size): their sections are listed, too.
            sections = [key for key in values if "." not in key]
            if any(hermetic.read_params(key, file) != values[key] for key in sections):
                return None
    except Exception:  # dvc.lock is missing, or DVC reports its errors
        return None
    return entry


def errors() -> list[str]:
    """Return the first error of each section, and the errors across sections."""
    checks: list[Callable[[], Any]] = [
        *(partial(parameters.load, section) for section in SECTIONS),
        check_archive,
        check_loss,
        check_batch_size,
    ]
    found: dict[str, None] = {}
    for check in checks:
        try:
            check()
        except UserError as error:
            found[str(error)] = None  # a dict, since several checks load one section
    return list(found)


def main() -> int:
    """Print a line per error to stderr; return 1 if there are any."""
    found = errors()
    for error in found:
        print(f"check: {error}", file=sys.stderr)
    return int(bool(found))


if __name__ == "__main__":
    runtime.explain_errors("check")
    sys.exit(main())
