"""What the README prints, runs."""

import re

import pytest

from tests.conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"^```python\n(.*?)^```", README, flags=re.M | re.S)


@pytest.mark.parametrize("block", BLOCKS, ids=range(len(BLOCKS)))
def test_a_python_block_runs(block, capsys):
    exec(compile(block, "README.md", "exec"), {})
    assert capsys.readouterr().out


def test_there_are_blocks_and_the_two_commands():
    assert len(BLOCKS) >= 2
    for mark in ("<!-- the demo command -->", "<!-- the test command -->"):
        command = re.search(re.escape(mark) + r"\n```bash\n(.*?)\n```", README, flags=re.S)
        assert command
        assert "\n" not in command.group(1)  # one command


def test_every_option_of_the_quantizer_is_in_the_table():
    import inspect

    from vqct_plugin import CodebookTransferQuantizer

    options = set(inspect.signature(CodebookTransferQuantizer.__init__).parameters) - {"self", "n_e", "e_dim"}
    from_the_host = {"remap", "sane_index_shape"}
    documented = set(re.findall(r"`(\w+)`", README))
    assert options - from_the_host <= documented
