"""Which rows a student is trained on: those that are hard for it, and that its teacher knows better."""
