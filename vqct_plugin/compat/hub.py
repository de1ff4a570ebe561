"""The Hugging Face hub: files from it and to it, by ``huggingface_hub``, with its many errors in our words.

``huggingface_hub`` is imported when a name has to be looked up, and never before (``pip install 'vqct-plugin[hub]'``).
"""

import importlib
from contextlib import contextmanager
from pathlib import Path
from typing import Any, Iterator, Mapping, NamedTuple, Optional, Tuple

from vqct_plugin._files import printable
from vqct_plugin._version import __version__
from vqct_plugin.pretrained import split_name

__all__ = ["HubError"]

CARD, CONFIG, WEIGHTS = "README.md", "config.json", "model.safetensors"


class HubError(ValueError):
    """Something cannot be had from a folder or the hub, or put there. The message says what arrived, and what to do."""


class NoSuchFileError(HubError):
    """A repository is there, and has no such file."""


class Repository(NamedTuple):
    """A name on the hub, and how it is asked for; :meth:`of` makes it."""

    repo_id: str
    revision: Optional[str] = None
    cache_dir: Any = None
    token: Any = None
    local_files_only: bool = False

    @classmethod
    def of(cls, name: Any, revision: Optional[str] = None, **where: Any) -> "Repository":
        """The repository of ``user/name`` or ``user/name@revision``.

        Raises:
            HubError: it is no such name, or names one revision and ``revision`` another.
        """
        parts = split_name(name)
        if parts is None:
            raise HubError(
                f"{printable(name)} is no folder here, and no name on the hub; expected a folder, user/name or "
                "user/name@revision"
            )
        if parts[1] is not None and revision not in (None, parts[1]):
            raise HubError(f"{name} names the revision {parts[1]}, and revision is {revision!r}; give one of them")
        return cls(parts[0], parts[1] or revision, **where)

    def __repr__(self) -> str:
        return f"Repository({self})"  # without the token

    def __str__(self) -> str:
        return self.repo_id if self.revision is None else f"{self.repo_id}@{self.revision}"


def fetch(repository: Repository, *files: str) -> Tuple[Path, ...]:
    """Files of one commit of a repository: downloaded, or those in the cache where they are still the same, or where
    the hub cannot be reached.

    Raises:
        HubError: with what is wrong with the name, the revision, the file or the connection.
    """
    library = _import_library(repository)
    found = []
    revision = repository.revision
    for file in files:
        with _explained(repository, file):
            path = library.hf_hub_download(
                repository.repo_id,
                file,
                revision=revision,
                cache_dir=repository.cache_dir,
                token=repository.token,
                local_files_only=repository.local_files_only,
                library_name="vqct_plugin",
                library_version=__version__,
            )
        found.append(Path(path))
        revision = found[0].parent.name  # the folder of the commit: a branch may move between two files
    return tuple(found)


def find_if_there(repository: Repository, file: str) -> Optional[Path]:
    """A file of a repository, or None where it is not to be had."""
    try:
        return fetch(repository, file)[0]
    except HubError:
        return None


