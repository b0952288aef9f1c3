"""Stage *seeds*: the user's own data, recognised by content, checked whole before anything is spent."""
