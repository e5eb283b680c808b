"""Tables and progress, from stored records alone."""