def push(folder: Path, repo_id: str, where: Mapping[str, Any], default_message: str, with_card: bool) -> str:
    """Put the files of a folder into a repository, in one commit; returns its address.

    Args:
        folder: the files; those in folders below are not taken.
        repo_id: ``user/name``; made where it is not there.
        where: ``private``, ``token``, ``revision`` and ``message`` of
            :meth:`~vqct_plugin.pretrained.Pretrained.push_to_hub`.
        default_message: of the commit.
        with_card: False leaves a card alone that is there.

    Raises:
        HubError: it could not be put there, or the repository's visibility is not what ``private`` says.
    """
    parts = split_name(repo_id)
    if parts is None or parts[1] is not None:
        raise HubError(f"repo_id is {printable(repr(repo_id))}; expected user/name, such as 'ada/bird-words'")
    repository = Repository(repo_id, where["revision"], token=where["token"])
    library = _import_library(repository)
    api = library.HfApi(token=where["token"], library_name="vqct_plugin", library_version=__version__)
    private = where["private"]
    with _explained(repository, None):
        api.create_repo(repo_id, private=private, exist_ok=True)
        there = None if private is None else bool(api.model_info(repo_id).private)
    if there != private:  # of a repository that was there, whose visibility is not changed
        raise HubError(
            f"{repo_id} is {'private' if there else 'public'}, and private is {private}: nothing was put there. Push "
            "to another name, leave private out, or change the repository's visibility in its settings"
        )
    with _explained(repository, None):
        files = sorted(file for file in folder.iterdir() if file.is_file())
        if not with_card and api.file_exists(repo_id, CARD, revision=where["revision"]):
            files = [file for file in files if file.name != CARD]
        done = api.create_commit(
            repo_id,
            [library.CommitOperationAdd(file.name, str(file)) for file in files],
            commit_message=where["message"] or default_message,
            revision=where["revision"],
        )
    return str(done.commit_url)


def _import_library(repository: Repository) -> Any:
    try:
        return importlib.import_module("huggingface_hub")
    except ImportError as error:
        raise HubError(
            f"{repository} is a name that huggingface_hub has to look up, and it is not installed ({error}): "
            "pip install 'vqct-plugin[hub]'"
        ) from error


@contextmanager
def _explained(repository: Repository, file: Optional[str]) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # huggingface_hub's own, those of the HTTP library under it, and the system's
        errors = importlib.import_module("huggingface_hub.errors")
        missing = isinstance(error, errors.EntryNotFoundError) and not isinstance(error, errors.LocalEntryNotFoundError)
        kind = NoSuchFileError if missing else HubError
        raise kind(_explain(errors, error, repository, file)) from error


def _explain(errors: Any, error: Exception, repository: Repository, file: Optional[str]) -> str:
    constants = importlib.import_module("huggingface_hub.constants")
    name, hub = repository.repo_id, constants.ENDPOINT
    what = name if file is None else f"{file} of {repository}"
    if isinstance(error, errors.HFValidationError):
        return f"{printable(name)} is no name on the hub: {printable(error)}"
    if isinstance(error, errors.GatedRepoError):
        return f"{name} is there for those who asked for it: ask at {hub}/{name}, and pass the token of that user"
    if isinstance(error, errors.RepositoryNotFoundError):
        return (
            f"there is no repository {name} at {hub}, or a private one: check the name; for a private one pass token, "
            "or log in with `hf auth login`"
        )
    if isinstance(error, errors.RevisionNotFoundError):
        return f"{name} has no revision {repository.revision!r}; expected one of its branches, tags or commits"
    if isinstance(error, (errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)):
        state = f"{what} is not in the cache" if file else f"{what} cannot be written to"
        return f"{state}, and {_why_local(constants, error, repository)}"
    if isinstance(error, errors.EntryNotFoundError):
        return f"{repository} has no {file}"
    status = getattr(getattr(error, "response", None), "status_code", None)
    if status in (401, 403):
        return f"{hub} refuses {what} to this token ({status}); pass a token that may {'read' if file else 'write'} it"
    why = f"{type(error).__name__}: {printable(str(error).strip() or 'no more is known', 500)}"
    if file is None:
        return f"{what} could not be written to, and has no commit of this: {why}; try again"
    return f"{what} could not be downloaded, and no part of it is kept: {why}; try again"


def _why_local(constants: Any, error: Exception, repository: Repository) -> str:
    if repository.local_files_only:
        return "local_files_only is True; set it to False once, or give a folder"
    if constants.HF_HUB_OFFLINE:
        return "HF_HUB_OFFLINE is set; unset it once to download, or give a folder"
    cause = error.__cause__ or error
    why = f"{type(cause).__name__}: {printable(str(cause).strip(), 300)}"
    return f"{constants.ENDPOINT} cannot be reached ({why}); check the connection, or give a folder"
