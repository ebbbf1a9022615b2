"""Run stages unguarded but watched, and compare what they use with dvc.yaml.

Both commands run `dvc repro --force`. What C code and other programs use is not seen.
"""

import json
import os
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Collection, Iterable
from importlib.util import find_spec
from pathlib import Path

from . import SITE, addition, settings
from .declaration import Declaration, absolute, covering, pipeline, temporary
from .hook import RECORD
from .policy import PATH

MANY = 3
"""Up to so many undeclared files of a folder are listed; of more, the folder."""

Lines = dict[str, dict[str, str]]
"""By section and name, the line that first used it. The sections are those of dvc.yaml
and pyproject.toml that lack the name; "" for what is declared; and "remarks"."""


def observe(targets: list[str]) -> int:
    """Print a patch that adds to dvc.yaml what it lacks; return DVC's exit status.

    What the patch cannot add goes to stderr, with lines for pyproject.toml.
    """
    status, stages = _watch(targets)
    texts = {file: addition.text(file) for file, _ in stages}
    for (file, name), lines in stages.items():
        for section in ("deps", "params", "outs"):
            items = addition.items(section, lines[section], os.path.dirname(file))
            if new := addition.with_items(texts[file], name, section, items):
                texts[file] = new
            else:
                names = ", ".join(lines[section])
                lines["remarks"][f"lacks in {section}: {names}"] = ""
        for remark, line in lines["remarks"].items():
            print(f"stage {name} {remark}" + (line and f" ({line})"), file=sys.stderr)
        table = f"[tool.hermetic.stages.{json.dumps(name)}]\n"
        for key in filter(lines.get, ("presets", "allow")):
            values = json.dumps(sorted(lines[key]), ensure_ascii=False)
            print(f"{table}{key} = {values}", file=sys.stderr)
            table = ""
    for file, text in texts.items():
        sys.stdout.write(addition.diff(file, text))
    return status


def check(targets: list[str]) -> int:
    """List what each stage declares, which line uses it, and what is missing.

    Returns DVC's exit status, or 1 if anything is missing, unused or declared twice.
    """
    status, stages = _watch(targets)
    is_exact = True
    for (_, name), lines in stages.items():
        declared, rows = lines.pop(""), lines.pop("remarks")
        for section, names in lines.items():
            rows |= {used: f"missing in {section}: {at}" for used, at in names.items()}
        is_exact &= not rows
        for used, line in declared.items():
            above = next((o for o in declared if used.startswith(f"{o}/")), None)
            remark = f"declared twice: it is in {above}" if above else line
            rows[used] = remark or "not used by Python"
            is_exact &= not above and bool(line)
        print(f"\n{name}")
        for used, remark in sorted(rows.items()):
            print(f"  {used:{max(map(len, rows))}}  {remark}")
    return status or int(not is_exact)


def _watch(targets: list[str]) -> tuple[int, dict[tuple[str, str], Lines]]:
    """Run stages; return DVC's status and, by dvc.yaml and name, what a stage lacks."""
    dvc = [sys.executable, "-m", "dvc"] if find_spec("dvc") else ["dvc"]
    # Where a Python of another environment finds what this package imports.
    spec = find_spec("ruamel.yaml")
    libraries = str(Path(spec.origin).parents[2]) if spec and spec.origin else ""
    path = os.pathsep.join(filter(None, [SITE, os.environ.get("PYTHONPATH")]))
    with tempfile.TemporaryDirectory() as folder:
        log = Path(folder, "log")
        log.touch()
        added = {RECORD: str(log), PATH: libraries, "PYTHONPATH": path}
        command = [*dvc, "repro", "--force", *targets]
        try:
            status = subprocess.call(command, env={**os.environ, **added}, stdout=2)
        except FileNotFoundError:
            sys.exit("there is no DVC here: install it into this environment")
        entries = [json.loads(line) for line in log.read_text("utf-8").splitlines()]
    if status and not entries:
        sys.exit(status)  # DVC has said why
    logged: dict[tuple[str, str], Lines] = {}
    for entry in entries:
        file, _, name = entry["stage"].rpartition(":")
        stage = os.path.abspath(file or "dvc.yaml"), name
        lines = logged.setdefault(stage, defaultdict(dict))
        missing, name = entry["missing"], entry["name"]
        if missing != "deps" or name not in lines["outs"]:  # it may read what it wrote
            lines[missing][name] = lines[missing].get(name) or entry["line"]
    files = {file for file, _ in logged}
    if not targets and os.path.isfile("dvc.yaml"):
        files.add(os.path.abspath("dvc.yaml"))
    declared = {stage: own for file in files for stage, own in pipeline(file).items()}
    outs = {stage: {*declared[stage].outs} for stage in declared}
    found = {}
    for stage in filter(declared.get, logged):
        others = set().union(*(outs[other] for other in outs if other != stage))
        lines = found[stage] = _lacking(logged[stage], declared[stage], others)
        outs[stage] |= {absolute(name, declared[stage].base) for name in lines["outs"]}
    for _, name in [] if targets else sorted(declared.keys() - logged.keys()):
        print(f"stage {name} is not observed: no Python ran", file=sys.stderr)
    return status, found


