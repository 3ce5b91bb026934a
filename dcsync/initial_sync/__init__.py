"""Service 1: brings a subcloud from `requested` to `completed`.

`sweep` finds what is due, `engine` carries out one run, `steps` talks to the subcloud, `dcsync.planner` decides
what differs. How states may change is `dcsync.model.states.initial_sync`; what happens to availability is service 2,
`dcsync.state`.
"""
