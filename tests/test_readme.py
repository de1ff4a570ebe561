"""What the README and docs/ print, runs; what they name, is there; every option is in a table, with its default."""

import ast
import importlib
import inspect
import re
import shlex
import subprocess
import sys

import pytest

from tests.conftest import ROOT

PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page.relative_to(ROOT).as_posix(): page.read_text(encoding="utf-8") for page in PAGES}
README, ALL = TEXT["README.md"], "\n".join(TEXT.values())
BLOCKS = [
    pytest.param(name, block, id=f"{name}-{i}")
    for name, text in TEXT.items()
    for i, block in enumerate(re.findall(r"^```python\n(.*?)^```", text, flags=re.M | re.S))
]
COMMANDS = ["train", "build-prior", "import-prior", "evaluate", "report", "sample", "patch", "demo", "completion"]
NEEDS = {
    "diffusers": "diffusers",
    "vqct_plugin.runs": "pytorch_lightning",
    "VQModel": "taming",
    "vqct_plugin.train(": "pytorch_lightning>=2.2",
    "from vector_quantize_pytorch": "vector_quantize_pytorch",
    "from transformers": "transformers>=5.0",
    "onnx": "onnxruntime",
    "torch.export": "torch",
}


WINGS_ARE_THERE = sys.version_info >= (3, 10)  # evaluation, reports and priors are for today's releases
needs_wings = pytest.mark.skipif(not WINGS_ARE_THERE, reason="evaluation and building are for today's releases")


@pytest.mark.parametrize(("name", "block"), BLOCKS)
def test_a_python_block_runs(name, block, capsys, tmp_path, monkeypatch):
    if "evaluation" in name and not WINGS_ARE_THERE:
        pytest.skip("evaluation is for today's releases")
    for mark, needed in NEEDS.items():
        if mark in block:
            module, _, least = needed.partition(">=")
            pytest.importorskip(module, least or None)
    if "torch.export" in block or "torch.onnx" in block:
        torch = pytest.importorskip("torch", "2.7")
        if "torch.onnx" in block:
            pytest.importorskip("onnxscript")
        assert torch
    monkeypatch.chdir(tmp_path)
    exec(compile(block, name, "exec"), {"__name__": "block"})
    assert capsys.readouterr().out or "assert " in block


def test_there_are_blocks_and_the_two_commands():
    assert len(BLOCKS) >= 10
    for mark in ("<!-- the demo command -->", "<!-- the test command -->"):
        command = re.search(re.escape(mark) + r"\n```bash\n(.*?)\n```", README, flags=re.S)
        assert command
        assert "\n" not in command.group(1)  # one command


def commands(name):
    """The lines of README and docs that call one of our commands, continued lines joined."""
    blocks = re.findall(r"^```bash\n(.*?)^```", ALL, flags=re.M | re.S)
    lines = "".join(blocks).replace("\\\n", " ").splitlines()
    return [shlex.split(line, comments=True)[1:] for line in lines if line.startswith(f"{name} ")]


def test_every_call_of_vqct_train_is_understood(monkeypatch):
    pytest.importorskip("pytorch_lightning", "2.0")
    pytest.importorskip("omegaconf")
    pytest.importorskip("taming")
    from vqct_plugin.commands.train import main
    from vqct_plugin.runs.config import load_config
    from vqct_plugin.training import launcher
    from vqct_plugin.training.trainer import TRAINER_ARGUMENTS

    calls = []
    for name in ("run", "check"):
        monkeypatch.setattr(launcher, name, lambda *args, **keywords: calls.append((args, keywords)))
    assert len(commands("vqct-train")) >= 3
    for words in commands("vqct-train"):
        main(words)
    for (base, overrides), keywords in calls:
        assert base or keywords["resume"]
        assert set(keywords["trainer"]) <= set(TRAINER_ARGUMENTS)
        if base and (ROOT / base[0]).exists():
            load_config([ROOT / file for file in base], overrides)
    assert any((ROOT / base[0]).exists() for (base, _), _ in calls if base)


@pytest.mark.parametrize("name", ["build-prior", "import-prior", "evaluate", "report", "sample", "patch"])
def test_every_call_of_the_other_commands_is_understood(name):
    parser = parser_of(name)
    parse = parser.parse_intermixed_args if name == "sample" else parser.parse_args
    assert commands(f"vqct-{name}")
    for words in commands(f"vqct-{name}"):
        parse(words)


