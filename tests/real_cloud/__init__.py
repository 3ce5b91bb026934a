"""A real Keystone as centre and as subclouds, for tests: who holds what is `content.py`, how to use it `clouds.py`.

Runs in two Pythons. `environment.py`, `clouds.py` and `fixtures.py` belong to the test process. Everything `host.py`
imports runs in a virtual environment of its own (`.keystone-venv`), so that Keystone's pins and ours never meet;
`content.py` is plain data for both. Nothing of dcsync is imported here.
"""
