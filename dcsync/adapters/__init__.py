"""Adapters translate between dcsync's words and the world's; they make no decision about a subcloud."""
