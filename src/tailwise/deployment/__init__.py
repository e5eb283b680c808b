"""Trained and adjusted models on new images."""
