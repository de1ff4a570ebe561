import os
import signal
import subprocess
import sys
import threading
import time

import pytest

from tests.conftest import ROOT, heed_interrupts
from vqct_plugin.building import counting, languages
from vqct_plugin.building.build import build_prior
from vqct_plugin.building.captions import Captions
from vqct_plugin.building.counting import count_captions
from vqct_plugin.building.formats import BuildError

ALL = ("adjective", "noun", "verb", "adverb")


class Lines:
    """A corpus out of a list."""

    size, bytes_read = None, 0

    def __init__(self, captions):
        self._captions = captions

    def __iter__(self):
        return iter(self._captions)


@pytest.fixture(scope="module")
def some_captions(flickr8k):
    lines = flickr8k.read_text(encoding="utf-8").splitlines()[:3_000]
    return [line.split("\t")[-1] for line in lines]


@pytest.fixture(scope="module")
def serial(some_captions, nltk_data):
    return count_captions([Lines(some_captions)], ALL)


def test_the_counts_are_those_of_one_caption_after_the_other(some_captions, serial):
    from vqct_plugin.building.tagging import CaptionTagger, WordCounts, make_lemmatizer

    tagger, lemma, plain = CaptionTagger(), make_lemmatizer(), WordCounts(ALL)
    for caption in some_captions:
        plain.add([(lemma(token, part) if part else token, part) for token, part in tagger(caption)])
    assert serial == plain
    assert sum(serial.pairs["adjective", "noun"].values()) > 1_000


def test_workers_count_the_same(some_captions, serial):
    assert count_captions([Lines(some_captions[:1_234]), Lines(some_captions[1_234:])], ALL, workers=2) == serial


def test_no_more_captions_are_read_ahead_than_the_workers_can_use(some_captions, nltk_data, monkeypatch):
    """Or memory would grow with the captions where reading is faster than tagging. The first are read to tell their
    language, which are a few here."""
    monkeypatch.setattr(counting, "_BATCH", 10)
    monkeypatch.setattr(languages, "_SAMPLE", 10)
    done = threading.Semaphore(0)
    handed_out, most = [0], [0]

    class Slow(Lines):
        def __iter__(self):
            for number, caption in enumerate(super().__iter__(), 1):
                most[0] = max(most[0], number - handed_out[0])
                yield caption

    counted_before = counting.WordCounts.merge

    def merge(self, other):
        handed_out[0] += 10
        done.release()
        return counted_before(self, other)

    monkeypatch.setattr(counting.WordCounts, "merge", merge)
    count_captions([Slow(some_captions[:1_000])], workers=2)
    assert most[0] <= 10 * (2 * counting._AHEAD + 2)


def test_a_damaged_corpus_ends_the_workers_too(tmp_path, nltk_data):
    path = tmp_path / "captions.txt"
    path.write_bytes(b"A red dog .\n" * 2_000 + b"\xff\n" * 3_000)
    with pytest.raises(BuildError, match="3,000 damaged lines, but only 2,000 captions"):
        count_captions([Captions(path)], workers=2)


SCRIPT = """
import os, signal, sys, time
from vqct_plugin.building import counting, languages
from vqct_plugin.building.build import build_prior

class Endless:
    size, bytes_read = None, 0
    def __iter__(self):
        while True:
            yield "A red dog on the green grass ."

if __name__ == "__main__":
    begin = counting.ProcessPoolExecutor.submit
    def submit(pool, *arguments):
        future = begin(pool, *arguments)
        if not hasattr(pool, "told"):
            pool.told = True
            future.add_done_callback(lambda _: print(*pool._processes, flush=True))
        return future
    counting.ProcessPoolExecutor.submit = submit
    try:
        counting.count_captions([Endless()], workers=2)
    except Exception as error:
        sys.exit(f"{type(error).__name__}: {error}")
"""


def alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:
        return file.read().rpartition(")")[2].split()[0] != "Z"


@pytest.fixture
def at_work(tmp_path, nltk_data):
    """A process with two workers that are counting, and the workers' numbers."""
    if not sys.platform.startswith("linux"):
        pytest.skip("looks into /proc")
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    process = subprocess.Popen(
        [sys.executable, str(script)],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
        preexec_fn=heed_interrupts,
    )
    yield process, [int(number) for number in process.stdout.readline().split()]
    process.kill()
    process.communicate()


def test_a_worker_that_dies_is_told_of(at_work):
    process, workers = at_work
    assert len(workers) == 2
    os.kill(workers[0], signal.SIGKILL)
    _, told = process.communicate(timeout=60)
    assert "BuildError: a worker process ended unexpectedly" in told
    assert "fewer workers" in told


