"""``vqct-evaluate``: one or several trained models over a set of images, shard by shard, side by side."""

import csv
import hashlib
import io
import json
import math
import os
from contextlib import nullcontext, redirect_stdout
from functools import partial
from pathlib import Path
from typing import Any, Dict, List, Mapping, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch

from vqct_plugin._files import write_whole
from vqct_plugin._version import __version__
from vqct_plugin.compat.containers import to_plain
from vqct_plugin.evaluation.measures import PROTOCOLS, SMALLEST_MS_SSIM, confidence_interval, measure
from vqct_plugin.evaluation.tables import format_table
from vqct_plugin.evaluation.weights import load_inception, load_lpips
from vqct_plugin.runs.build import build_validation_set
from vqct_plugin.runs.config import ConfigError, DataError
from vqct_plugin.runs.datasets import Images
from vqct_plugin.runs.load import Trained, load_run
from vqct_plugin.runs.usage import count_codes, make_counter
from vqct_plugin.usage import PartUsage

TITLES = {"psnr": "PSNR, dB", "ssim": "SSIM", "ms_ssim": "MS-SSIM", "l1": "L1", "lpips": "LPIPS"}
DIGITS = {"psnr": 2, "ssim": 4, "ms_ssim": 4, "l1": 4, "lpips": 4}


class Settings(NamedTuple):
    """What every process of an evaluation has to know.

    Attributes:
        run, base, overrides: the model, see :func:`vqct_plugin.runs.load.load_run`.
        images: a folder or list file of images; None for the config's validation set.
        size: the side of the squares that images are cropped to; None for the model's resolution.
        protocol: ``"plain"`` or ``"vqct"``, see :func:`vqct_plugin.evaluation.measures.measure`.
        weights: a folder with the networks' weights, see :mod:`vqct_plugin.evaluation.weights`.
        batch_size, workers: images at once, and processes that read them. They change no figure but by rounding.
        precision: ``"32"``, ``"bf16"`` or ``"16"`` (autocast).
        shard_size: images in a shard, the piece of work that is kept when an evaluation is stopped.
        limit: evaluate the first so many images only.
        folder: where the shards are kept.
        progress: whether to show a bar.
    """

    run: str
    base: Tuple[str, ...] = ()
    overrides: Tuple[str, ...] = ()
    images: Optional[str] = None
    size: Optional[int] = None
    protocol: str = "plain"
    weights: Optional[str] = None
    batch_size: int = 16
    workers: int = 0
    precision: str = "32"
    shard_size: int = 512
    limit: Optional[int] = None
    folder: str = "evaluation"
    progress: bool = True


class RunFigures(NamedTuple):
    """A model's figures.

    Attributes:
        name: of the run.
        images: how many were evaluated.
        files: of each image, as its data set names it; empty where that does not.
        values: for each figure of single images, one value an image.
        mean, interval: of each of them, the mean and the 95 % interval of the bootstrap over images.
        rfid, inception_score: over the whole set, or None.
        missing: figure -> why it is not there.
        usage: of each part of the codebook, over the whole set.
        counts, part_of_speech: (n_e,) how often each code was chosen, and its part, an index into the keys of
            ``usage``.
        tokens, bits: of one image; bits as codes of each part written with equal lengths.
        source: where the images are from, to tell whether runs were evaluated on the same.
    """

    name: str
    images: int
    files: List[str]
    values: Dict[str, List[float]]
    mean: Dict[str, float]
    interval: Dict[str, List[float]]
    rfid: Optional[float]
    inception_score: Optional[float]
    missing: Dict[str, str]
    usage: Dict[str, PartUsage]
    counts: torch.Tensor
    part_of_speech: torch.Tensor
    tokens: int
    bits: float
    source: str


