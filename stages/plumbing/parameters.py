"""Load params.yaml into one typed, bounded structure per section."""

import inspect
import re
import unicodedata
from collections.abc import Callable
from typing import Annotated, Any, Literal, TypeVar, get_args

import msgspec

import hermetic
from stages.plumbing.errors import UserError

FILE = "params.yaml"
Positive = Annotated[int, msgspec.Meta(ge=1)]
# An upper bound also refuses .inf, which YAML allows.
NonNegative = Annotated[float, msgspec.Meta(ge=0, le=1e6)]
MAX_SIDE = 4096
Side = Annotated[int, msgspec.Meta(ge=1, le=MAX_SIDE)]
MIN_CLASSES, MAX_CLASSES = 2, 256  # labels are uint8
Folder = Annotated[str, msgspec.Meta(min_length=1, pattern=r"^[^/\\]+$")]


class Section(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One top-level key of params.yaml.

    Frozen, so it can be hashed: jax.jit takes one as a static argument.
    """


S = TypeVar("S", bound=Section)


def _repeated(names: tuple[str, ...]) -> str | None:
    """Return the first duplicate in Unicode NFC, or None."""
    normal = [unicodedata.normalize("NFC", name) for name in names]
    return next((name for name in normal if normal.count(name) > 1), None)


def _listed(values: str | tuple[str, ...]) -> tuple[str, ...]:
    return (values,) if isinstance(values, str) else values


Source = Annotated[str, msgspec.Meta(min_length=1)]
Digest = Annotated[str, msgspec.Meta(pattern="^[0-9a-f]{64}$")]
Several = msgspec.Meta(min_length=1, max_length=200)  # opened at the same time


class Download(Section, frozen=True):
    """The source of the archive and its digest; or lists, of several archives."""

    url: Source | Annotated[tuple[Source, ...], Several]
    sha256: Digest | Annotated[tuple[Digest, ...], Several]

    def __post_init__(self) -> None:
        urls, digests = _listed(self.url), _listed(self.sha256)
        if len(urls) != len(digests):
            expected = f"Expected a list of {len(urls)}, a digest for each url"
            raise ValueError(f"{expected} - at `$.sha256`")
        for key, values in (("url", urls), ("sha256", digests)):
            if value := _repeated(values):
                raise ValueError(f"{value!r} is listed twice - at `$.{key}`")

    @property
    def digests(self) -> dict[str, str]:
        """The digest of each archive by its path or URL."""
        return dict(zip(_listed(self.url), _listed(self.sha256), strict=True))


class Splits(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The folder that holds each split."""

    train: Folder
    valid: Folder

    def __post_init__(self) -> None:
        if _repeated((self.train, self.valid)):
            raise ValueError(f"{self.train!r} is both train and valid")


class Data(Section, frozen=True):
    """Which images to read, and how to decode them."""

    classes: Annotated[
        tuple[Folder, ...],
        msgspec.Meta(min_length=MIN_CLASSES, max_length=MAX_CLASSES),
    ]
    splits: Splits
    size: tuple[Side, Side] | None
    color: Literal["gray", "rgb"] | None
    background: Annotated[int, msgspec.Meta(ge=0, le=255)] | None

    def __post_init__(self) -> None:
        if name := _repeated(self.classes):
            # Written as msgspec does, for _explain to find the key.
            raise ValueError(f"{name!r} is listed twice - at `$.classes`")


class Baseline(Section, frozen=True):
    """How the baseline compares an image with a mean image."""

    distance: Literal["l1", "l2"]


class Train(Section, frozen=True):
    """How the model is trained."""

    seed: Annotated[int, msgspec.Meta(ge=0, lt=2**32)]
    subtract_mean: bool
    loss: Literal["squared_error", "brier", "absolute", "log_loss"]
    learning_rate: Annotated[float, msgspec.Meta(gt=0, le=1e6)]
    schedule: Literal["constant", "cooldown"]
    momentum: Annotated[float, msgspec.Meta(ge=0, lt=1)]
    l2: NonNegative
    batch_size: Positive
    epochs: Annotated[int, msgspec.Meta(ge=1, le=100_000)]


class Report(Section, frozen=True):
    """What the report shows."""

    mistakes: Annotated[int, msgspec.Meta(ge=0, le=1000)]


def settings(init: Callable[..., Any]) -> Any:
    """Return the section `model`: the arguments of `init` with defaults.

    Raises UserError for one without a type.
    """
    arguments = inspect.signature(init, eval_str=True).parameters.values()
    fields = [(a.name, a.annotation) for a in arguments if a.default is not a.empty]
    for name, kind in fields:
        if kind is inspect.Parameter.empty:
            raise UserError(
                f"stages/model.py: give {name}, an argument of init, a type"
            )
    return msgspec.defstruct(
        "Model", fields, bases=(Section,), frozen=True, forbid_unknown_fields=True
    )


def load(section: type[S]) -> S:
    """Read and check one section of params.yaml.

    Raises UserError, naming the key and its allowed values, if the file is missing, not
    YAML or not UTF-8, or if a key is unknown, missing, ill-typed or out of range.
    Raises hermetic.UndeclaredAccess if the stage does not declare the section.
    """
    return check(section, read(section.__name__.lower()))


def read(name: str) -> Any:
    """Read one section of params.yaml, unchecked; raises like `load`."""
    try:
        return hermetic.read_params(name, FILE)
    except FileNotFoundError:
        raise UserError(
            f"{FILE} is missing: run this from the root of the repository"
        ) from None
    except KeyError:
        raise UserError(f"{FILE}: the section {name} is missing") from None
    except UnicodeDecodeError:
        raise UserError(f"{FILE} is not UTF-8: save it as UTF-8") from None
    except (OSError, MemoryError):
        raise
    except Exception as error:  # the YAML parser raises many types
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        reason = str(getattr(error, "problem", error))[:120]
        raise UserError(f"{FILE}{line}: not valid YAML ({reason})") from None


def check(section: type[S], values: Any) -> S:
    """Check the values of a section; raises like `load`."""
    values = {} if values is None else values  # an empty section
    try:
        return msgspec.convert(values, section)
    except msgspec.ValidationError as error:
        raise UserError(_explain(error, values, section)) from None


def _explain(
    error: msgspec.ValidationError, values: Any, section: type[Section]
) -> str:
    """Add the key, its value and the allowed values to msgspec's error message.

    The message ends with the path of the key, as in "… - at `$.classes[0]`".
    """
    reason, _, path = str(error).partition(" - at `$")
    path = path.rstrip("`")
    key = f"{FILE}: {section.__name__.lower()}{path}"
    value = values
    for step in re.findall(r"\w+", path):
        value = value[int(step)] if isinstance(value, list) else value[step]
    if "unknown field" in reason and not path:
        known = ", ".join(section.__struct_fields__)
        return f"{key}: {reason[:120]}: known keys are {known}"
    if isinstance(value, dict | list):  # too long to show
        return f"{key}: {reason[:120]}"
    shown = str(value)[:60]
    fields = {field.name: field.type for field in msgspec.structs.fields(section)}
    # The strings of a Literal, maybe in a union with None: msgspec does not list them.
    kinds = [kind := fields.get(path.removeprefix(".")), *get_args(kind)]
    allowed = [name for k in kinds for name in get_args(k) if isinstance(name, str)]
    if allowed:
        allowed = ["null"] * (type(None) in kinds) + allowed
        reason = f"Expected one of {', '.join(allowed)}"
    if reason.startswith("Expected `str`, got") and value is not None:
        if isinstance(value, bool):
            shown = shown.lower()
        elif isinstance(value, int | float):  # 07 is the number 7
            here = f"YAML reads the number {shown} here"
            return f'{key}: {here}: write "{shown}", or the exact name, in quotes'
        return f'{key}: {shown} is not a string: write "{shown}"'
    return f"{key}: {shown!r} is not allowed. {reason}"
