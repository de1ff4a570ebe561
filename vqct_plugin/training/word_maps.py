"""Word maps of the same few images while a model trains: what its codes say of them, and how that changes."""

import logging
import textwrap
from pathlib import Path
from typing import Any, List, Optional, Sequence, Tuple

import numpy as np
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor
from torch.utils.data.dataloader import default_collate

from vqct_plugin._drawing import color_places, format_colors
from vqct_plugin.runs.config import ConfigError
from vqct_plugin.runs.words import color_codes, list_words
from vqct_plugin.training.callbacks import keep_state
from vqct_plugin.training.loggers import show_picture

__all__ = ["WordMapLogger"]

_log = logging.getLogger(__name__)
CELL = 48  # pixels of a map's side for one position
_LETTERS = 9  # in a line of a cell
_SIZE = 9  # of these letters, in pixels
_HEAD = 16  # pixels above a row of pictures


class WordMapLogger(Callback):
    """Word maps of the same images of the validation set, as they change: a PNG file in ``images/words`` each time.

    A row for each image: the image, its reconstruction, and for each of its tokens a map with the word of every
    position. A word keeps its color for the whole training: words with like vectors have like colors. A stock
    quantizer's codes are shown by their numbers. The files are also sent to the loggers that take pictures.

    It is drawn when training begins and every ``every_n_batches`` steps, and changes nothing of training: neither modes
    of modules nor random numbers. A model without a codebook, or data without a validation set, is left alone.

    Args:
        every_n_batches: of training; those that make one step count as one.
        images: how many, evenly spaced in the validation set.
        folder: where ``images/words`` goes; the run's own by default.
    """

    def __init__(self, every_n_batches: int = 500, images: int = 4, folder: Optional[Path] = None) -> None:
        for name, value in (("every_n_batches", every_n_batches), ("images", images)):
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ConfigError(f"{name} is {value!r}; expected an integer of 1 or more")
        self.every_n_batches, self.images, self.folder = every_n_batches, images, folder
        self._batch: Any = None
        self._colors: List[str] = []
        self._drawn = -1

    def on_train_start(self, trainer: Any, pl_module: Any) -> None:
        items = _find_validation_set(trainer)
        quantizer = getattr(pl_module, "quantize", None)
        if not trainer.is_global_zero or not isinstance(quantizer, torch.nn.Module):
            return
        if items is None or not len(items):
            _log.warning("there are no word maps: the data has no validation set to take images from")
            return
        number = min(self.images, len(items))
        with keep_state(pl_module):  # a data set may draw random numbers
            self._batch = default_collate([items[i * len(items) // number] for i in range(number)])
        self._colors = _choose_colors(quantizer)
        self._draw(trainer, pl_module)

    def on_train_batch_end(self, trainer: Any, pl_module: Any, outputs: Any, batch: Any, batch_idx: int) -> None:
        if self._batch is not None and trainer.global_step % self.every_n_batches == 0:
            self._draw(trainer, pl_module)

    def _draw(self, trainer: Any, pl_module: Any) -> None:
        if trainer.global_step == self._drawn:  # batches that are accumulated
            return
        self._drawn = trainer.global_step
        pictures, codes = _encode(pl_module, self._batch)
        words, parts, part_of_speech = list_words(pl_module.quantize)
        names = [parts[part_of_speech[int(token[0, 0])]] for token in codes[0]]
        drawn = draw_word_maps(pictures, codes, names, words, self._colors)
        folder = (self.folder or Path(trainer.default_root_dir)) / "images" / "words"
        show_picture(trainer, "words/maps", drawn, folder / f"maps_gs-{trainer.global_step:06}.png")


def _find_validation_set(trainer: Any) -> Any:
    """The data set that validation runs over, or None."""
    sets = getattr(getattr(trainer, "datamodule", None), "datasets", None) or {}
    if "validation" in sets:
        return sets["validation"]
    return getattr(trainer.val_dataloaders, "dataset", None)


def _choose_colors(quantizer: Any) -> List[str]:
    """A color for each code, the same in all of a training: by the vector of its word, or by its number alone."""
    words, _, part_of_speech = list_words(quantizer)
    prior = getattr(quantizer, "prior", None)
    if prior is None:
        return format_colors(color_places(np.random.default_rng(0).random((len(words), 2))))
    return color_codes(prior.vectors.astype(np.float32), part_of_speech)


@torch.no_grad()
def _encode(model: Any, batch: Any) -> Tuple[List[Tuple[str, Tensor]], Tensor]:
    """What the model's ``log_images`` shows of a batch, by name, and the codes (N, T, h, w) that it chose."""
    chosen: List[Tensor] = []

    def keep(module: Any, inputs: Any, outputs: Any) -> None:
        quantized, indices = outputs[0], outputs[2][2]
        chosen.append(indices.reshape(quantized.shape[0], -1, *quantized.shape[-2:]).cpu())

    hook = model.quantize.register_forward_hook(keep)
    try:
        with keep_state(model):
            found = model.log_images(batch, split="val", pl_module=model)
    finally:
        hook.remove()
    shown = [(name, found[name].detach().float().cpu()) for name in ("inputs", "reconstructions") if name in found]
    return shown, chosen[-1]


def draw_word_maps(
    pictures: Sequence[Tuple[str, Tensor]],
    codes: Tensor,
    names: Sequence[str],
    words: Sequence[str],
    colors: Sequence[str],
) -> np.ndarray:
    """(height, width, 3) uint8: a row for each image, its pictures first, then a map for each of its tokens.

    Args:
        pictures: (name, (N, 3, H, W) in [-1, 1]), of the columns before the maps.
        codes: (N, T, h, w) indices into the codebook.
        names: of the T maps.
        words, colors: of each code.
    """
    from PIL import Image, ImageDraw, ImageFont

    try:
        font: Any = ImageFont.load_default(_SIZE)
    except TypeError:  # Pillow before 10.1 has one size
        font = ImageFont.load_default()
    number, tokens, rows, columns = codes.shape
    width, height = columns * CELL, rows * CELL
    titles = [*(name for name, _ in pictures), *names]
    whole = Image.new("RGB", (len(titles) * (width + 4) - 4, number * (height + _HEAD)), "white")
    draw = ImageDraw.Draw(whole)
    for n in range(number):
        top = n * (height + _HEAD)
        for column, title in enumerate(titles):
            draw.text((column * (width + 4) + 2, top + 2), title, fill="black", font=font)
        for column, (_, images) in enumerate(pictures):
            pixels = ((images[n].clamp(-1, 1) + 1) * 127.5).round().byte().permute(1, 2, 0).numpy()
            picture = Image.fromarray(pixels).resize((width, height), Image.NEAREST)
            whole.paste(picture, (column * (width + 4), top + _HEAD))
        for t in range(tokens):
            left = (len(pictures) + t) * (width + 4)
            for (r, c), code in np.ndenumerate(codes[n, t].numpy()):
                x, y, color = left + c * CELL, top + _HEAD + r * CELL, colors[code]
                draw.rectangle((x, y, x + CELL - 1, y + CELL - 1), fill=color)
                text = "\n".join(textwrap.wrap(words[code].replace("code ", ""), _LETTERS)[:3])
                draw.multiline_text((x + 2, y + 3), text, fill=_choose_ink(color), font=font, spacing=1)
    return np.asarray(whole)


def _choose_ink(color: str) -> str:
    """Black or white, whichever can be read on this color."""
    red, green, blue = (int(color[i : i + 2], 16) for i in (1, 3, 5))
    return "black" if 0.299 * red + 0.587 * green + 0.114 * blue > 140 else "white"
