"""From a language model's hidden states to one vector of a text, as the model's makers say."""

import json
from typing import Any, Callable, Dict, List, Optional, Tuple

from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.language_model import LanguageModel


def _average_weighted_by_position(states: Any) -> Any:
    import torch

    weights = torch.arange(1, states.shape[1] + 1, dtype=states.dtype, device=states.device)
    return (states * (weights / weights.sum())[None, :, None]).sum(1)


#: sentence-transformers' name -> what it is called here, and the function: states (B, L, d) -> (B, d), no padding
POOLINGS: Dict[str, Tuple[str, Callable[[Any], Any]]] = {
    "cls": ("first token", lambda states: states[:, 0]),
    "max": ("maximum over tokens", lambda states: states.max(1).values),
    "mean": ("mean over tokens", lambda states: states.mean(1)),
    "mean_sqrt_len_tokens": ("sum over tokens by the root of their number", lambda s: s.sum(1) / s.shape[1] ** 0.5),
    "weightedmean": ("mean over tokens, the later the heavier", _average_weighted_by_position),
    "lasttoken": ("last token", lambda states: states[:, -1]),
}
_OLD_KEYS = {
    "pooling_mode_cls_token": "cls",
    "pooling_mode_max_tokens": "max",
    "pooling_mode_mean_tokens": "mean",
    "pooling_mode_mean_sqrt_len_tokens": "mean_sqrt_len_tokens",
    "pooling_mode_weightedmean_tokens": "weightedmean",
    "pooling_mode_lasttoken": "lasttoken",
}
POOLING_FILE = "1_Pooling/config.json"


def pool(states: Any, names: List[str]) -> Any:
    """States (B, L, d) -> (B, d times the number of names), one after the other."""
    import torch

    return torch.cat([POOLINGS[name][1](states) for name in names], dim=1)


def check_pooling(pooling: str) -> str:
    """The same name; raises BuildError for what is none."""
    if pooling not in POOLINGS:
        raise BuildError(f"pooling is {pooling!r}; expected one of {', '.join(POOLINGS)}")
    return pooling


def read_pooling(language_model: LanguageModel) -> List[str]:
    """The names of a model's own pooling, from sentence-transformers' file; none where it has no such file.

    Raises:
        BuildError: the file says something that is not known here, or it cannot be told whether there is one.
    """
    path = language_model.file(POOLING_FILE)
    if path is None:
        if not language_model.lacks(POOLING_FILE):
            raise BuildError(
                f"how {language_model.name!r} is pooled cannot be told: its {POOLING_FILE} is not in the cache, and "
                "the hub was not reached, so it may have one or none. Get all of its files where there is a network "
                "(hf download NAME --local-dir FOLDER) and pass plm=FOLDER, or say how it is pooled, as its makers do: "
                f"pooling is one of {', '.join(POOLINGS)}"
            )
        return []
    try:
        config = json.loads(path.read_text(encoding="utf-8"))
        said = config.get("pooling_mode")
        if said is None:
            names = [name for key, name in _OLD_KEYS.items() if config.get(key)]
        else:
            names = list(said) if isinstance(said, (list, tuple)) else str(said).split("+")
    except (OSError, ValueError, AttributeError) as error:
        raise BuildError(f"{POOLING_FILE} of {language_model.name!r} cannot be read: {error}") from error
    unknown = [name for name in names if name not in POOLINGS]
    if unknown or not names:
        raise BuildError(
            f"{POOLING_FILE} of {language_model.name!r} says {', '.join(map(repr, unknown)) or 'nothing'}; expected "
            f"some of {', '.join(POOLINGS)}"
        )
    return names


def choose_device(device: Optional[str]) -> Any:
    """The device of this name; a GPU where there is one, if none is named.

    Raises:
        BuildError: there is no such device.
    """
    import torch

    if device is None:
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.zeros(1, device=chosen).cpu()
    except Exception as error:  # each kind of device fails in its own way
        why = (str(error).strip().splitlines() or [""])[0]
        raise BuildError(f"device is {device!r}, which cannot be used: {why}; expected cpu, cuda or cuda:1") from error
    return chosen
