"""This process and this machine: clock, event loop, process records, alarm sinks."""
