"""``vqct-patch``: add ``quantizer_config`` to a host's checkout, or remove it."""

import argparse
import os
import sys
from typing import List, Optional

from vqct_plugin.commands.messages import name_flags
from vqct_plugin.hosts.patching import Patched, PatchError, list_hosts, patch_host


def make_parser() -> argparse.ArgumentParser:
    """The command's flags, one for each argument of ``patch_host``."""
    known = "\n".join(f"  {host.repository} at {host.commit[:7]}" for host in list_hosts())
    parser = argparse.ArgumentParser(
        prog="vqct-patch",
        description="Add `quantizer_config: {target, params}` to a VQGAN codebase: a minimal diff that lets its YAML "
        "or its arguments choose the quantizer. Without that key nothing changes.",
        epilog=f"known hosts:\n{known}\n(the wheel taming-transformers-rom1504 0.0.6 too: give its site-packages)",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("path", metavar="PATH", help="the root of the checkout")
    parser.add_argument(
        "--revert", action="store_true", help="remove the patch; the files are then byte for byte as before"
    )
    parser.add_argument("--dry-run", action="store_true", help="check everything, print the diff, change nothing")
    return parser


def main(argv: Optional[List[str]] = None) -> int:
    """Run the command; the exit status is 0, or 1 after an error, which is printed to stderr."""
    parser = make_parser()
    options = parser.parse_args(argv)
    try:
        result = patch_host(options.path, revert=options.revert, dry_run=options.dry_run)
    except PatchError as error:
        print(f"vqct-patch: {name_flags(error, parser)}", file=sys.stderr)
        return 1
    try:
        if options.dry_run:
            print(result.diff)
        print(summarize(result, options.revert, options.dry_run), flush=True)
    except BrokenPipeError:  # `| head`: whoever read has read enough, and the work is done
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that Python's own flush is silent too
    return 0


def summarize(result: Patched, revert: bool, dry_run: bool) -> str:
    """A summary for the terminal."""
    verb = ("would be " if dry_run else "") + ("reverted" if revert else "patched")
    lines = [f"{result.host.repository} in {result.root}: {verb}, {len(result.files)} file(s)"]
    lines += [f"  {file}" for file in result.files]
    lines += [f"note: {note}" for note in result.notes]
    if not revert:
        lines += ["choose the quantizer with", f"  quantizer_config: {{target: {result.host.target}, params: {{...}}}}"]
        lines += [f"revert it with `vqct-patch {result.root} --revert`"] if not dry_run else []
    return "\n".join(lines)


if __name__ == "__main__":
    sys.exit(main())
