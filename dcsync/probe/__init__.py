"""Service: looks whether subclouds answer, and reports their availability."""
