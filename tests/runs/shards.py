"""Small photographs, and the same in webdataset's shards and in a table of Hugging Face's."""

import io
import tarfile

import numpy as np
from PIL import Image


def photograph(i, size=(24, 20)):
    """The content of a PNG file; no two are alike."""
    pixels = np.random.RandomState(i).randint(0, 256, (*size, 3), dtype=np.uint8)
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_shard(path, files):
    """A tar file of (name, content)."""
    with tarfile.open(path, "w") as archive:
        for name, content in files:
            info = tarfile.TarInfo(name)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))
    return path


def write_shards(folder, counts=(5, 4, 6)):
    """Shards of so many samples each, with a caption beside each image, as webdataset's users have them."""
    folder.mkdir(exist_ok=True, parents=True)
    number = 0
    for k, count in enumerate(counts):
        files = []
        for _ in range(count):
            files += [(f"{number:05}.png", photograph(number)), (f"{number:05}.json", b'{"caption": "a bird"}')]
            number += 1
        write_shard(folder / f"train-{k:03}.tar", files)
    return folder


def write_folder(folder, count=15):
    folder.mkdir(exist_ok=True, parents=True)
    for i in range(count):
        (folder / f"{i:05}.png").write_bytes(photograph(i))
    return folder


def make_table(count=15, content=photograph):
    """A ``datasets.Dataset`` of the same photographs, with a caption each."""
    import datasets

    features = datasets.Features({"caption": datasets.Value("string"), "photo": datasets.Image()})
    rows = {"caption": ["a bird"] * count, "photo": [{"bytes": content(i), "path": None} for i in range(count)]}
    return datasets.Dataset.from_dict(rows, features=features)
