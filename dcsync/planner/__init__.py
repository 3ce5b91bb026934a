"""Which records of two clouds are the same thing, what differs, and what is written in which order. Pure."""
