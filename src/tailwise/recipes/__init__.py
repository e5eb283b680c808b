"""Named experiments: settings, what builds them, what runs them, and the folders they leave."""
