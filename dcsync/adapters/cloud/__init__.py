"""The central cloud and the subclouds over HTTP: Keystone, dcdbsync, sysinv."""