@pytest.mark.parametrize("how", [signal.SIGKILL, signal.SIGINT])
def test_workers_end_with_the_process_that_began_them(at_work, how):
    process, workers = at_work
    assert all(map(alive, workers))
    process.send_signal(how)
    process.wait(timeout=60)
    deadline = time.monotonic() + 30
    while any(map(alive, workers)):
        assert time.monotonic() < deadline, "workers are left over"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def cluster(nltk_data):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=2, threads_per_worker=1, processes=True, dashboard_address=":0") as cluster:
        yield cluster


def test_a_dask_cluster_gives_the_same_bytes_even_when_a_worker_is_killed(
    some_captions, cluster, minilm, tmp_path, monkeypatch
):
    import fsspec

    fsspec.filesystem("memory").pipe("/dask/captions.txt", "\n".join(some_captions).encode())
    outputs = [tmp_path / name for name in ("serial.safetensors", "dask.safetensors")]
    build_prior(minilm, ["memory://dask/captions.txt"], outputs[0], parts=ALL)
    monkeypatch.setattr(counting, "_BATCH", 100)
    victims = [worker.pid for worker in cluster.workers.values()]
    killed = []
    merge = counting.WordCounts.merge

    def kill_one(self, other):
        if not killed:
            killed.append(victims[0])
            os.kill(victims[0], signal.SIGKILL)
        return merge(self, other)

    monkeypatch.setattr(counting.WordCounts, "merge", kill_one)
    address = cluster.scheduler_address
    build_prior(minilm, ["memory://dask/captions.txt"], outputs[1], parts=ALL, scheduler=address)
    assert killed
    assert outputs[0].read_bytes() == outputs[1].read_bytes()
    assert victims[0] not in [worker.process.pid for worker in cluster.workers.values() if worker.process]


def test_a_scheduler_that_does_not_answer_is_told_of(monkeypatch, nltk_data):
    pytest.importorskip("distributed")
    with pytest.raises(BuildError, match=r"no Dask scheduler answers at 'tcp://127\.0\.0\.1:9'.*dask worker ADDRESS"):
        count_captions([Lines(["a dog"])], scheduler="tcp://127.0.0.1:9")
    monkeypatch.setitem(sys.modules, "distributed", None)
    with pytest.raises(BuildError, match=r"pip install 'vqct-plugin\[dask\]'"):
        count_captions([Lines(["a dog"])], scheduler="tcp://127.0.0.1:9")


def test_a_cluster_without_workers_is_told_of(nltk_data):
    distributed = pytest.importorskip("distributed")
    with distributed.LocalCluster(n_workers=0, dashboard_address=":0") as empty:  # noqa: SIM117
        with pytest.raises(BuildError, match="has no workers; start one: dask worker"):
            count_captions([Lines(["a dog"])], scheduler=empty.scheduler_address)


@pytest.mark.parametrize(
    ("lost", "sentence"),
    [("workers", "has no workers any more"), ("scheduler", "does not answer any more|cannot be reached any more")],
)
def test_a_cluster_that_is_lost_on_the_way_is_told_of(nltk_data, monkeypatch, lost, sentence):
    distributed = pytest.importorskip("distributed")
    monkeypatch.setattr(counting, "_BATCH", 20)
    monkeypatch.setattr(counting, "_LOOK", 0.5)
    monkeypatch.setattr(counting, "_PATIENCE", 1.5)
    options = {"n_workers": 1, "threads_per_worker": 1, "processes": False, "dashboard_address": ":0"}
    with distributed.LocalCluster(**options) as cluster:
        merge, done = counting.WordCounts.merge, []

        def lose(self, other):
            if not done:
                done.append(time.monotonic())
                if lost == "workers":
                    cluster.scale(0)
                    while cluster.scheduler.workers:
                        time.sleep(0.05)
                else:
                    cluster.close()
            return merge(self, other)

        monkeypatch.setattr(counting.WordCounts, "merge", lose)
        with pytest.raises(BuildError, match=rf"the Dask scheduler at .* ({sentence}), and the captions are not all"):
            count_captions([Lines(["a red dog"] * 2_000)], scheduler=cluster.scheduler_address)
        assert done
        assert time.monotonic() - done[0] < 50


def test_a_dask_worker_with_another_nltk_is_refused():
    with pytest.raises(BuildError, match=r"this Dask worker has NLTK .*, the command has 3\.0"):
        counting._count_on_dask(["a dog"], ("noun",), "3.0")
