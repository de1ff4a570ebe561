"""Stage 2: tokens, their layout in a sequence, a transformer over positions, and drawing from it."""
