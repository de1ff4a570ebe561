"""The figures of runs as tables."""

from typing import Dict, Mapping, Sequence


def format_table(rows: Sequence[Mapping[str, str]]) -> str:
    """Rows of one set of columns as a Markdown table, its columns aligned for a terminal too."""
    columns = list(rows[0])
    width: Dict[str, int] = {c: max(len(c), *(len(row[c]) for row in rows)) for c in columns}
    lines = ["| " + " | ".join(c.ljust(width[c]) for c in columns) + " |"]
    lines.append("|" + "|".join("-" * (width[c] + 2) for c in columns) + "|")
    lines += ["| " + " | ".join(row[c].ljust(width[c]) for c in columns) + " |" for row in rows]
    return "\n".join(lines)
