"""``from_pretrained``, ``save_pretrained`` and ``push_to_hub``, which a prior and a quantizer have.

The core knows no hub. What does the work is one function away: the package's door, ``vqct_plugin/__init__.py``, sets
:data:`open_wing`.
"""

import re
from typing import Any, Callable, Optional, Sequence, Tuple, Type, TypeVar

Self = TypeVar("Self", bound="Pretrained")

_NAME = re.compile(r"(?P<repo>[A-Za-z0-9][\w.-]*/[A-Za-z0-9_][\w.-]*)(?:@(?P<revision>[^\s@]+))?", re.ASCII)
#: what files are called, and names on the hub are not
_OF_FILES = (".safetensors", ".pkl", ".ckpt", ".pt", ".npy", ".npz", ".json", ".yaml", ".yml", ".txt")


def _closed() -> Any:
    raise ImportError("import vqct_plugin first: it opens what reads and writes folders and the hub")


#: gives the module that reads and writes; set by ``vqct_plugin/__init__.py``
open_wing: Callable[[], Any] = _closed


def split_name(name: Any) -> Optional[Tuple[str, Optional[str]]]:
    """The parts of a name on the hub, ``user/name`` or ``user/name@revision``; None for what can be none, such as most
    paths of files.

    >>> split_name("user/words@v2")
    ('user/words', 'v2')
    >>> split_name("words/flowers.safetensors")
    """
    found = _NAME.fullmatch(name) if isinstance(name, str) else None
    if found is None or found.group("repo").endswith(_OF_FILES):
        return None
    return found.group("repo"), found.group("revision")


class Pretrained:
    """What is kept in a folder, or by its name on the Hugging Face hub: data in safetensors, config in JSON, a card."""

    @classmethod
    def from_pretrained(
        cls: Type[Self],
        name: Any,
        revision: Optional[str] = None,
        cache_dir: Any = None,
        token: Any = None,
        local_files_only: bool = False,
        trusted: Sequence[str] = (),
        **options: Any,
    ) -> Self:
        """What :meth:`save_pretrained` wrote to a folder, or :meth:`push_to_hub` to the hub.

        Args:
            name: a folder, or a prior's file; or, where there is none, ``user/name`` on the hub, also
                ``user/name@revision``.
            revision: a branch, tag or commit on the hub; by default ``main``.
            cache_dir: where downloads are kept; by default the hub's own cache.
            token: of the hub, for what is private; by default the one of its log-in.
            local_files_only: True takes what is in the cache, and asks nobody.
            trusted: packages, beside ``vqct_plugin``, whose functions and classes a quantizer's config may name
                (``transfer``, ``gradient``, ``loss_terms``): they are imported and run.
            options: arguments of a quantizer that override those of its config; a prior has none.

        Raises:
            PriorError, vqct_plugin.compat.hub.HubError: it is not there, cannot be fetched, or is something else. Both
                are a ValueError.
        """
        where = {"revision": revision, "cache_dir": cache_dir, "token": token, "local_files_only": local_files_only}
        loaded: Self = open_wing().load(cls, name, where, trusted, options)
        return loaded

    def save_pretrained(self, folder: Any, overwrite: bool = False) -> None:
        """Write a folder for :meth:`from_pretrained`: safetensors, ``config.json``, and ``README.md``, the card.

        Args:
            folder: made where it is not there.
            overwrite: replace the files that are there. A card is never replaced: it is yours to edit.

        Raises:
            vqct_plugin.compat.hub.HubError: files are there, or cannot be written.
        """
        open_wing().save(self, folder, overwrite)

    def push_to_hub(
        self,
        repo_id: str,
        private: Optional[bool] = None,
        token: Any = None,
        revision: Optional[str] = None,
        message: Optional[str] = None,
        card: Optional[str] = None,
    ) -> str:
        """Put it on the hub, in one commit, whose address is returned. The repository is made where it is not there.

        Args:
            repo_id: ``user/name``.
            private: of a repository that is made; by default as the user's or the organization's settings have it.
            token: one that may write; by default the one of the hub's log-in.
            revision: a branch that is there; by default ``main``.
            message: of the commit.
            card: the text of ``README.md``. Without it one is written, and only where the repository has none.

        Raises:
            vqct_plugin.compat.hub.HubError: it could not be put there.
        """
        where = {"private": private, "token": token, "revision": revision, "message": message}
        address: str = open_wing().push(self, repo_id, card, where)
        return address