def _lacking(logged: Lines, declared: Declaration, others: Collection[str]) -> Lines:
    """Return what a stage lacks, as dvc.yaml can say it; `others` are others' outs."""
    base, outs = declared.base, declared.outs
    lines: Lines = defaultdict(dict, {"remarks": {}})
    uses = [(dep, "") for dep in declared.deps] + [*declared.params]
    names = [declared.relative(path, key) for path, key in uses]
    lines[""] = {name: logged[""].get(name, "") for name in names}
    lines["params"] = logged["params"]
    remarks, made, deps = lines["remarks"], dict[str, str](), dict[str, str]()
    read = {absolute(name, base) for name in logged["deps"]}
    written = {absolute(name, base) for name in logged["outs"]}
    passing = _above({*written, *outs}) | {*map(temporary, written)}
    for name, line in logged["outs"].items():
        path = absolute(name, base)
        if path in read:  # DVC removes outs first
            remarks[f"reads {name} and then writes it"] = line
        elif covering(path, others):
            remarks[f"writes {name}, an out of another stage"] = line
        elif path not in passing and os.path.lexists(path):
            made[path] = line
        elif path not in passing:
            remarks[f"writes {name} and removes it: use tempfile"] = line
    known = {*outs, *others, base}
    made = _gather(made, {*known, *declared.deps, *read}, is_whole=True)
    holding = _above({base, *outs, *made}) | {base}
    own = {*outs, *made, *written}
    for name, line in logged["deps"].items():
        path = absolute(name, base)
        if out := covering(path, others):
            deps.setdefault(out, line)
        elif path in holding:
            # A dep cannot hold outs. To allow a folder above `base` allows to list it.
            top = os.path.commonpath([path, base])
            lines["allow"][os.path.relpath(top, base)] = line
        elif covering(path, own):
            continue
        elif not os.path.exists(path):
            remarks[f"reads {name}, which does not exist"] = line
        elif name == "params.yaml":
            lines["params"]["params.yaml: *"] = line
        else:
            deps[path] = line
    deps = _gather(deps, {*known, *made, *declared.deps})
    for section, paths in {"deps": deps, "outs": made}.items():
        lines[section] = {os.path.relpath(path, base): paths[path] for path in paths}
    elsewhere: dict[str, str] = {}
    for name, line in logged["allow"].items():
        if name[0] in "/.":
            elsewhere[absolute(name, base)] = line
        else:
            lines["allow" if "://" in name else "remarks"][name] = line
    home, root = os.path.expanduser("~"), declared.root
    for path, line in _gather(elsewhere, {base, home}).items():
        key, name = settings.place(path, root)
        name = os.path.relpath(name, base) if covering(name, [root]) else name
        lines[key][name.replace(f"{home}/", "~/", 1)] = line
    return lines


def _above(paths: Iterable[str]) -> set[str]:
    """Return the folders above paths."""
    return {str(above) for path in paths for above in Path(path).parents}


def _gather(
    lines: dict[str, str], known: set[str], *, is_whole: bool = False
) -> dict[str, str]:
    """Replace many paths in a folder by the folder, unless it holds a known path.

    `is_whole`: only if it holds no other files, either.
    """
    found = {path for path in lines if not covering(os.path.dirname(path), lines)}
    for folder in sorted(_above(found) - _above(known) - known, key=len, reverse=True):
        inside = {path for path in found if path.startswith(f"{folder}/")}
        entries = {path[len(folder) + 1 :].split("/")[0] for path in inside}
        files = (f"{top}/{name}" for top, _, names in os.walk(folder) for name in names)
        if len(entries) > MANY and not (is_whole and {*files} - lines.keys()):
            found = found - inside | {folder}
    gathered: dict[str, str] = {}
    for path, line in lines.items():
        gathered.setdefault(covering(path, found) or path, line)
    return gathered
