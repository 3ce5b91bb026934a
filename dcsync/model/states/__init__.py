"""One table of transitions, (state, event) -> state, for each kind of row. Pure.

Every write of a state reads from its table which state an event leads to, and in which states it may happen.
`docs/states.md` and the CHECK constraints of the columns are generated from the tables.
"""
