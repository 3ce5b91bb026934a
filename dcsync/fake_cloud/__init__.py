"""A central cloud and up to 5,000 subclouds over real HTTP, in one process: for the demo, tests and benchmarks.

It is an independent witness: nothing here is imported from the rest of dcsync, and matching, filters and alignment are
written a second time (`inspection.py`). It behaves as a real Keystone and a real dcdbsync were recorded to behave;
refusals are included. Not included: TLS, token caches in the services, Keystone's quotas, policies and pagination.

    wire         a request and a response as values
    connection   one TCP connection: parsing, and the ways an answer can go wrong
    passwords, tokens, deployment, cloud     what a cloud holds
    keystone, dbsync, sysinv                 what it answers
    faults, changes                          what can be done to it while it runs
    watchman, inspection                     what it has seen, and where it stands
    server, __main__                         all of it on sockets
    control                                  the client: `FakeCloud`
"""