def test_every_host_is_patched_in_an_example():
    from vqct_plugin.hosts.patching import list_hosts

    patched = {words[0] for words in commands("vqct-patch")}
    assert patched == {host.name for host in list_hosts()} - {"taming-transformers-rom1504"}  # whose hunk is the same


def section(heading):
    """The text under a heading of the page of options, to the next one of its level."""
    text = TEXT["docs/options.md"]
    return re.search(rf"^## {re.escape(heading)}\n(.*?)(?=^## |\Z)", text, flags=re.M | re.S).group(1)


def rows(text):
    """The first and second cell of every row of a section's tables."""
    return [re.split(r"(?<!\\) \| ", line.strip("| "))[:2] for line in text.splitlines() if line.startswith("| `")]


def parser_of(name):
    return importlib.import_module(f"vqct_plugin.commands.{name.replace('-', '_')}").make_parser()


@pytest.mark.parametrize("name", COMMANDS)
def test_every_flag_is_in_its_table_with_its_default(name):
    table = rows(section(f"vqct-{name}"))
    if name == "report":
        table += [row for row in rows(section("vqct-evaluate")) if "`--output`" not in row[0]]
    documented = {flag for flags, _ in table for flag in re.findall(r"`(-[\w-]+)`", flags)}
    options = [a for a in parser_of(name)._actions if a.option_strings and a.dest != "help"]
    assert documented == {flag for action in options for flag in action.option_strings}
    for action in options:
        default = next(row[1] for row in table if f"`{action.option_strings[-1]}`" in row[0])
        value = " ".join(action.default) if isinstance(action.default, tuple) else action.default
        if value not in (None, "", []) and not (value is False and action.nargs == 0):
            assert f"`{value}`" in default, (action.option_strings, value)


def defaults_of(function):
    parameters = list(inspect.signature(function).parameters.values())[1:]
    return {p.name: p.default for p in parameters if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)}


def test_every_option_of_the_quantizer_is_in_the_table_with_its_default():
    from vqct_plugin import CodebookTransferQuantizer

    text = section("The quantizer").split("### Of the model")[0]
    options, table = defaults_of(CodebookTransferQuantizer.__init__), dict(rows(text))
    assert set(table) == {f"`{name}`" for name in options}
    for name, default in options.items():
        if default is not inspect.Parameter.empty:
            shown = f"[{', '.join(default)}]" if isinstance(default, tuple) else str(default)
            assert table[f"`{name}`"] == f"`{shown}`"


def options_in(text):
    """Each option that a cell names, with the default in parentheses behind it."""
    return dict(re.findall(r"`(\w+)`(?: \(`(\w+)`)?", text))


@needs_wings
@pytest.mark.parametrize(
    "name",
    [
        "datasets.Images", "datasets.CUB", "datasets.LabeledImages", "shards.ShardedImages",
        "hugging_face.HuggingFaceImages", "datasets.DataModuleFromConfig",
    ],
)  # fmt: skip
def test_every_option_of_a_data_set_is_in_the_table_with_its_default(name):
    file, _, cls = name.partition(".")
    pytest.importorskip("vqct_plugin.runs.datasets")
    options = defaults_of(getattr(importlib.import_module(f"vqct_plugin.runs.{file}"), cls).__init__)
    table = dict(rows(section("In a YAML")))
    row = "data.params" if cls == "DataModuleFromConfig" else f"vqct_plugin.runs.{name}"
    shown = options_in(table[f"`{row}`"].split(": how many")[0])
    if name == "datasets.LabeledImages":
        del shown["Images"]
        shown.update(options_in(table["`vqct_plugin.runs.datasets.Images`"]))
    nothing = (inspect.Parameter.empty, None)
    assert shown == {option: "" if value in nothing else str(value) for option, value in options.items()}


