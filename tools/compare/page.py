"""Show how two revisions differ: one HTML file that needs nothing else."""

from pathlib import Path
from typing import Any

import numpy as np

from stages.page import pictures
from stages.page.render import MANY, load_template, picture_style, sharp_side
from tools.compare.difference import Comparison
from tools.compare.text import caveats, changed_predictions, differing, format_chance

SHOWN = 48
"""How many of the changed predictions are shown."""


def render(comparison: Comparison) -> str:
    """Return the comparison as a page that needs nothing else."""
    second, changed = comparison.second, comparison.changed[:SHOWN, 1]
    side = sharp_side(len(changed))
    images = pictures.shrink((second.images[i] for i in changed), side)
    uris = map(pictures.data_uri, pictures.grayscale(images))
    rows = changed_predictions(comparison, SHOWN)
    template = load_template("page.html.j2", Path(__file__).parent)
    return template.render(
        comparison._asdict(),
        sentence=format_chance(comparison),
        caveats=caveats(comparison),
        tables=differing(comparison),
        predictions=list(zip(uris, rows, strict=True)),
        weights=draw_weights(comparison),
        picture_style=picture_style(*second.model.image_size),
    )


def draw_weights(comparison: Comparison) -> list[list[Any]]:
    """Draw the weights of both models and their difference in one scale of color.

    Rows of three pictures, one for each output, of the first MANY; none if classes or
    sizes differ.
    """
    models = comparison.first.model, comparison.second.model
    if len({(*model.classes, model.image_size) for model in models}) > 1:
        return []
    old, new = (model.weights.T.reshape(-1, *model.image_size) for model in models)
    columns = np.stack([old, new, new - old])[:, :MANY]
    limit = float(np.abs(columns).max())
    side = sharp_side(columns[..., 0, 0].size)
    drawn = (pictures.diverging(pictures.shrink(c, side), limit) for c in columns)
    return [list(map(pictures.data_uri, row)) for row in zip(*drawn, strict=True)]
