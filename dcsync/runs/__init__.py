"""What every run shares, whichever service it works for: dispatch, ownership, delivery, and their ports."""
