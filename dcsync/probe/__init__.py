"""Service: probes subclouds and reports their availability."""