@needs_wings
def test_every_option_of_a_callback_is_in_the_table_with_its_default(tmp_path):
    pytest.importorskip("pytorch_lightning", "2.0")
    from omegaconf import OmegaConf

    from vqct_plugin.training import trainer
    from vqct_plugin.training.callbacks import CodebookUsageLogger, ImageLogger
    from vqct_plugin.training.progress import OneLine

    callbacks = {type(each): each for each in trainer.build_callbacks(OmegaConf.create(), None, tmp_path)}
    table = dict(rows(section("In a YAML")))
    for name, cls in (("image", ImageLogger), ("codebook_usage", CodebookUsageLogger), ("progress_bar", OneLine)):
        callback, row = callbacks[cls], f"`lightning.callbacks.{name}{'_logger' * (name != 'progress_bar')}.params`"
        shown = options_in(table[row])
        assert set(shown) == set(defaults_of(cls.__init__)) - {"folder"}  # which the run sets
        for option, default in shown.items():
            value = bool(callback.log_steps) if option == "increase_log_steps" else getattr(callback, option)
            assert default == str(value), option
    from vqct_plugin.training.word_maps import WordMapLogger

    shown = options_in(table["`lightning.callbacks.word_maps`"])
    assert shown.pop("params") == ""
    options = defaults_of(WordMapLogger.__init__)
    assert shown == {name: str(default) for name, default in options.items() if name != "folder"}


def test_every_option_of_the_model_is_in_the_table_with_its_default():
    from vqct_plugin.compat.lightning import ADAPTER_OPTIONS, Adapted

    options, table = defaults_of(Adapted.__init__), dict(rows(section("The quantizer").split("### Of the model")[1]))
    assert set(table) == {f"`{name}`" for name in ADAPTER_OPTIONS}
    assert all(table[f"`{name}`"] == f"`{options[name]}`" for name in ADAPTER_OPTIONS)


@needs_wings
def test_every_name_of_ours_is_there():
    for target in sorted(set(re.findall(r"(?:`|::: |target: )(vqct_plugin(?:\.\w+)+)", ALL))):
        names = target.split(".")
        found = importlib.import_module("vqct_plugin")
        for i, name in enumerate(names[1:], 2):
            if target.startswith("vqct_plugin.hosts.latent_diffusion"):
                break  # for a checkout on the path
            if not hasattr(found, name):
                try:
                    importlib.import_module(".".join(names[:i]))
                except ModuleNotFoundError as error:
                    if str(error.name).startswith("vqct_plugin"):
                        raise AssertionError(target) from error
                    break  # what it needs is not installed
            found = getattr(found, name)


def all_of(path):
    """The ``__all__`` of a file, without importing it: some hosts need a checkout."""
    for node in ast.parse(path.read_text(encoding="utf-8")).body:
        if isinstance(node, ast.Assign) and getattr(node.targets[0], "id", "") == "__all__":
            return ast.literal_eval(node.value)
    return []


def test_the_api_page_lists_exactly_the_public_names():
    listed = re.findall(r"^::: ([\w.]+)", TEXT["docs/api.md"], flags=re.M)
    public = [
        ".".join([*path.relative_to(ROOT).with_suffix("").parts, name])
        for path in (ROOT / "vqct_plugin").rglob("*.py")
        if path.name != "__init__.py"
        for name in all_of(path)
    ]
    assert sorted(listed) == sorted(public)


@pytest.mark.parametrize("door", ["vqct_plugin", "vqct_plugin.evaluation"])
def test_the_doors_show_public_names_only(door):
    module = importlib.import_module(door)
    listed = re.findall(r"^::: ([\w.]+)", TEXT["docs/api.md"], flags=re.M)
    targets = {name: ".".join(where) for name, where in module._WHERE.items() if isinstance(where, tuple)}
    targets = targets or {name: f"{door}.{where}.{name}" for name, where in module._WHERE.items()}
    assert set(targets.values()) <= set(listed)
    assert set(module.__all__) == {
        *targets,
        *({"CodebookPrior", "PriorError", "__version__"} if door == "vqct_plugin" else ()),
    }
    page = TEXT["docs/api.md"].split("## Quantizer")[0]
    assert all(f"`{name}`" in page for name in module.__all__)


@pytest.mark.parametrize("name", TEXT)
def test_every_link_leads_somewhere(name):
    for link in re.findall(r"\]\(([^)#:]+)[^)]*\)", TEXT[name]):
        assert ((ROOT / name).parent / link).exists(), link
    for file in re.findall(r'^--8<-- "([^":]+)', TEXT[name], flags=re.M):
        assert (ROOT / file).exists(), file


def test_the_site_builds(tmp_path):
    pytest.importorskip("mkdocs")
    pytest.importorskip("mkdocstrings")
    pytest.importorskip("material")
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path / "site")]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    loaded = re.compile(r'<(?:script|link|img)[^>]+(?:src|href)="(?:https?:)?//[^"]*"')
    for page in (tmp_path / "site").glob("*.html"):  # nothing is loaded from elsewhere
        assert not loaded.search(page.read_text(encoding="utf-8")), page
