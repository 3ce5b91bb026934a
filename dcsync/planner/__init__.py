"""What two clouds have in common, what differs, and which writes bring a subcloud into line, in which order. Pure.

`match` pairs records, `differences` compares them, `resolve` sorts out who may take which name and id, `groups` and
`grants` add what hangs on records, `order` says which of the `writes` needs which, and `plan` joins it all: the whole
plan is what an audit repairs, its updates of same-named records are what an initial sync writes.
"""
