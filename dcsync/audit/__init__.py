"""Service 3: keeps a subcloud in line once its initial sync is completed: compare, repair, report, in one run.

`dcsync.planner` decides what differs, `engine` carries out one run, `sweep` finds what is due.
"""
