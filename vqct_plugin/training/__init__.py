"""Training: the launcher of a taming YAML on today's Lightning, and its callbacks."""
