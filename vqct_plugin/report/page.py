"""``make_report``: a self-contained page on how trained models reconstruct images."""

import datetime
import difflib
from pathlib import Path
from typing import Any, List, NamedTuple, Optional, Sequence, Union

import torch
from torch import Tensor

from vqct_plugin._files import write_whole
from vqct_plugin.evaluation.figures import RunFigures
from vqct_plugin.evaluation.image_set import build_image_set, take_readable
from vqct_plugin.evaluation.rates import label_rate
from vqct_plugin.evaluation.runs import evaluate_runs
from vqct_plugin.evaluation.shards import make_settings
from vqct_plugin.report.curves import read_log
from vqct_plugin.report.explorer import make_data
from vqct_plugin.report.sections import Page, ReportedRun, fill_sections
from vqct_plugin.report.words import encode_images
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.load import Trained, load_first_stage
from vqct_plugin.runs.words import list_words

__all__ = ["report_runs", "make_report", "choose_images", "Shown"]

_IN_NAV = {
    "summary": "Summary",
    "reconstructions": "Reconstructions",
    "use": "Codes in use",
    "words": "Words",
    "search": "Search",
    "space": "Code space",
    "step": "One step",
    "curves": "Learning curves",
    "about": "About",
}
#: parameters of data sets that say what images they have, as taming and this library call them
_SOURCES = ("path", "test_images_list_file", "training_images_list_file", "data_csv", "data_root", "split")
_HERE = Path(__file__).parent
_PARTS = {"style": "page.css", "script": "page.js"}  # of the template
_ALWAYS = ("words", "search", "curves")  # sections that stand in the template, or say why they are empty


class Shown(NamedTuple):
    """The images on the page, see :func:`choose_images`.

    Attributes:
        images: (N, 3, H, W) in [-1, 1].
        names: of each, a file's path where it has one.
        tile: the side of the squares in which models get them.
        data: what the data set is called, for the page's title.
    """

    images: Tensor
    names: List[str]
    tile: int
    data: str = ""


def report_runs(
    runs: Sequence[Union[str, Path]],
    output: Union[str, Path] = "report",
    *,
    images_shown: int = 24,
    size_shown: Optional[int] = None,
    words: Sequence[str] = (),
    force: bool = False,
    processes: int = 1,
    names: Sequence[str] = (),
    base: Sequence[Union[str, Path]] = (),
    overrides: Sequence[str] = (),
    **settings: Any,
) -> Path:
    """Load and evaluate runs, stock or VQCT, and write ``index.html`` with pictures beside it.

    Args:
        runs: run folders or checkpoints of first stages.
        output: a folder. ``evaluation/`` in it has the tables of :func:`~vqct_plugin.evaluation.evaluate_runs`.
        images_shown, size_shown: see :func:`choose_images`.
        words, force: see :func:`make_report`.
        processes, names, base, overrides, settings: as for ``evaluate_runs``.

    Returns:
        The page.

    Raises:
        ConfigError, DataError, CheckpointError: a run, its config or an image cannot be used; a report is there. What
            can be seen before the evaluation is.
    """
    folder = Path(output)
    _find_page(folder, force)
    if images_shown < 1:
        raise ConfigError(f"images_shown is {images_shown!r}; expected 1 or more")
    if not runs:
        raise ConfigError("there is nothing to report on; give a run's folder or a checkpoint")
    its = make_settings(folder / "evaluation", settings)
    trained = [load_first_stage(run, base, overrides) for run in runs]
    _check_words(words, trained)
    shown = choose_images(trained[0], images_shown, size_shown, images=its.images, size=its.size, limit=its.limit)
    figures = evaluate_runs(trained, folder / "evaluation", processes, names, **settings)
    return make_report(trained, figures, shown, output, words=words, force=force)


