"""What a quantizer's state holds beside its weights: the prior it was made from, and its settings.

A checkpoint so stands alone: the codebook's words, their vectors and their graph are in it, once and as they are, and
the quantizer can be built again where the prior file is gone. Format, version 1, below the quantizer's own prefix:

| key | what |
|---|---|
| ``prior.header`` | uint8, JSON: the header of a prior file (format, version, words, parts, provenance, fingerprint) |
| ``prior.vectors``, ``.part_of_speech``, ``.count``, ``.edges``, ``.edge_count`` | the arrays of a prior file |
| ``settings`` | uint8, JSON: the arguments of the quantizer |

Earlier checkpoints had ``prior_identity`` and the graph's own tensors instead; they are read too.
"""

import json
from typing import Any, Dict, List, Mapping, Optional

import numpy as np
import torch
from torch import Tensor

from vqct_plugin.prior import CodebookPrior, PriorError
from vqct_plugin.terms import was_given

__all__ = ["read_prior"]

ARRAYS = ("vectors", "part_of_speech", "count", "edges", "edge_count")
#: settings that make another codebook, or another meaning of its indices, out of the same weights
_DECIDING = ("parts_of_speech", "topk", "transfer", "edge_weight", "l2_normalize", "combine")
#: options whose default was another once, and that default
CHANGED = {"transfer": "graph", "combine": "concat"}
#: what a state of an earlier version does not say, since there was nothing else
_BEFORE = {"combine": "concat"}
#: keys as they were written then, hence the spelling
_EARLIER = ("transfer.propagated", "transfer.neighbours", "transfer.offsets", "transfer.weights", "transfer.vectors")


class QuantizerState:
    """The constant part of a quantizer's state, made once. Copies of the quantizer share it: it never changes."""

    def __init__(self, prior: CodebookPrior, settings: Mapping[str, Any]) -> None:
        self.fingerprint = prior.fingerprint
        self.description = prior.describe()
        self.settings = dict(settings)
        self.tensors = {f"prior.{name}": _tensor_of(array) for name, array in prior.to_arrays().items()}
        self.tensors["prior.header"] = _text(json.dumps(prior.header(), sort_keys=True))
        self.tensors["settings"] = _text(json.dumps(self.settings, sort_keys=True))

    def __deepcopy__(self, memo: Any) -> "QuantizerState":
        return self

    def save(self, destination: Any, prefix: str) -> None:
        """Put the tensors into a state dict: copies, since averages of state dicts write into what they find there."""
        for name, tensor in self.tensors.items():
            destination[prefix + name] = tensor.clone()

    def take_from(self, state: Any, prefix: str) -> List[str]:
        """Take these keys out of a state dict that is being loaded, and check that they say the same.

        Returns:
            The keys that are missing.

        Raises:
            PriorError: the state is of a codebook from another prior, or with other settings; both are named.
        """
        theirs = {name: state.pop(prefix + name, None) for name in self.tensors}
        earlier = {name: state.pop(prefix + name, None) for name in (*_EARLIER, "prior_identity")}
        if theirs["prior.header"] is None and earlier["prior_identity"] is not None:
            self._compare(_identity(earlier["prior_identity"]))
            return []
        if theirs["prior.header"] is not None:
            header = _json(theirs["prior.header"], "prior.header")
            self._compare({"fingerprint": str(header.get("fingerprint")), "description": _description(header)})
            for name in ARRAYS:
                there, here = theirs[f"prior.{name}"], self.tensors[f"prior.{name}"]
                if there is not None and not _same_values(there, here):
                    raise PriorError(
                        f"prior.{name} in the checkpoint is damaged: its header matches this quantizer's prior, "
                        "but its values differ. This happens when whole state dicts are "
                        "averaged; average only the parameters"
                    )
        if theirs["settings"] is not None:
            self._compare_settings({**_BEFORE, **_json(theirs["settings"], "settings")}, prefix)
        return [prefix + name for name, value in theirs.items() if value is None]

    def _compare(self, theirs: Mapping[str, str]) -> None:
        if theirs["fingerprint"] != self.fingerprint:
            raise PriorError(
                f"the checkpoint's codebook was made from another prior: {theirs['description']}; this quantizer "
                f"has {self.description}. Build it with the prior, n_e and parts_of_speech of the checkpoint"
            )

    def _compare_settings(self, theirs: Mapping[str, Any], prefix: str) -> None:
        for name in _DECIDING:
            if name not in theirs or theirs[name] == self.settings[name]:
                continue
            # nobody can say of an object whether it is the same
            if not was_given(theirs[name]) and not was_given(self.settings[name]):
                raise PriorError(
                    f"the checkpoint's codebook has {name}={theirs[name]!r}, this quantizer {self.settings[name]!r}: "
                    f"the weights are not compatible. Build it with {name}={theirs[name]!r}; or, to go on from "
                    f"these weights all the same, leave {prefix}settings out (ignore_keys)"
                )


