"""Counting a corpus: in this process, in several on this machine, or on a Dask cluster; the counts are the same.

One process reads the captions and hands them out in batches, a bounded number of them at a time; counts of batches add
up in any order. Memory grows with distinct words and pairs, not with captions.
"""

import asyncio
import concurrent.futures
import functools
import multiprocessing
import os
import signal
import threading
import time
from collections import deque
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager, suppress
from typing import Any, Callable, Deque, Iterable, Iterator, List, Optional, Protocol, Sequence, Tuple

import nltk
from tqdm import tqdm

from vqct_plugin.building.formats import BuildError
from vqct_plugin.building.languages import refuse_foreign
from vqct_plugin.building.tagging import PARTS, CaptionTagger, WordCounts, batches, make_lemmatizer

_BATCH = 500  # captions; about a fifth of a second of tagging
_LOOK = 5.0  # seconds between looks at a Dask cluster that a batch is waited for
_PATIENCE = 30.0  # seconds for new workers, or the scheduler, to come
_AHEAD = 3  # batches for each worker that wait or are being counted

Submit = Callable[[List[str]], Callable[[], WordCounts]]


class Corpus(Protocol):
    """What can be counted."""

    size: Optional[int]
    bytes_read: int

    def __iter__(self) -> Iterator[str]: ...


def count_captions(
    corpora: Sequence[Corpus],
    parts: Sequence[str] = PARTS,
    workers: int = 1,
    scheduler: Optional[str] = None,
    progress: bool = False,
) -> WordCounts:
    """Tag all captions and count their words and pairs.

    Args:
        corpora: iterables of captions, which have to be in English.
        parts: the parts of speech to count.
        workers: processes on this machine that tag.
        scheduler: the address of a Dask scheduler whose workers tag, instead of ``workers``.
        progress: a progress bar on stderr.

    Raises:
        BuildError: a corpus is not what it should be, is in another language, or the workers cannot do their work.
    """
    lemma = make_lemmatizer()  # and its data, before the long work
    CaptionTagger()
    counts = WordCounts(parts)
    with _workers(tuple(parts), workers, scheduler) as (submit, number):
        pending: Deque[Callable[[], WordCounts]] = deque()
        for batch in batches(_read_captions(corpora, progress), _BATCH):
            pending.append(submit(batch))
            while len(pending) > _AHEAD * number:
                counts.merge(pending.popleft()())
        while pending:
            counts.merge(pending.popleft()())
    return counts.rename(lemma)


def _read_captions(corpora: Iterable[Corpus], progress: bool) -> Iterator[str]:
    corpora = list(corpora)
    sizes = [corpus.size for corpus in corpora]
    total = None if None in sizes else sum(size for size in sizes if size is not None)
    with tqdm(total=total, desc="tagging captions", unit="B", unit_scale=True, disable=not progress) as bar:
        done = 0
        for corpus in corpora:
            name = str(getattr(corpus, "shown_name", getattr(corpus, "name", "the corpus")))
            for caption in refuse_foreign(corpus, name):
                if done + corpus.bytes_read > bar.n:
                    bar.update(done + corpus.bytes_read - bar.n)
                yield caption
            done += corpus.bytes_read


@contextmanager
def _workers(parts: Tuple[str, ...], workers: int, scheduler: Optional[str]) -> Iterator[Tuple[Submit, int]]:
    """A way to have a batch counted, and how many can be counted at a time."""
    if scheduler is not None:
        with _dask(parts, scheduler) as cluster:
            yield cluster
    elif workers > 1:
        with _processes(parts, workers) as pool:
            yield pool
    else:
        yield (lambda batch: functools.partial(count_batch, batch, parts)), 0


@contextmanager
def _processes(parts: Tuple[str, ...], workers: int) -> Iterator[Tuple[Submit, int]]:
    # spawn: a fork of a process in which torch or a tokenizer runs threads may hang
    pool = ProcessPoolExecutor(workers, multiprocessing.get_context("spawn"), _begin_worker)
    try:
        yield (lambda batch: pool.submit(count_batch, batch, parts).result), workers
    except BrokenProcessPool as error:
        raise BuildError(
            f"a worker process ended unexpectedly ({error}), perhaps out of memory: try fewer workers. A script "
            "that calls build_prior with workers needs the guard: if __name__ == '__main__'"
        ) from error
    except BaseException:
        for process in list((pool._processes or {}).values()):  # what they count is of no use any more
            process.terminate()
        raise
    finally:
        pool.shutdown(wait=True)


