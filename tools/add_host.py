"""A host's patch and entry, from a checkout that you have changed: ``python tools/add_host.py NAME CHECKOUT``.

Writes ``vqct_plugin/patches/NAME/quantizer.patch``, what the checkout's files differ by from its commit, and the host's
entry in ``vqct_plugin/patches/hosts.json``. An existing host's ``marks`` and ``target`` stay as they are. The checkout
is only read. A host that needs no patch has an entry without ``files``, which you write by hand.
"""

import hashlib
import json
import subprocess
import sys
from pathlib import Path
from typing import Any, Dict, Optional, Sequence

PATCHES = Path(__file__).resolve().parent.parent / "vqct_plugin" / "patches"


def add_host(name: str, checkout: Path, patches: Path = PATCHES) -> Dict[str, Any]:
    """Write the patch and the entry, and return the entry."""

    def git(*words: str) -> bytes:
        return subprocess.run(["git", *words], cwd=checkout, check=True, stdout=subprocess.PIPE).stdout

    files = git("diff", "-z", "--name-only", "HEAD").decode().split("\0")[:-1]
    if not files:
        raise ValueError(
            f"{checkout} has no change; make the host read quantizer_config there, and do not commit it. A host that "
            "needs no patch has an entry without files in hosts.json: write it by hand"
        )
    manifest = json.loads((patches / "hosts.json").read_text(encoding="utf-8"))
    entry = manifest.get(name, {"repository": "OWNER/NAME", "marks": [[files[0], "TEXT"]]})
    entry["commit"] = git("rev-parse", "HEAD").decode().strip()
    before = {file: git("show", f"HEAD:{file}") for file in files}
    entry["files"] = {file: [_hash(before[file]), _hash((checkout / file).read_bytes())] for file in files}
    order = [key for key in ("repository", "commit", "target", "marks", "files") if key in entry]
    manifest[name] = {key: entry[key] for key in order}
    (patches / name).mkdir(exist_ok=True)
    diff = git("diff", "-U1", "--no-color", "--no-ext-diff", "--src-prefix=a/", "--dst-prefix=b/", "HEAD")
    lines = [line for line in diff.splitlines(keepends=True) if not line.startswith(b"index ")]
    (patches / name / "quantizer.patch").write_bytes(b"".join(lines).replace(b"\r\n", b"\n"))
    (patches / "hosts.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    found: Dict[str, Any] = manifest[name]
    return found


def _hash(content: bytes) -> str:
    return hashlib.sha256(content.replace(b"\r\n", b"\n")).hexdigest()


def main(arguments: Optional[Sequence[str]] = None) -> int:
    words = list(sys.argv[1:] if arguments is None else arguments)
    if len(words) != 2 or words[0].startswith("-"):
        print(__doc__)
        return 2
    try:
        entry = add_host(words[0], Path(words[1]))
    except (ValueError, OSError, subprocess.CalledProcessError) as error:
        print(f"add_host: {error}", file=sys.stderr)
        return 1
    print(f"written: vqct_plugin/patches/{words[0]}/quantizer.patch, and in vqct_plugin/patches/hosts.json")
    print(json.dumps({words[0]: entry}, indent=1))
    if entry["repository"] == "OWNER/NAME":
        print(
            "fill in the repository, in marks a text that only this host's file has, and a target of your own, if any"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
