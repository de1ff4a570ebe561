"""The summary of a build."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Dict, List, Optional, Protocol, Sequence, Tuple

import numpy as np

from vqct_plugin.building.neighbors import find_nearest
from vqct_plugin.building.tagging import WordCounts
from vqct_plugin.prior import CodebookPrior

__all__ = ["BuildReport"]

_COMMONEST = 12
_ASKED = 3  # words of each part whose nearest are shown
_NEAREST = 4


class Summarized(Protocol):
    """A corpus that summarizes what was read of it."""

    def summary(self) -> List[str]: ...


@dataclass
class BuildReport:
    """A built prior and how it was built; ``str(report)`` is the summary that the command prints.

    Attributes:
        prior: the prior.
        corpora: what was counted.
        counted: words and pairs before any threshold.
        unknown: (word, part) pairs left out because they have no vector.
        seconds: stage -> seconds it took.
        output: the file that was written, if one was.
        not_found: words of the list to keep that are not codes.
    """

    prior: CodebookPrior
    corpora: Sequence[Summarized]
    counted: WordCounts
    unknown: List[Tuple[str, str]]
    seconds: Dict[str, float] = field(default_factory=dict)
    output: Optional[Path] = None
    not_found: List[str] = field(default_factory=list)

    def __str__(self) -> str:
        lines = [line for corpus in self.corpora for line in corpus.summary()]
        if "language" in self.prior.provenance:
            lines.append(f"language: {self.prior.provenance['language']}")
        lines.append(f"counted: {self.counted.describe()}")
        lines += describe_prior(self.prior)
        if self.unknown:
            shown = ", ".join(word for word, _ in self.unknown[:10])
            lines.append(f"dropped because they have no vector: {len(self.unknown):,} words ({shown})")
        if self.not_found:
            shown = ", ".join(self.not_found[:10])
            lines.append(f"words to keep that are not codes: {len(self.not_found):,} ({shown})")
        lines.append("seconds: " + ", ".join(f"{stage} {seconds:.1f}" for stage, seconds in self.seconds.items()))
        if self.output is not None:
            lines.append(f"written: {self.output} ({self.output.stat().st_size / 1e6:.1f} MB)")
        return "\n".join(lines)


def describe_prior(prior: CodebookPrior) -> List[str]:
    """What is in a prior, in lines for people."""
    sizes = " + ".join(f"{size:,} {part}s" for part, size in prior.sizes.items())
    occurrences, tied = int(prior.edge_count.sum()), np.unique(prior.edges).size
    lines = [
        f"kept: {sizes} = {len(prior):,} codes with vectors of {prior.vectors.shape[1]} ({prior.vectors.dtype})",
        f"edges: {prior.edges.shape[1]:,} distinct, {occurrences:,} occurrences",
        f"isolated codes (no edge): {len(prior) - tied:,}",
    ]
    of_parts = [np.flatnonzero(prior.part_of_speech == number) for number in range(len(prior.parts))]
    all_asked = np.concatenate([of_part[:_ASKED] for of_part in of_parts]).tolist()
    # another spelling: a word that is both adjective and noun has one vector
    found = find_nearest(prior.vectors, all_asked, range(len(prior)), (_NEAREST + 1) * len(prior.parts))
    near = dict(zip(all_asked, found))
    for part, of_part in zip(prior.parts, of_parts):
        lines.append(f"commonest {part}s: {', '.join(prior.words[i] for i in of_part[:_COMMONEST])}")
        for asked in of_part[:_ASKED].tolist():
            names = list(dict.fromkeys(prior.words[i] for i in near[asked] if prior.words[i] != prior.words[asked]))
            lines.append(f"  nearest to {prior.words[asked]}: {', '.join(names[:_NEAREST])}")
    return lines
