"""Writes a checkpoint of toy.py's stock model, made with the installed Lightning: write_checkpoint.py FILE.

CI runs it on Lightning 1.0.8, and gives the file to test_ckpt_path.py on today's as OLD_LIGHTNING_CHECKPOINT.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
from tests.hosts.toy import fit, images, params
from vqct_plugin.compat.lightning import for_installed_lightning
from vqct_plugin.compat.taming_imports import import_taming

model = for_installed_lightning(import_taming().VQModel)(**params())
fit(model, images(2)).save_checkpoint(sys.argv[1])