def read_settings(state: Mapping[str, Any], prefix: str = "") -> Dict[str, Any]:
    """The arguments of the quantizer whose state is under ``prefix``; empty for one that an earlier version wrote."""
    text = state.get(f"{prefix}settings")
    return {} if text is None else {**_BEFORE, **_json(text, "settings")}


def read_prior(state: Mapping[str, Any], prefix: str = "") -> Optional[CodebookPrior]:
    """The prior that a state dict holds under ``prefix``, as ``"quantize."`` of a VQGAN's; None where it holds none.

    Raises:
        PriorError: the state holds one that is damaged.
    """
    if f"{prefix}prior.header" not in state:
        return None
    missing = [name for name in ARRAYS if f"{prefix}prior.{name}" not in state]
    if missing:
        raise PriorError(f"the state has {prefix}prior.header, but no {prefix}prior.{missing[0]}: it is not complete")
    header = _json(state[f"{prefix}prior.header"], "prior.header")
    tensors = {name: state[f"{prefix}prior.{name}"].detach().cpu() for name in ARRAYS}
    dtype = tensors["vectors"].dtype
    if dtype not in (torch.float16, torch.float32):
        tensors["vectors"] = tensors["vectors"].float()
    try:
        return CodebookPrior.from_header(header, {name: tensor.numpy() for name, tensor in tensors.items()})
    except PriorError as error:
        raise PriorError(
            f"{prefix}prior in the state: {error}. Its vectors are {dtype}: where a state's floating point was cast as "
            "a whole, the prior's own values are gone; build the quantizer with its prior file, and load the state "
            "into it"
        ) from error


def _same_values(there: Tensor, here: Tensor) -> bool:
    """Whether a checkpoint has our values, or what became of them when its floating point was cast as a whole."""
    there = there.detach().cpu()
    if there.is_floating_point() and here.is_floating_point():
        here = here.to(there.dtype)
    return there.shape == here.shape and there.dtype == here.dtype and torch.equal(there, here)


def _tensor_of(array: np.ndarray) -> Tensor:
    """A tensor over the memory of a read-only array, without a copy where the array owns it."""
    writable = array.flags.writeable
    try:
        array.setflags(write=True)
    except ValueError:
        return torch.from_numpy(array.copy())
    try:
        return torch.from_numpy(array)
    finally:
        array.setflags(write=writable)


def _text(text: str) -> Tensor:
    return torch.from_numpy(np.frombuffer(text.encode(), dtype=np.uint8).copy())


def _json(tensor: Any, name: str) -> Dict[str, Any]:
    try:
        read = json.loads(bytes(tensor.detach().cpu().numpy().astype(np.uint8)).decode())
        if not isinstance(read, dict):
            raise ValueError("it is not a mapping")
        return read
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise PriorError(f"{name} in the checkpoint is damaged: {error}") from error


def _description(header: Mapping[str, Any]) -> str:
    parts, words = header.get("parts", []), header.get("words", [])
    model = (header.get("provenance") or {}).get("language_model", "an unnamed language model")
    named, fingerprint = ", ".join(map(str, parts)), str(header.get("fingerprint"))[:12]
    return f"{len(words):,} words of {named}, vectors of {model}, {fingerprint}"


def _identity(identity: Any) -> Dict[str, str]:
    try:
        read = json.loads(bytes(identity.detach().cpu().to(torch.uint8).tolist()).decode())
        return {"fingerprint": str(read["fingerprint"]), "description": str(read["description"])}
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise PriorError(f"the checkpoint does not say which prior its codebook was made from: {error}") from error
