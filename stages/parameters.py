"""The parameters of params.yaml: a typed and bounded structure for each section."""

import re
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

from stages import hermetic
from stages.running import Refusal

FILE = "params.yaml"
Count = Annotated[int, msgspec.Meta(ge=1)]
Pixels = Annotated[int, msgspec.Meta(ge=1, le=4096)]
Folder = Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[^/\\]+$")]


S = TypeVar("S", bound="Section")


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One top-level key of params.yaml."""


class Download(Section, frozen=True):
    """Where the archive comes from, and what it must be."""

    url: Annotated[str, msgspec.Meta(min_length=1)]
    sha256: Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]


class Splits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder that holds each split."""

    train: Folder
    valid: Folder

    def __post_init__(self) -> None:
        if self.train == self.valid:
            msg = f"{self.train!r} is both train and valid"
            raise ValueError(msg)


class Data(Section, frozen=True):
    """Which images to take, and their form."""

    classes: Annotated[tuple[Folder, ...], msgspec.Meta(min_length=2, max_length=256)]
    splits: Splits
    size: tuple[Pixels, Pixels] | None
    grayscale: bool

    def __post_init__(self) -> None:
        twice = [name for name in self.classes if self.classes.count(name) > 1]
        if twice:
            msg = f"{twice[0]!r} is listed twice - at `$.classes`"
            raise ValueError(msg)


class Baseline(Section, frozen=True):
    """How the baseline compares an image with a mean image."""

    distance: Literal["l1", "l2"]


class Train(Section, frozen=True):
    """How the linear model is trained."""

    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    loss: Literal["squared_error", "brier", "absolute", "log_loss"]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    schedule: Literal["constant", "cosine"]
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    l2: Annotated[float, msgspec.Meta(ge=0, le=1e6)]
    batch_size: Count
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)]
    init_std: Annotated[float, msgspec.Meta(ge=0, le=1e6)]


class Report(Section, frozen=True):
    """What the report shows."""

    mistakes: Annotated[int, msgspec.Meta(ge=0, le=1000)]


def load(section: type[S]) -> S:
    """Read and check one section of params.yaml.

    Raises Refusal, naming the key and what is allowed, for a file that is missing, no YAML or not UTF-8, and
    for an unknown, missing, ill-typed or out-of-range key. Raises Undeclared where the running stage does not
    declare the section.
    """
    name = section.__name__.lower()
    try:
        values = hermetic.read_params(name, FILE)
    except FileNotFoundError:
        msg = f"{FILE} is missing: run this from the root of the repository"
        raise Refusal(msg) from None
    except KeyError:
        msg = f"{FILE}: the section {name} is missing"
        raise Refusal(msg) from None
    except UnicodeDecodeError:
        msg = f"{FILE} is not UTF-8: save it as UTF-8"
        raise Refusal(msg) from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # PyYAML raises a dozen types for ill-formed values
        mark = getattr(error, "problem_mark", None)
        reason = str(getattr(error, "problem", error))[:120]
        msg = f"{FILE}{f', line {mark.line + 1}' if mark else ''}: not valid YAML ({reason})"
        raise Refusal(msg) from None
    try:
        return msgspec.convert(values, section)
    except msgspec.ValidationError as error:
        raise Refusal(_explanation(error, values, section)) from None


def _explanation(error: msgspec.ValidationError, values: Any, section: type[Section]) -> str:
    """The error of msgspec with the key, the value, and the values that are allowed."""
    reason, _, place = str(error).partition(" - at `$")
    place = place.rstrip("`")
    key = f"{FILE}: {section.__name__.lower()}{place}"
    value = values
    for step in re.findall(r"\w+", place):
        value = value[int(step)] if isinstance(value, list) else value[step]
    if "unknown field" in reason and not place:
        return f"{key}: {reason[:120]}: known are {', '.join(section.__struct_fields__)}"
    if "unknown field" in reason or "required field" in reason or isinstance(value, dict | list):
        return f"{key}: {reason[:120]}"
    shown = str(value)[:60]
    field = next((f for f in msgspec.structs.fields(section) if f.name == place.removeprefix(".")), None)
    if field and (allowed := get_args(field.type)) and all(isinstance(a, str) for a in allowed):
        reason = f"Expected one of {', '.join(allowed)}"
    if reason.startswith("Expected `str`, got") and value is not None:
        return f'{key}: {shown} is not a string: write "{shown}"'
    return f"{key}: {shown!r} is not allowed. {reason}"
