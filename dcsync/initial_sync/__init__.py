"""Service 1: brings a subcloud from `requested` to `completed`.

`sweep` finds what is due, `engine` carries out one run, `steps` aligns the subcloud, `dcsync.planner` plans the writes.
`dcsync.model.states.initial_sync` is the table of states; availability is handled by service 2, `dcsync.state`.
"""
