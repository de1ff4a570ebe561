"""The wings that stand on the core: a host's model with our quantizer, one file per host."""
