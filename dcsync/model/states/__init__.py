"""The states a row moves through, one table of (state, event) -> state for each kind of row. Pure.

Every write of a state takes its words from its table: which state an event leads to, and in which states it may happen.
`docs/states.md` is drawn from the tables, and the CHECK constraints of the columns are made from their states.
"""
