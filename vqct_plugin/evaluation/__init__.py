"""Figures and pictures of a trained model."""
