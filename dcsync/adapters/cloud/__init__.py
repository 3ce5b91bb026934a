"""HTTP access to the central cloud and the subclouds: Keystone, dcdbsync, sysinv."""
