"""Named recipes: every setting of an experiment, and the objects that are made of settings."""
