"""dcsync brings remote subclouds into line with their central cloud, and keeps them there."""

__version__ = "0.1.0"