def evaluate_runs(
    runs: Sequence[Union[str, Path]],
    output: Union[str, Path, None] = None,
    processes: int = 1,
    names: Sequence[str] = (),
    **settings: Any,
) -> List[RunFigures]:
    """Evaluate trained models, stock or VQCT, on the same images.

    Shards that an earlier call has written are taken as they are, if model, images and settings are the same.

    Args:
        runs: run folders or checkpoints.
        output: a folder for ``table.md``, ``figures.csv``, ``figures.json``, ``images.csv`` and the shards; None keeps
            the shards in ``evaluation/`` and writes nothing else.
        names: what to call the runs; by default their folders' names.
        processes: how many share the shards of each run: one to a GPU where there are several, else on the CPU.
        settings: the fields of :class:`Settings`.

    Raises:
        ConfigError, DataError, CheckpointError: a run, its config or an image cannot be used.
    """
    if not runs:
        raise ConfigError("there is nothing to evaluate; give a run's folder or a checkpoint")
    if processes < 1:
        raise ConfigError(f"processes is {processes!r}; expected 1 or more")
    folder = Path(output) if output is not None else Path("evaluation")
    every = [settings_of(run, folder, settings) for run in runs]
    names = _names([its.run for its in every], names)
    found = []
    for name, its in zip(names, every):
        if processes == 1:
            _evaluate_shards(0, 1, its)
        else:
            _spawn(processes, its)
        found.append(_gathered(name, its))
    if output is not None:
        write(found, folder)
    return found


def settings_of(run: Any, folder: Path, given: Mapping[str, Any]) -> Settings:
    """Of one run, checked."""
    unknown = sorted(set(given) - set(Settings._fields) | ({"run", "folder"} & set(given)))
    if unknown:
        raise TypeError(f"evaluate_runs takes no argument {unknown[0]!r}")
    settings = Settings(str(run), folder=str(folder), **given)
    if settings.protocol not in PROTOCOLS:
        raise ConfigError(f"protocol is {settings.protocol!r}; expected {' or '.join(PROTOCOLS)}")
    if settings.precision not in ("32", "bf16", "16"):
        raise ConfigError(f"precision is {settings.precision!r}; expected 32, bf16 or 16")
    for name, least in (("batch_size", 1), ("shard_size", 1), ("limit", 1), ("size", 1), ("workers", 0)):
        value = getattr(settings, name)
        if value is not None and value < least:
            raise ConfigError(f"{name} is {value!r}; expected {least} or more")
    return settings


def _names(runs: Sequence[str], given: Sequence[str]) -> List[str]:
    """What to call each run in the table: its folder, told apart by number where two have one name."""
    if given:
        if len(given) != len(runs) or len(set(given)) < len(given) or not all(given):
            raise ConfigError(f"names are {list(given)}; expected {len(runs)}, one for each run, all different")
        return list(given)
    names: List[str] = []
    for run in runs:
        path = Path(run).resolve()
        name = path.parent.parent.name if path.is_file() else path.name
        names.append(name if name not in names else f"{name} ({len(names) + 1})")
    return names


def load_first_stage(settings: Settings) -> Trained:
    """The model, without its loss and without what its host prints while it is built."""
    with redirect_stdout(io.StringIO()):
        trained = load_run(settings.run, settings.base, settings.overrides, loss=False)
    if not hasattr(trained.model, "quantize"):
        raise ConfigError(f"{settings.run} is of a {type(trained.model).__name__}; expected a first stage, a VQGAN")
    return trained


def factor_of(model: Any) -> int:
    """How many pixels of a side make one position."""
    factor: int = 2 ** (model.encoder.num_resolutions - 1)
    return factor


