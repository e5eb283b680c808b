"""Recipes trained over seeds, and the run folders they leave: what is in them, read, adjusted and measured again."""
