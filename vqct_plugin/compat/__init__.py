"""Other people's versions and files: Lightning, taming, checkpoints, pickles. Nothing here knows of codebooks."""
