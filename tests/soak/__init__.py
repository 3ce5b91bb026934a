"""The long seeded proof: a whole dcsync in a storm of misfortunes and orders, then calm, then everything is looked at.

    python -m tests.soak --minutes 20 --seed 7          (`make soak MINUTES=20 SEED=7`)

Not one of the tests that `make test` runs. `crew` are the processes, `storm` what befalls them (`orders` what its dice
choose from), `calm` what must be true afterwards, `traces` what is left behind: memory, files, Redis keys, logs.
"""
