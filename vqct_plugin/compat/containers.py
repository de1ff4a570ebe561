"""Values of a YAML, which come as plain Python from some hosts and in OmegaConf's containers from others."""

import sys
from typing import Any, Mapping


def to_plain(value: Any) -> Any:
    """A value of a YAML as plain Python, also where it comes in one of OmegaConf's containers."""
    omegaconf = sys.modules.get("omegaconf")
    if omegaconf is not None and omegaconf.OmegaConf.is_config(value):
        return omegaconf.OmegaConf.to_container(value, resolve=True)
    if isinstance(value, Mapping):
        return {key: to_plain(item) for key, item in value.items()}
    return value
