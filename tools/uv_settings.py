"""Print a uv.toml with the package index, certificates and proxies of the caller's.

Everything else in the caller's files could change what is installed, or where to. Runs
before any package is installed, so it needs only the standard library.
"""

import json
import os
import sys
import tomllib
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

KEPT = {
    *("index", "index-url", "extra-index-url", "find-links", "no-index"),
    *("index-strategy", "keyring-provider", "allow-insecure-host", "trusted-host"),
    *("native-tls", "system-certs", "http-proxy", "https-proxy", "no-proxy"),
}


def files() -> Iterator[Path]:
    """Yield the files that uv would read, in order of precedence."""
    if named := os.environ.get("UV_CONFIG_FILE"):
        yield Path(named)
        return
    above = (folder / "uv.toml" for folder in [Path.cwd(), *Path.cwd().parents])
    yield from [file for file in above if file.exists()][:1]
    config = os.environ.get("XDG_CONFIG_HOME") or os.path.expanduser("~/.config")
    yield Path(config, "uv/uv.toml")
    folders = os.environ.get("XDG_CONFIG_DIRS", "/etc/xdg").split(":")
    system = [*(Path(folder, "uv") for folder in folders), Path("/etc/uv")]
    yield from [file for at in system if (file := at / "uv.toml").exists()][:1]


def settings() -> dict[str, Any]:
    """Return the settings to keep; of a list, those of all files."""
    kept: dict[str, Any] = {}
    for file in files():
        with suppress(FileNotFoundError, PermissionError):
            parsed = tomllib.loads(file.read_text("utf-8"))
            for key, value in [*parsed.items(), *parsed.get("pip", {}).items()]:
                if key in KEPT and isinstance(value, list):
                    kept[key] = [*kept.get(key, []), *value]
                elif key in KEPT:
                    kept.setdefault(key, value)
    return kept


def main() -> None:
    """Print the settings."""
    try:
        kept = settings()
    except ValueError as error:
        sys.exit(f"uv.toml: {error}")
    for key, value in kept.items():
        # With `=` for `:`, JSON without null is TOML.
        print(key, "=", json.dumps(value, ensure_ascii=False, separators=(",", "=")))


if __name__ == "__main__":
    main()
