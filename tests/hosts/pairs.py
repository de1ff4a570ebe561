"""A host's quantizer and the plain one with the same weights, to compare what they return."""

from tests.conftest import make_prior
from vqct_plugin.quantizer import CodebookTransferQuantizer

OPTIONS = [{}, {"topk": 2}, {"parts_of_speech": "joint"}]


def make_pair(cls, legacy=True, **options):
    """An adapter and a plain quantizer of the same weights, both without dropout."""
    options = {"prior": make_prior(), "dropout": 0.0, **options}
    ours = cls(40, 16, **options)
    plain = CodebookTransferQuantizer(40, 16, **{"legacy": legacy, **options})
    plain.load_state_dict(ours.state_dict())
    return ours, plain
