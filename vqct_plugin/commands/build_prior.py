"""``vqct-build-prior``: captions and a language model in, a prior file out."""

import argparse
import sys
from pathlib import Path
from typing import Any, Dict, List, Optional, Union

from vqct_plugin.commands.messages import name_flags, printable_lines, show_messages


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``build_prior``."""
    parser = argparse.ArgumentParser(
        prog="vqct-build-prior",
        description="Build the word prior of a transferred codebook: adjectives and nouns of captions, an edge for "
        "each adjective right before a noun, and a language model's vectors. Without --captions, the words are the "
        "language model's own, and the edges come from WordNet's glosses.",
    )
    where = parser.add_argument_group("in and out")
    where.add_argument(
        "--plm", metavar="NAME_OR_FOLDER", help="language model: a name on the Hugging Face hub, or a folder"
    )
    where.add_argument(
        "--plm-name", metavar="NAME", help="name of the model in the prior (default: its name on the hub)"
    )
    where.add_argument("--revision", metavar="REV", help="branch, tag or commit of a model on the hub")
    where.add_argument("--word-vectors", metavar="FILE", help="GloVe, word2vec or fastText text file instead of --plm")
    where.add_argument(
        "--captions",
        nargs="+",
        metavar="PATH",
        help="captions in English: files, folders, addresses (s3://...), or - for standard input",
    )
    where.add_argument(
        "-o", "--output", metavar="FILE", help="prior file to write (default: MODEL_prior.safetensors here)"
    )
    where.add_argument("--picture", metavar="FILE", help="also draw the prior: .png, .pdf, .svg or .jpg")
    where.add_argument("-f", "--force", action="store_true", help="replace an existing output and picture")

    captions = parser.add_argument_group("captions")
    captions.add_argument(
        "--caption-format",
        choices=["auto", "text", "flickr", "coco", "jsonl", "csv", "tsv", "parquet"],
        default="auto",
        help="how captions are written (default: auto, from the first lines)",
    )
    captions.add_argument(
        "--caption-field",
        default="caption",
        metavar="NAME",
        help="field or column that holds the caption, a field in a field as sentences.raw, or the number of a column, "
        "from 1, of a table without a header (default: caption)",
    )
    captions.add_argument("--glosses", action="store_true", help="count WordNet's glosses in addition to the captions")
    captions.add_argument(
        "--workers", type=int, default=1, metavar="N", help="number of processes that tag captions (default: 1)"
    )
    captions.add_argument(
        "--scheduler", metavar="ADDRESS", help="address of a Dask scheduler whose workers tag captions"
    )

    words = parser.add_argument_group("words and edges")
    words.add_argument(
        "--words",
        choices=["captions", "model", "wordnet", "classes"],
        help="where words come from (default: captions if there are any, else the model's vocabulary)",
    )
    words.add_argument(
        "--classes",
        metavar="FILE",
        help="a list of class names as published ('tench, Tinca tinca'); its words that WordNet knows are the codes",
    )
    words.add_argument(
        "--parts",
        nargs="+",
        choices=["adjective", "noun", "verb", "adverb"],
        default=("adjective", "noun"),
        metavar="PART",
        help="parts of speech: some of adjective noun verb adverb (default: adjective noun)",
    )
    words.add_argument(
        "--min-count", type=int, metavar="N", help="keep words seen more than N times (default: 10 of captions)"
    )
    words.add_argument(
        "--max-words",
        nargs="+",
        metavar="N|PART=N",
        help="at most the N most frequent words of each part, or of one part",
    )
    words.add_argument(
        "--only-wordnet", action="store_true", help="keep only words that WordNet lists as that part of speech"
    )
    words.add_argument("--keep-words", metavar="FILE", help="keep only these words; each line is 'word' or 'word part'")
    words.add_argument("--drop-words", metavar="FILE", help="leave these words out; each line is 'word' or 'word part'")
    words.add_argument(
        "--edges",
        choices=["cooccurrence", "neighbors", "both", "filled"],
        default="cooccurrence",
        help="adjacent words, words with similar vectors, both, or similar vectors only for words with "
        "few edges (default: cooccurrence)",
    )
    words.add_argument(
        "--neighbors",
        type=int,
        default=5,
        metavar="K",
        help="how many near words each word is connected to (default: 5)",
    )

    vectors = parser.add_argument_group("vectors")
    vectors.add_argument(
        "--vectors",
        choices=["embeddings", "prompts"],
        default="embeddings",
        help="the model's input embeddings, or its encodings of a prompt (default: embeddings)",
    )
    vectors.add_argument(
        "--prompts",
        nargs="+",
        metavar="PART=TEXT",
        help="one for each part (default: adjective='a photo of {} object' noun='a photo of {}')",
    )
    vectors.add_argument(
        "--device", metavar="DEVICE", help="where prompts are encoded: cpu, cuda:1 (default: a GPU if there is one)"
    )
    vectors.add_argument(
        "--pooling",
        choices=["cls", "max", "mean", "mean_sqrt_len_tokens", "weightedmean", "lasttoken"],
        help="how prompts become one vector (default: as the model's 1_Pooling/config.json says; else by its kind)",
    )
    vectors.add_argument("--standardize", action="store_true", help="center and scale each dimension")
    vectors.add_argument(
        "--dtype",
        choices=["float32", "float16"],
        default="float32",
        help="type in which vectors are stored (default: float32)",
    )
    vectors.add_argument(
        "--batch-size", type=int, default=256, metavar="N", help="words encoded at a time (default: 256)"
    )
    parser.add_argument("-q", "--quiet", action="store_true", help="no progress bars and no summary")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0; 1 after an error, which is printed to stderr; 130 after Ctrl-C."""
    parser = make_parser()
    options = vars(parser.parse_args(argv))
    quiet = options.pop("quiet")
    try:
        options["max_words"] = _numbers(options["max_words"])
        options["prompts"] = _parse_pairs(options["prompts"], "prompts")
        options["output"] = options["output"] or _output_of(options)
    except ValueError as error:
        parser.error(str(error))
    try:
        from vqct_plugin.building.build import build_prior  # nltk takes a while: --help answers without it
    except ImportError as error:
        print(
            f"vqct-build-prior: {error}; install what it needs with: pip install 'vqct-plugin[prior]'", file=sys.stderr
        )
        return 1
    show_messages()
    try:
        report = build_prior(progress=not quiet, **options)
    except (ValueError, ImportError) as error:  # BuildError and PriorError are ValueErrors
        message = name_flags(error, parser, {"overwrite=True": "--force"})
        print(f"vqct-build-prior: {message}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("vqct-build-prior: interrupted; nothing was written", file=sys.stderr)
        return 130
    if not quiet:
        print(printable_lines(report))
    return 0


def _output_of(options: Dict[str, Any]) -> Optional[str]:
    """``bert-base-uncased_prior.safetensors`` for a model of this name; build_prior reports a missing model."""
    source = options["plm_name"] or options["plm"] or options["word_vectors"]
    if not source:
        return None
    name = Path(source).name or Path(source).resolve().name
    if options["word_vectors"] and not options["plm_name"]:
        name = name[:-3] if name.endswith(".gz") else name
        name = name.rpartition(".")[0] or name
    return f"{name}_prior.safetensors"


def _numbers(texts: Optional[List[str]]) -> Union[int, Dict[str, int], None]:
    """``["4000"]`` or ``["adjective=2000", "noun=4000"]``."""
    if texts is None:
        return None
    try:
        if len(texts) == 1 and "=" not in texts[0]:
            return int(texts[0])
        return {part: int(number) for part, number in (_parse_pairs(texts, "max-words") or {}).items()}
    except ValueError:
        raise ValueError(f"--max-words {' '.join(texts)}: expected a number, or PART=NUMBER for each part") from None


def _parse_pairs(texts: Optional[List[str]], flag: str) -> Optional[Dict[str, str]]:
    if texts is None:
        return None
    named: Dict[str, str] = {}
    for text in texts:
        part, equals, value = text.partition("=")
        if not equals or part in named:
            raise ValueError(f"--{flag} {text!r}: expected PART=VALUE, each part once")
        named[part] = value
    return named


if __name__ == "__main__":
    sys.exit(main())