def image_set(settings: Settings, trained: Trained, size: Optional[int] = None) -> Any:
    """The images to evaluate: of the folder or list file, or the config's validation set.

    ``size``: a side other than the evaluation's, to look at them.
    """
    encoder = trained.model.encoder
    factor = factor_of(trained.model)
    if getattr(encoder, "in_channels", 3) != 3:
        raise ConfigError(f"the model of {settings.run} encodes {encoder.in_channels} channels; expected 3, of images")
    side = size or settings.size or encoder.resolution
    if side % factor:
        raise ConfigError(f"size is {side}; expected a multiple of {factor}, the model's downsampling factor")
    if settings.images is not None:
        items = Images(settings.images, side)
    elif settings.size is not None:
        raise ConfigError("size goes with images; the config's validation set has its own")
    else:
        config = trained.config
        if size is not None:
            from omegaconf import OmegaConf

            config = OmegaConf.merge(config, {"data": {"params": {"validation": {"params": {"size": size}}}}})
        items = build_validation_set(config)
    if len(items) == 0:
        raise DataError("the validation set has no image")
    return torch.utils.data.Subset(items, range(min(len(items), settings.limit or len(items))))


def _spawn(processes: int, settings: Settings) -> None:
    """Evaluate in so many processes; what one of them cannot use is told as here."""
    errors = torch.multiprocessing.get_context("spawn").SimpleQueue()
    try:
        torch.multiprocessing.spawn(_in_process, args=(processes, settings, errors), nprocs=processes)
    except torch.multiprocessing.ProcessRaisedException:
        if errors.empty():
            raise
        raise DataError(errors.get()) from None


def _in_process(rank: int, processes: int, settings: Settings, errors: Any) -> None:
    try:
        _evaluate_shards(rank, processes, settings)
    except (ValueError, OSError) as error:
        errors.put(str(error))
        raise


