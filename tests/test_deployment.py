"""Deployment without this package: torch.export and ONNX of encoding and decoding, with standard operators only."""

import subprocess
import sys

import pytest
import torch

from tests.test_quantizer import make

pytestmark = pytest.mark.skipif(
    not hasattr(getattr(torch, "compiler", None), "is_exporting"), reason="torch.export in this form came with 2.7"
)
SHAPE = (2, 24, 4, 6)


class Encode(torch.nn.Module):
    """A map to its indices and the quantized map."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantize = quantizer

    def forward(self, z):
        z_q, _, (_, _, indices) = self.quantize(z)
        return indices, z_q


class Decode(torch.nn.Module):
    """Indices to the quantized map."""

    def __init__(self, quantizer):
        super().__init__()
        self.quantize = quantizer

    def forward(self, indices):
        b, c, h, w = SHAPE
        return self.quantize.get_codebook_entry(indices, (b, h, w, c))


def pair(parts, topk, frozen, **options):
    quantizer = make(parts, topk=topk, **options).eval()
    if frozen:
        quantizer.freeze_codebook()
    z = torch.randn(SHAPE)
    with torch.no_grad():
        z_q, _, (_, _, indices) = quantizer(z)
    return Encode(quantizer).eval(), Decode(quantizer).eval(), z, z_q, indices


CASES = [("joint", 1, True), ("two", 1, True), ("two", 2, True), ("two", 1, False)]


def test_exported_programs_run_where_the_package_is_not(tmp_path):
    """All cases in one process of their own: most of its time is the import of torch."""
    for number, (parts, topk, frozen) in enumerate(CASES):
        encode, decode, z, z_q, indices = pair(parts, topk, frozen)
        programs = {"encode": torch.export.export(encode, (z,)), "decode": torch.export.export(decode, (indices,))}
        for name, program in programs.items():
            targets = {str(node.target) for node in program.graph.nodes if node.op == "call_function"}
            assert all(target.startswith("aten.") or "getitem" in target for target in targets), targets
            torch.export.save(program, tmp_path / f"{name}{number}.pt2")
        torch.save({"z": z, "indices": indices, "z_q": z_q}, tmp_path / f"expected{number}.pt")
    code = """
import sys, torch
sys.modules["vqct_plugin"] = None  # an import of it fails
for number in range(int(sys.argv[1])):
    expected = torch.load(f"expected{number}.pt")
    indices, z_q = torch.export.load(f"encode{number}.pt2").module()(expected["z"])
    assert torch.equal(indices, expected["indices"]), number
    assert torch.allclose(z_q, expected["z_q"], atol=1e-5), number
    decoded = torch.export.load(f"decode{number}.pt2").module()(indices)
    assert torch.allclose(decoded, expected["z_q"], atol=1e-5), number
