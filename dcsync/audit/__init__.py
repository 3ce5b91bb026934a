"""Service 3: keeps a subcloud in sync after its initial sync: one run compares, repairs and reports.

`dcsync.planner` plans what differs, `engine` carries out one run, `sweep` finds what is due.
"""
