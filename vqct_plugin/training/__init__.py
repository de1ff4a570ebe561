"""Taming YAML on today's Lightning: data sets, losses, callbacks and the launcher."""