def make_report(
    trained: Sequence[Trained],
    figures: Sequence[RunFigures],
    shown: Shown,
    output: Union[str, Path] = "report",
    *,
    words: Sequence[str] = (),
    force: bool = False,
) -> Path:
    """Write ``index.html`` of loaded runs and their figures, with pictures beside it.

    The page holds all that it shows, and makes no request to the network.

    Args:
        trained: first stages, see :func:`vqct_plugin.runs.load.load_first_stage`.
        figures: of each, see :func:`vqct_plugin.evaluation.evaluate_runs`.
        shown: the images on the page, see :func:`choose_images`: they have word maps, and the search looks through
            them.
        output: a folder.
        words: words whose nearest words to show; by default the most used.
        force: replace an existing report.

    Returns:
        The page.

    Raises:
        ConfigError: a report is there, or no codebook has a word.
    """
    import jinja2
    from markupsafe import Markup

    folder = Path(output)
    page = _find_page(folder, force)
    _check_words(words, trained)
    folder.mkdir(parents=True, exist_ok=True)
    models = []
    for its, run in zip(figures, trained):
        if torch.cuda.is_available():
            run.model.cuda()
        tokens = encode_images(run.model, shown.images, tile=shown.tile)
        models.append(ReportedRun(its, run, tokens, *list_words(run.model.quantize), read_log(run.checkpoint)))
    content = Page(folder, shown.images, shown.names, shown.tile, models, words)
    sections = fill_sections(content)
    date = datetime.date.today().isoformat()
    nav = [(key, label) for key, label in _IN_NAV.items() if sections.get(key) or key in _ALWAYS]
    templates = jinja2.Environment(
        loader=jinja2.PackageLoader("vqct_plugin", "report"), autoescape=True, undefined=jinja2.StrictUndefined
    )
    data = make_data(
        content, [plane for its in sections["space"] for plane in its["planes"]]
    )  # JSON, in which nothing can end the script element
    text = templates.get_template("page.html").render(
        title="; ".join(label_rate(its) for its in figures),
        made=" ".join([*([f"on {shown.data},"] if shown.data else []), date]),
        nav=nav,
        data=Markup(data),
        **{kind: Markup((_HERE / file).read_text(encoding="utf-8")) for kind, file in _PARTS.items()},
        **sections,
    )
    write_whole(page, text.encode(), overwrite=True)
    return page


def choose_images(
    trained: Trained,
    number: int = 24,
    size_shown: Optional[int] = None,
    *,
    images: Any = None,
    size: Optional[int] = None,
    limit: Optional[int] = None,
) -> Shown:
    """Images for the page, spread over those that are evaluated.

    Args:
        trained: the run whose validation set it is.
        number: how many.
        size_shown: the side of those images, a multiple of the evaluation's, which it is by default: more of the image
            is seen, and the models get it in tiles of the evaluation's size, as they were evaluated.
        images, size, limit: those of the evaluation, see :func:`~vqct_plugin.evaluation.image_set.build_image_set`.
    """
    key = trained.model.image_key
    ((_, first),) = take_readable(build_image_set(trained, images, size, limit), [0])
    tile = int(first[key].shape[0])
    if size_shown is not None and (size_shown < tile or size_shown % tile):
        raise ConfigError(
            f"size_shown is {size_shown}; expected a multiple of {tile}, the side of the images evaluated"
        )
    items = build_image_set(trained, images, size, limit, size_shown)
    number = min(number, len(items))
    places = [(2 * i + 1) * len(items) // (2 * number) for i in range(number)]
    chosen = take_readable(items, places)
    batch = torch.utils.data.dataloader.default_collate([{key: item[key]} for _, item in chosen])
    names = [str(item.get("file_path_", f"image {i}")) for i, item in chosen]
    return Shown(trained.model.get_input(batch, key).float().cpu(), names, tile, name_data(trained.config, images))


def name_data(config: Any, images: Any = None) -> str:
    """What to call the images that are evaluated: the last part of a folder's or list file's path, else the class of
    the config's validation set with the file, folder or split that it is of."""
    if images is not None:
        return Path(images).resolve().name
    validation = config.data.params.validation
    params = validation.get("params") or {}
    found = [params[key] for key in _SOURCES if isinstance(params.get(key), str)]
    name = str(validation.target).rsplit(".", 1)[-1]
    return f"{name} ({Path(found[0]).name})" if found else name


def _find_page(folder: Path, force: bool) -> Path:
    page = folder / "index.html"
    if page.exists() and not force:
        raise ConfigError(f"{page} exists; pass force=True to replace it, or choose another folder")
    return page


def _check_words(words: Sequence[str], trained: Sequence[Trained]) -> None:
    known = {word for run in trained for word in list_words(run.model.quantize)[0]} if words else set()
    for word in words:
        if word not in known:
            close = difflib.get_close_matches(word, sorted(known), n=3)
            hint = f"; close to it: {', '.join(close)}" if close else ""
            raise ConfigError(f"no codebook of these runs has the word {word!r}{hint}")
