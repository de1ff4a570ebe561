"""Images drawn from a trained stage 2."""

import math
import time
from pathlib import Path
from typing import Any, Iterator, List, NamedTuple, Optional, Sequence, Tuple, Union

import numpy as np
import torch
from torch import Tensor

from vqct_plugin.stage_2.layout import get_layout
from vqct_plugin.stage_2.sampling import check_request, sample_tokens

__all__ = ["draw_samples", "Samples", "SampleError"]


class SampleError(ValueError):
    """Samples cannot be drawn as asked; nothing was written."""


class Samples(NamedTuple):
    """What :func:`draw_samples` wrote: the images' files, the grid, and the seconds that drawing tokens took."""

    files: List[Path]
    grid: Optional[Path]
    seconds: float


@torch.no_grad()
def draw_samples(
    model: Any,
    output: Union[str, Path],
    number: int = 16,
    *,
    batch_size: int = 8,
    size: Optional[Sequence[int]] = None,
    temperature: float = 1.0,
    top_k: Optional[int] = None,
    top_p: Optional[float] = None,
    seed: int = 23,
    classes: Sequence[int] = (),
    conditions: Optional[Sequence[Any]] = None,
    grid: bool = True,
    progress: bool = True,
) -> Samples:
    """Draw images from a stage 2, taming's own or ours, and write them as PNG files.

    Args:
        model: a stage 2 (:func:`vqct_plugin.load_run` gives one), on the device to draw on.
        output: a folder, new or empty; ``000000.png`` and so on, and ``grid.png``.
        number: how many images; of each class, with ``classes``; of each item, with ``conditions``.
        batch_size: how many at once. It changes no image but by rounding: each has random numbers of its own.
        size: (height, width) of the images in pixels; by default the first stage's resolution.
        temperature, top_k, top_p: see :func:`vqct_plugin.stage_2.sampling.sample_tokens`.
        seed: the same seed and model give the same images.
        classes: for a class-conditional model, the classes.
        conditions: for a model conditioned on pictures, items of a data set.
        grid: whether to write the grid too.
        progress: whether to show a bar, one step for each token position.

    Raises:
        SampleError: the folder has something in it, or the model wants a conditioning that was not given.
    """
    from PIL import Image
    from tqdm import tqdm

    output = Path(output)
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise SampleError(f"output {output} exists and is not an empty folder; choose another")
    if number < 1 or batch_size < 1:
        raise SampleError(f"number is {number} and batch_size is {batch_size}; expected 1 or more of each")
    wanted = list(_list_conditions(model, number, classes, conditions))
    height, width = _compute_map_size(model, size)
    check_request(model, wanted[0].shape[1], height * width, temperature, top_k, top_p)
    images: List[np.ndarray] = []
    steps = -(-len(wanted) // batch_size) * get_layout(model).count_elements(height * width)
    seconds = 0.0
    with tqdm(total=steps, unit="step", disable=not progress, desc="sampling") as bar:
        for start in range(0, len(wanted), batch_size):
            c = torch.cat([item.to(model.device) for item in wanted[start : start + batch_size]])
            began = time.perf_counter()
            tokens = _draw(model, c, height * width, (temperature, top_k, top_p), seed, start, bar)
            seconds += time.perf_counter() - began
            images += list(_decode(model, tokens, height, width))
    output.mkdir(parents=True, exist_ok=True)
    files = [output / f"{i:06}.png" for i in range(len(images))]
    for file, image in zip(files, images):
        Image.fromarray(image).save(file)
    together = output / "grid.png" if grid else None
    if together is not None:
        Image.fromarray(_make_grid(images)).save(together)
    return Samples(files, together, seconds)


def _draw(model: Any, c: Tensor, positions: int, how: Tuple[Any, ...], seed: int, first: int, bar: Any) -> Tensor:
    """The tokens of one batch, image i of all by the random numbers of ``seed`` and i."""
    generators = []
    for i in range(first, first + len(c)):
        generators.append(torch.Generator(device=c.device))
        generators[-1].manual_seed(seed * 1_000_003 + i)
    return sample_tokens(model, c, positions, *how, generator=generators, callback=lambda k: bar.update(1))


def _list_conditions(
    model: Any, number: int, classes: Sequence[int], conditions: Optional[Sequence[Any]]
) -> Iterator[Tensor]:
    """(1, C) conditioning tokens of each image."""
    labels = getattr(model.cond_stage_model, "n_classes", None)
    if model.be_unconditional:
        if classes or conditions is not None:
            raise SampleError("the model is unconditional; leave classes and conditions out")
        for _ in range(number):
            yield torch.full((1, 1), int(model.sos_token), dtype=torch.long)
    elif labels is not None:
        wrong = [label for label in classes if not 0 <= label < labels]
        if wrong or not classes:
            given = f"class {wrong[0]} was asked for" if wrong else "no class was given"
            raise SampleError(f"{given}; expected some of the model's classes, 0 to {labels - 1}")
        for label in classes:
            for _ in range(number):
                yield torch.full((1, 1), label, dtype=torch.long)
    elif conditions is None:
        raise SampleError(
            f"the model is conditioned on {model.cond_stage_key!r}; pass conditions=ITEMS of a data set that have it"
        )
    else:
        for item in conditions:
            batch = {key: torch.as_tensor(np.asarray(item[key]))[None] for key in (model.cond_stage_key,)}
            condition = model.get_input(model.cond_stage_key, batch).to(model.device)
            _, tokens = model.encode_to_c(condition.float())
            for _ in range(number):
                yield tokens.reshape(1, -1)


def _compute_map_size(model: Any, size: Optional[Sequence[int]]) -> Tuple[int, int]:
    encoder = model.first_stage_model.encoder
    factor = 2 ** (encoder.num_resolutions - 1)
    height, width = size if size is not None else (encoder.resolution, encoder.resolution)
    if height % factor or width % factor or height < factor or width < factor:
        raise SampleError(f"images of {height} x {width}; expected multiples of {factor}, the first stage's factor")
    return height // factor, width // factor


def _decode(model: Any, tokens: Tensor, height: int, width: int) -> np.ndarray:
    """(B, H, W, 3) uint8 of tokens (B, T, height * width)."""
    channels = model.first_stage_model.post_quant_conv.in_channels
    decoded = model.decode_to_img(get_layout(model).join(tokens), (len(tokens), channels, height, width))
    pixels = ((decoded.float().clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
    array: np.ndarray = pixels.permute(0, 2, 3, 1).cpu().numpy()
    return array


def _make_grid(images: Sequence[np.ndarray], gap: int = 2) -> np.ndarray:
    """The images in rows, about as many rows as columns, on white."""
    columns = math.ceil(math.sqrt(len(images)))
    height, width, channels = images[0].shape
    rows = -(-len(images) // columns)
    canvas = np.full((rows * (height + gap) - gap, columns * (width + gap) - gap, channels), 255, dtype=np.uint8)
    for i, image in enumerate(images):
        top, left = i // columns * (height + gap), i % columns * (width + gap)
        canvas[top : top + height, left : left + width] = image
    return canvas