print("ran", number + 1)
"""
    command = [sys.executable, "-c", code, str(len(CASES))]
    done = subprocess.run(command, check=True, cwd=tmp_path, stdout=subprocess.PIPE, text=True)
    assert done.stdout.split() == ["ran", str(len(CASES))]


ONNX_CASES = [("joint", 1, {}), ("two", 1, {"l2_normalize": True}), ("two", 2, {"sane_index_shape": True})]


@pytest.mark.parametrize(("parts", "topk", "options"), ONNX_CASES)
def test_onnx_gives_the_same_indices(parts, topk, options, tmp_path):
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    encode, decode, z, z_q, indices = pair(parts, topk, True, **options)
    torch.onnx.export(encode, (z,), tmp_path / "encode.onnx", dynamo=True, verbose=False)
    torch.onnx.export(decode, (indices,), tmp_path / "decode.onnx", dynamo=True, verbose=False)

    def run(name, *inputs):
        session = onnxruntime.InferenceSession(tmp_path / f"{name}.onnx", providers=["CPUExecutionProvider"])
        return session.run(None, {i.name: x.numpy() for i, x in zip(session.get_inputs(), inputs)})

    got_indices, got_z_q = run("encode", z)
    assert (got_indices == indices.numpy()).all()
    assert torch.allclose(torch.from_numpy(got_z_q), z_q, atol=1e-5)
    assert torch.allclose(torch.from_numpy(run("decode", indices)[0]), z_q, atol=1e-5)


def test_any_number_of_images_and_any_size():
    """Batch, height and width left open in one exported program."""
    encode, _, z, _, _ = pair("two", 1, True)
    batch, height, width = (torch.export.Dim(name, min=2, max=64) for name in ("batch", "height", "width"))
    program = torch.export.export(encode, (z,), dynamic_shapes=({0: batch, 2: height, 3: width},)).module()
    for shape in ((2, 24, 4, 6), (5, 24, 8, 3)):
        other = torch.randn(shape)
        indices, z_q = program(other)
        expected = encode(other)
        assert torch.equal(indices, expected[0])
        assert torch.allclose(z_q, expected[1], atol=1e-5)


WAYS = {
    "torch.export": lambda module, x: torch.export.export(module, (x,)).module()(x),
    "torch.export, strict": lambda module, x: torch.export.export(module, (x,), strict=True).module()(x),
    "torch.jit.trace": lambda module, x: torch.jit.trace(module, (x,))(x),
}


@pytest.mark.parametrize("way", WAYS)
def test_a_stale_frozen_codebook_is_not_exported(way):
    """Refused; but the strict way only reads our Python and sees no value: what it gives is NaN."""
    encode, decode, z, z_q, indices = pair("two", 1, True)
    assert torch.allclose(WAYS[way](decode, indices), z_q, atol=1e-5)
    with torch.no_grad():
        encode.quantize.transfer.layer2.weight.add_(1)
    for module, x in ((encode, z), (decode, indices)):
        if "strict" in way:
            out = WAYS[way](module, x)
            assert torch.isnan(out[1] if module is encode else out).all()
        else:
            with pytest.raises(RuntimeError, match=r"call freeze_codebook\(\) again"):
                WAYS[way](module, x)
    assert torch.allclose(WAYS[way](Decode(encode.quantize.freeze_codebook()), indices), decode(indices), atol=1e-5)


def test_a_stale_frozen_codebook_gives_nothing_that_looks_right_in_onnx(tmp_path):
    """torch.onnx.export tries the strict way where the other refuses, without a word."""
    pytest.importorskip("onnxscript")
    onnxruntime = pytest.importorskip("onnxruntime")
    _, decode, _, _, indices = pair("two", 1, True)
    with torch.no_grad():
        decode.quantize.transfer.layer2.weight.add_(1)
    torch.onnx.export(decode, (indices,), tmp_path / "decode.onnx", dynamo=True, verbose=False)
    session = onnxruntime.InferenceSession(tmp_path / "decode.onnx", providers=["CPUExecutionProvider"])
    (decoded,) = session.run(None, {session.get_inputs()[0].name: indices.numpy()})
    assert torch.isnan(torch.from_numpy(decoded)).all()


@pytest.mark.parametrize("way", ["torch.export", "torch.jit.trace"])
def test_exporting_in_training_mode_is_refused_in_a_sentence(way):
    encode, _, z, _, _ = pair("two", 1, False)
    with pytest.raises(RuntimeError, match=r"call \.eval\(\) on the module before exporting it"):
        WAYS[way](encode.train(), z)


def test_exported_codes_of_the_wrong_part_decode_to_nothing_that_looks_right():
    _, decode, _, z_q, indices = pair("two", 1, True)
    program = torch.export.export(decode, (indices,)).module()
    assert torch.allclose(program(indices), z_q, atol=1e-5)
    indices[3] = 50
    wrong = torch.isnan(program(indices))
    assert wrong[0, :, 0, 3].all()
    assert wrong.sum() == 24
