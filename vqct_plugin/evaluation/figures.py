"""A model's figures over a set of images: measured batch by batch, then computed from what the measures kept."""

from contextlib import nullcontext
from typing import Any, Callable, Dict, Iterable, List, Mapping, NamedTuple, Optional, Sequence, Type

import numpy as np
import torch

from vqct_plugin.evaluation.measure import Conditions, Figure, Measure
from vqct_plugin.evaluation.measures import MEASURES
from vqct_plugin.evaluation.rates import measure_rate
from vqct_plugin.evaluation.resampling import bootstrap_intervals, group_places
from vqct_plugin.evaluation.weights import check_weights
from vqct_plugin.runs.usage import make_counter
from vqct_plugin.usage import PartUsage

__all__ = ["evaluate", "RunFigures"]

#: name -> array: what was measured of some images; several of them are one evaluation
Shard = Mapping[str, np.ndarray]


class RunFigures(NamedTuple):
    """A model's figures.

    Attributes:
        name: of the run.
        images: how many were evaluated.
        files: of each image, as its data set names it; empty where that does not.
        values: for each figure of single images (``psnr``, ``ssim``, ...), one value an image.
        mean, interval: of each of them, the mean and the 95% interval of the bootstrap over photographs: images with
            one name in ``files`` are pieces of one.
        of_set: each figure of the whole set (``rfid``, ``inception_score``), a number.
        missing: figure -> why it is missing.
        shown: every figure, computed or missing, and how tables show it.
        usage: of each part of the codebook, over the whole set.
        counts, part_of_speech: (n_e,) how often each code was chosen, and its part, an index into the keys of
            ``usage``.
        tokens, bits: of one image; bits as codes of each part written with equal lengths.
        source: where the images are from, to tell whether runs were evaluated on the same.
        positions, entropy: of one image, see :class:`vqct_plugin.evaluation.rates.Rate`.
        photographs: how many files the images are of; as many as images where the data set names no file.
        broken: file -> why it could not be read, of the images that were left out.
    """

    name: str
    images: int
    files: List[str]
    values: Dict[str, List[float]]
    mean: Dict[str, float]
    interval: Dict[str, List[float]]
    of_set: Dict[str, float]
    missing: Dict[str, str]
    shown: Dict[str, Figure]
    usage: Dict[str, PartUsage]
    counts: torch.Tensor
    part_of_speech: torch.Tensor
    tokens: int
    bits: float
    source: str
    positions: int
    entropy: float
    photographs: int
    broken: Dict[str, str]


def evaluate(
    model: Any,
    batches: Iterable[Dict[str, Any]],
    device: Optional[torch.device] = None,
    measures: Optional[Mapping[str, Type[Measure]]] = None,
    protocol: str = "plain",
    weights: Optional[str] = None,
    name: str = "",
) -> RunFigures:
    """The figures of a model over batches as a taming data set gives them, values in [-1, 1].

    Args:
        model: a taming ``VQModel``, stock or ours.
        batches: mappings whose ``model.image_key`` is (B, H, W, C).
        device: where to compute; the model's own by default.
        measures: by default those of single images: PSNR, SSIM, ...
        protocol, weights: see :class:`~vqct_plugin.evaluation.measure.Conditions`.
        name: of the model, for tables.
    """
    check_weights(weights)
    device = device or next(model.parameters()).device
    classes = {"images": MEASURES["images"]} if measures is None else measures
    was_training = model.training
    model.eval()
    try:
        shard = measure_batches(model, batches, classes, Conditions(protocol, weights, device))
    finally:
        model.train(was_training)
    return compute_figures(name, model.quantize, [shard], classes, Conditions(protocol, weights))


@torch.no_grad()
def measure_batches(
    model: Any,
    batches: Iterable[Dict[str, Any]],
    measures: Mapping[str, Type[Measure]],
    conditions: Conditions,
    precision: Optional[torch.dtype] = None,
    advance: Callable[[int], Any] = lambda images: None,
) -> Shard:
    """Reconstruct images and measure them.

    Args:
        model: in evaluation mode, on the device of ``conditions``.
        batches: as for :func:`evaluate`.
        measures: name -> class.
        conditions: of all measures.
        precision: autocast to it; None for float32.
        advance: called with the number of images of each batch.
    """
    every = {name: cls(conditions) for name, cls in measures.items()}
    usage = make_counter(model.quantize)
    files: List[str] = []
    images = positions = 0
    device = torch.device(conditions.device)
    for batch in batches:
        x = model.get_input(batch, model.image_key).to(device)
        with torch.autocast(device.type, dtype=precision) if precision is not None else nullcontext():
            quantized, _, (_, _, indices) = model.encode(x)
            reconstruction = model.decode(quantized).float()
        usage.update(indices)
        files.extend(batch.get("file_path_", []))
        positions = quantized.shape[2] * quantized.shape[3]
        for measure in every.values():
            measure.update(x, reconstruction)
        images += len(x)
        advance(len(x))
    found = {f"{name}.{row}": its.gather(row) for name, its in every.items() for row in its.rows}
    found["counts"] = usage.counts.cpu().numpy()
    found["files"] = np.asarray(files, dtype=str)
    found["images"], found["positions"] = np.asarray(images), np.asarray(positions)
    return found


def compute_figures(
    name: str,
    quantizer: Any,
    shards: Sequence[Shard],
    measures: Mapping[str, Type[Measure]],
    conditions: Conditions,
    source: str = "",
) -> RunFigures:
    """The figures of all images, from what :func:`measure_batches` found of each part of them.

    A shard may also hold ``broken``, (n, 2) texts: the files that could not be read, and why.
    """
    images = sum(int(shard["images"]) for shard in shards)
    if not images:
        raise ValueError("there is no batch to evaluate; the data set is empty")
    usage = make_counter(quantizer)
    usage.counts = torch.from_numpy(sum(shard["counts"] for shard in shards))
    values: Dict[str, List[float]] = {}
    of_set: Dict[str, float] = {}
    missing: Dict[str, str] = {}
    shown: Dict[str, Figure] = {}
    for key, cls in measures.items():
        measure = cls(conditions)
        for shard in shards:
            for row, rows in shard.items():
                if row.startswith(f"{key}."):
                    measure.keep(row[len(key) + 1 :], rows)
        shown.update(measure.figures)
        found = measure.compute()
        for figure, how in measure.figures.items():
            if figure not in found:
                missing[figure] = measure.explain(figure)
            elif how.of_set:
                of_set[figure] = float(found[figure])
            else:
                values[figure] = np.asarray(found[figure]).tolist()
    rate = measure_rate(quantizer, max(int(shard["positions"]) for shard in shards), usage.counts)
    files = [str(file) for shard in shards for file in shard["files"]]
    return RunFigures(
        name=name,
        images=images,
        files=files,
        values=values,
        mean={figure: float(np.mean(of_images)) for figure, of_images in values.items()},
        interval=bootstrap_intervals(values, files),
        of_set=of_set,
        missing=missing,
        shown=shown,
        usage=usage.compute(),
        counts=usage.counts,
        part_of_speech=usage.part_of_speech,
        tokens=rate.tokens,
        bits=rate.bits,
        source=source,
        positions=rate.positions,
        entropy=rate.entropy,
        photographs=len(set(group_places(files, images).tolist())),
        broken={str(file): str(why) for shard in shards for file, why in shard.get("broken", ())},
    )