def _evaluate_shards(rank: int, processes: int, settings: Settings) -> None:
    """The shards rank, rank + processes, ... that are not there yet."""
    trained = load_first_stage(settings)
    items = image_set(settings, trained)
    folder = _shard_folder(settings, trained, items)
    folder.mkdir(parents=True, exist_ok=True)
    wanted = [k for k in range(-(-len(items) // settings.shard_size)) if k % processes == rank]
    wanted = [k for k in wanted if not _shard(folder, k).is_file()]
    if not wanted:
        return
    device = torch.device(f"cuda:{rank % torch.cuda.device_count()}" if torch.cuda.is_available() else "cpu")
    model = trained.model.to(device)
    if processes > 1:
        torch.set_num_threads(max(1, (os.cpu_count() or 1) // processes))
    if hasattr(model.quantize, "freeze_codebook"):
        model.quantize.freeze_codebook()
    networks = (load_lpips(device, settings.weights)[0], load_inception(device, settings.weights)[0])
    from tqdm import tqdm

    with tqdm(total=len(items), disable=not settings.progress or rank > 0, unit="image", desc="evaluating") as bar:
        bar.update(len(items) - sum(_length(k, settings, items) for k in wanted))
        for k in wanted:
            first = k * settings.shard_size
            part = torch.utils.data.Subset(items, range(first, first + _length(k, settings, items)))
            torch.manual_seed(k)  # a Gumbel quantizer draws
            _save(_shard(folder, k), _evaluated(model, part, settings, device, networks, bar))


def _length(k: int, settings: Settings, items: Any) -> int:
    return min(settings.shard_size, len(items) - k * settings.shard_size)


@torch.no_grad()
def _evaluated(
    model: Any, part: Any, settings: Settings, device: torch.device, networks: Tuple[Any, Any], bar: Any
) -> Dict[str, np.ndarray]:
    lpips, inception = networks
    usage = make_counter(model.quantize)
    values: Dict[str, List[float]] = {}
    features: Dict[str, List[Any]] = {}
    files: List[str] = []
    positions = 0
    half = {"bf16": torch.bfloat16, "16": torch.float16}.get(settings.precision)
    loader = torch.utils.data.DataLoader(part, settings.batch_size, num_workers=settings.workers)
    for batch in loader:
        x = model.get_input(batch, model.image_key).to(device)
        with torch.autocast(device.type, dtype=half) if half is not None else nullcontext():
            quantized, _, (_, _, indices) = model.encode(x)
            reconstruction = model.decode(quantized).float()
        usage.update(indices)
        files.extend(batch.get("file_path_", []))
        positions = quantized.shape[2] * quantized.shape[3]
        for name, of_images in measure(x, reconstruction, settings.protocol, lpips).items():
            values.setdefault(name, []).extend(of_images)
        if inception is not None:
            for kind, images in (("original", x), ("reconstruction", reconstruction)):
                pixels = _for_inception(images, settings.protocol).to(device)
                for name, found in zip(("features", "logits"), inception(pixels)):
                    features.setdefault(f"{kind}_{name}", []).append(found.float().cpu().numpy())
        bar.update(len(x))
    found = {f"value_{name}": np.asarray(of_images) for name, of_images in values.items()}
    found.update({name: np.concatenate(pieces) for name, pieces in features.items()})
    found["counts"] = usage.counts.cpu().numpy()
    found["files"] = np.asarray(files, dtype=str)
    found["positions"] = np.asarray(positions)
    return found


def _for_inception(images: torch.Tensor, protocol: str) -> torch.Tensor:
    from vqct_plugin.evaluation.measures import as_bytes, as_jpeg

    pixels = np.stack([np.asarray(image) for image in as_jpeg(images)]) if protocol == "vqct" else as_bytes(images)
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).contiguous()


def _shard_folder(settings: Settings, trained: Trained, items: Any) -> Path:
    """A folder of its own for everything that a figure depends on."""
    status = trained.checkpoint.stat()
    identity = [
        str(trained.checkpoint.resolve()), status.st_size, status.st_mtime_ns, settings.base, settings.overrides,
        settings.size, settings.protocol, settings.precision,
        settings.shard_size, len(items), _source(settings, trained), _found_weights(settings), _files_of(items),
        __version__,
    ]  # fmt: skip
    digest = hashlib.sha256(json.dumps(identity).encode()).hexdigest()[:16]
    return Path(settings.folder) / "shards" / digest


def _files_of(items: Any) -> List[Any]:
    """Names, sizes and times of the images' files, to see that one has changed; [] where the data set tells none."""
    paths = getattr(items.dataset, "paths", [])
    found = []
    for i in items.indices if paths else []:
        path = Path(paths[i])
        status = path.stat() if path.is_file() else None  # a missing one is told of when it is read
        found.append([str(path.resolve()), status and [status.st_size, status.st_mtime_ns]])
    return found


def _found_weights(settings: Settings) -> List[str]:
    from vqct_plugin.evaluation.weights import INCEPTION, VGG, find_weights

    return [str(find_weights(name, settings.weights)) for name in (INCEPTION, VGG)]


def _shard(folder: Path, k: int) -> Path:
    return folder / f"{k:06}.npz"


def _save(file: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Whole or not at all: a shard that is there is finished."""
    part = file.with_suffix(f".{os.getpid()}.tmp")
    with part.open("wb") as stream:
        every: Any = arrays
        np.savez(stream, **every)
    part.replace(file)


def _gathered(name: str, settings: Settings) -> RunFigures:
    trained = load_first_stage(settings)
    items = image_set(settings, trained)
    folder = _shard_folder(settings, trained, items)
    shards = [dict(np.load(_shard(folder, k))) for k in range(-(-len(items) // settings.shard_size))]
    quantizer = trained.model.quantize
    usage = make_counter(quantizer)
    usage.counts = torch.from_numpy(sum(shard["counts"] for shard in shards))
    values = {
        key[len("value_") :]: np.concatenate([shard[key] for shard in shards]).tolist()
        for key in shards[0]
        if key.startswith("value_")
    }
    rfid, score, missing = _of_inception(shards, settings)
    missing.update(_missing(values, settings))
    tokens, bits = _size_of_code(quantizer, int(shards[0]["positions"]))
    return RunFigures(
        name=name,
        images=len(items),
        files=[str(file) for shard in shards for file in shard["files"]],
        values=values,
        mean={key: float(np.mean(of_images)) for key, of_images in values.items()},
        interval={key: confidence_interval(of_images) for key, of_images in values.items()},
        rfid=rfid,
        inception_score=score,
        missing=missing,
        usage=usage.compute(),
        counts=usage.counts,
        part_of_speech=usage.part_of_speech,
        tokens=tokens,
        bits=bits,
        source=_source(settings, trained),
    )


def _source(settings: Settings, trained: Trained) -> str:
    if settings.images is not None:
        return str(Path(settings.images).resolve())
    return json.dumps(to_plain(trained.config.data.params.validation), sort_keys=True)


def _of_inception(
    shards: Sequence[Mapping[str, Any]], settings: Settings
) -> Tuple[Optional[float], Optional[float], Dict[str, str]]:
    if "original_features" not in shards[0]:
        why = load_inception("cpu", settings.weights)[1]
        return None, None, {"rfid": why, "inception_score": why}
    from torch_fidelity.metric_fid import fid_features_to_statistics, fid_statistics_to_metric
    from torch_fidelity.metric_isc import isc_features_to_metric

    def joined(key: str) -> torch.Tensor:
        return torch.from_numpy(np.concatenate([shard[key] for shard in shards]))

    statistics = [fid_features_to_statistics(joined(f"{kind}_features")) for kind in ("original", "reconstruction")]
    fid = fid_statistics_to_metric(*statistics, False)["frechet_inception_distance"]
    score = isc_features_to_metric(joined("reconstruction_logits"))["inception_score_mean"]
    return float(fid), float(score), {}


def _missing(values: Mapping[str, Any], settings: Settings) -> Dict[str, str]:
    reasons = {"ms_ssim": f"images under {SMALLEST_MS_SSIM} pixels", "lpips": load_lpips("cpu", settings.weights)[1]}
    return {name: reasons[name] for name in PROTOCOLS[settings.protocol] if name not in values}


def _size_of_code(quantizer: Any, positions: int) -> Tuple[int, float]:
    """Tokens and bits of an image."""
    slices = getattr(quantizer, "slices", None)
    sizes = [s.last - s.first for s in slices for _ in range(s.topk)] if slices else [count_codes(quantizer)]
    return positions * len(sizes), positions * sum(math.log2(size) for size in sizes)


def rows(figures: Sequence[RunFigures]) -> List[Dict[str, str]]:
    """The table, as text: a row for each figure, a column for each model; means with their intervals."""
    names = [name for name in TITLES if any(name in its.mean or name in its.missing for its in figures)]
    shown: Dict[str, Any] = {"images": lambda its: f"{its.images:,}"}
    shown.update({TITLES[name]: partial(_shown, name=name) for name in names})
    shown["rFID"] = lambda its: _number(its.rfid)
    shown["inception score"] = lambda its: _number(its.inception_score)
    shown["codes in use"] = lambda its: _per_part(its, lambda u: f"{u.in_use:,} of {u.codes:,}")
    shown["perplexity"] = lambda its: _per_part(its, lambda u: f"{u.perplexity:.0f}")
    shown["dead codes"] = lambda its: _per_part(its, lambda u: f"{len(u.dead):,}")
    shown["tokens an image"] = lambda its: f"{its.tokens:,}"
    shown["bits an image"] = lambda its: f"{its.bits:,.0f}"
    return [{"": title, **{its.name: text(its) for its in figures}} for title, text in shown.items()]


def notes(figures: Sequence[RunFigures]) -> List[str]:
    """Why figures are not there, and what the brackets are."""
    titles = {**TITLES, "rfid": "rFID", "inception_score": "inception score"}
    found: Dict[str, List[str]] = {}
    for its in figures:
        for name, why in its.missing.items():
            found.setdefault(why, [])
            if titles[name] not in found[why]:
                found[why].append(titles[name])
    lines = [f"- {', '.join(names)}: {why}" for why, names in found.items()]
    if len({its.source for its in figures}) > 1:
        lines.append("- the runs have validation sets of their own, which differ; --images gives them the same")
    return [*lines, "- in brackets: the 95 % interval of the mean, by bootstrap over images"]


def _number(value: Optional[float]) -> str:
    return "-" if value is None else f"{value:.2f}"


def _shown(its: RunFigures, name: str) -> str:
    if name not in its.mean:
        return "-"
    digits, (low, high) = DIGITS[name], its.interval[name]
    text = f"{its.mean[name]:.{digits}f}"
    return f"{text} ({low:.{digits}f} to {high:.{digits}f})" if math.isfinite(low) else text


def _per_part(its: RunFigures, text: Any) -> str:
    return ", ".join(f"{text(usage)}{_of(part)}" for part, usage in its.usage.items())


def _of(part: str) -> str:
    return "" if part in ("codes", "joint") else f" {part}s"


def write(figures: Sequence[RunFigures], folder: Path) -> None:
    """``table.md``, ``figures.csv`` (one row a run), ``figures.json`` and ``images.csv`` (one row a run and image).

    What is no number, such as an interval of one image, is nan in CSV and null in JSON, which has no word for it.
    """
    folder.mkdir(parents=True, exist_ok=True)
    flat = [_flat(its) for its in figures]
    names = list(dict.fromkeys(name for its in figures for name in its.values))
    images = [_of_image(its, i, names) for its in figures for i in range(its.images)]
    for name, text in (
        ("table.md", "\n".join([format_table(rows(figures)), "", *notes(figures)]) + "\n"),
        ("figures.csv", _as_csv(flat, list(dict.fromkeys(key for row in flat for key in row)))),
        ("figures.json", json.dumps(_finite([_nested(its) for its in figures]), indent=1) + "\n"),
        ("images.csv", _as_csv(images, ["model", "image", "file", *names])),
    ):
        write_whole(folder / name, text.encode(), overwrite=True)


def _as_csv(rows: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    stream = io.StringIO(newline="")
    writer = csv.DictWriter(stream, columns)
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _finite(value: Any) -> Any:
    """The same with None for numbers that are none."""
    if isinstance(value, dict):
        return {key: _finite(of_key) for key, of_key in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _of_image(its: RunFigures, i: int, names: Sequence[str]) -> Dict[str, Any]:
    row = {"model": its.name, "image": i, "file": its.files[i] if its.files else None}
    row.update({name: its.values[name][i] for name in names if name in its.values})
    return row


def _flat(its: RunFigures) -> Dict[str, Any]:
    row: Dict[str, Any] = {"model": its.name, "images": its.images}
    for name, value in its.mean.items():
        row.update({name: value, f"{name}_low": its.interval[name][0], f"{name}_high": its.interval[name][1]})
    row.update(rfid=its.rfid, inception_score=its.inception_score, tokens=its.tokens, bits=its.bits)
    for part, usage in its.usage.items():
        row[f"codes_{part}"], row[f"in_use_{part}"] = usage.codes, usage.in_use
        row[f"perplexity_{part}"], row[f"dead_{part}"] = usage.perplexity, len(usage.dead)
    return row


def _nested(its: RunFigures) -> Dict[str, Any]:
    usage = {part: {**of_part._asdict(), "dead": len(of_part.dead)} for part, of_part in its.usage.items()}
    return {
        "model": its.name, "images": its.images, "mean": its.mean, "interval": its.interval, "rfid": its.rfid,
        "inception_score": its.inception_score, "missing": its.missing, "usage": usage, "tokens": its.tokens,
        "bits": its.bits,
    }  # fmt: skip
