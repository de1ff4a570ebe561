"""What the page's script works with: the maps of codes, and the search for words."""

import json
from typing import Any, Sequence

import numpy as np

from vqct_plugin.report.codespace import get_codebook
from vqct_plugin.report.embedding import embed_image
from vqct_plugin.report.sections import Page
from vqct_plugin.report.words import count_each_image, find_commonest, find_telling
from vqct_plugin.runs.words import color_codes, has_words


def make_data(page: Page, planes: Sequence[Any] = ()) -> str:
    """The JSON of the images on the page, of each run's codes, of the words that tell images apart, and of the planes
    of :func:`vqct_plugin.report.sections.fill_space`."""
    runs = []
    for model in page.models:
        codes = model.tokens.codes.numpy()
        counts = count_each_image(model.tokens.codes, len(model.words))
        parts = [model.parts[model.part_of_speech[codes[0, t, 0, 0]]] for t in range(codes.shape[1])]
        vectors = get_codebook(model.trained.model.quantize).numpy()
        labels = list(dict.fromkeys(page.sets))
        of_sets = [counts[[i for i, label in enumerate(page.sets) if label == wanted]].sum(0) for wanted in labels]
        telling = find_telling(np.stack(of_sets))
        runs.append(
            {
                "name": model.figures.name,
                "layers": [f"{part} {parts[:t].count(part) + 1}" if parts.count(part) > 1 else part
                           for t, part in enumerate(parts)],
                "named": has_words(model.trained.model.quantize),
                "words": model.words,
                "parts": model.parts,
                "part": model.part_of_speech.tolist(),
                "colors": color_codes(vectors, model.part_of_speech),
                "maps": [image.reshape(codes.shape[1], -1).tolist() for image in codes],
                "grid": [codes.shape[2], codes.shape[3]],
                "telling": [[code for code, _ in telling[labels.index(label)]] for label in page.sets],
                "commonest": [find_commonest(row, model.part_of_speech, 4) for row in counts],
            }
        )  # fmt: skip
    data = {
        "size": [page.images.shape[2], page.images.shape[3]],
        "images": [
            {"name": name, "set": label if page.sets.count(label) > 1 else None, "src": embed_image(image)}
            for name, label, image in zip(page.names, page.sets, page.images)
        ],
        "runs": runs,
        "planes": list(planes),
    }
    return json.dumps(data, separators=(",", ":")).replace("<", "\\u003c")
