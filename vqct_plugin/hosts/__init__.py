"""Hosts: the models or the quantizer of one codebase in each file, and what they share."""
