"""The local process and host: clock, event loop, process records, alarm sinks."""
