"""Which processes train, on which machines, and what each is told."""
