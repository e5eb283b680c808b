"""Methods that need more than a loss or a sampler: modules and training steps of their own."""