def _begin_worker() -> None:
    """Ctrl-C reaches all processes of a terminal, but it is the first one that ends the others; they end with it."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    threading.Thread(target=_end_with_parent, daemon=True).start()


def _end_with_parent() -> None:
    parent = multiprocessing.parent_process()
    if parent is not None:
        parent.join()
        os._exit(1)


@contextmanager
def _dask(parts: Tuple[str, ...], scheduler: str) -> Iterator[Tuple[Submit, int]]:
    try:
        from distributed import Client
        from distributed.scheduler import KilledWorker
    except ImportError as error:
        raise BuildError(f"{error}; a Dask scheduler needs it: pip install 'vqct-plugin[dask]'") from error
    try:
        client = Client(scheduler, timeout=10)
    except (OSError, ValueError, TimeoutError) as error:
        raise BuildError(
            f"no Dask scheduler answers at {scheduler!r} ({error}); start one with 'dask scheduler' and workers with "
            "'dask worker ADDRESS' in an environment that has vqct-plugin[prior], and pass its address"
        ) from error

    def submit(batch: List[str]) -> Callable[[], WordCounts]:
        # A batch whose worker is lost is counted again by another.
        try:
            future = client.submit(_count_on_dask, batch, parts, nltk.__version__, pure=False, retries=2)
        except Exception as error:  # a client whose scheduler is lost closes itself
            raise BuildError(_describe_loss(scheduler, f"cannot be reached any more ({error})")) from error
        return lambda: _wait_for(future, client, scheduler)

    try:
        number = sum(client.nthreads().values())
        if not number:
            raise BuildError(f"the Dask scheduler at {scheduler!r} has no workers; start one: dask worker ADDRESS")
        yield submit, number
    except KilledWorker as error:
        raise BuildError(f"several Dask workers died over the same captions; the last: {error}") from error
    finally:
        with suppress(Exception):  # the scheduler may be gone
            client.close(timeout=5)


def _wait_for(future: Any, client: Any, scheduler: str) -> WordCounts:
    """A batch's counts; Dask by itself waits forever for workers to come, and for a scheduler to come back."""
    alone_since: Optional[float] = None
    while True:
        begun = time.monotonic()
        try:
            result: WordCounts = future.result(timeout=_LOOK)
            return result
        except (TimeoutError, asyncio.TimeoutError, concurrent.futures.TimeoutError):
            missing = "has no workers any more"
            if client.status == "running":
                try:
                    if client.sync(client.scheduler.ncores, callback_timeout=_LOOK):
                        alone_since = None
                        continue
                except Exception:  # it fails in many ways where the connection is lost
                    missing = "does not answer any more"
            else:
                missing = "does not answer any more"
        except (asyncio.CancelledError, concurrent.futures.CancelledError) as error:
            raise BuildError(_describe_loss(scheduler, "does not answer any more")) from error
        except OSError as error:
            raise BuildError(_describe_loss(scheduler, f"cannot be reached any more ({error})")) from error
        alone_since = begun if alone_since is None else alone_since
        if time.monotonic() - alone_since > _PATIENCE:
            raise BuildError(_describe_loss(scheduler, missing))


def _describe_loss(scheduler: str, what: str) -> str:
    return (
        f"the Dask scheduler at {scheduler!r} {what}, and the captions are not all counted; begin again when it and "
        "its workers are there"
    )


def _count_on_dask(captions: List[str], parts: Tuple[str, ...], nltk_version: str) -> WordCounts:
    if nltk.__version__ != nltk_version:
        raise BuildError(
            f"this Dask worker has NLTK {nltk.__version__}, the command has {nltk_version}: the tags might differ; "
            "install the same release"
        )
    return count_batch(captions, parts)


def count_batch(captions: List[str], parts: Tuple[str, ...]) -> WordCounts:
    """The counts of a batch, of tokens and not yet of lemmas."""
    tagger, counts = _tagger(), WordCounts(parts)
    for caption in captions:
        counts.add(tagger(caption))
    return counts


@functools.lru_cache(maxsize=1)
def _tagger() -> CaptionTagger:
    return CaptionTagger()
