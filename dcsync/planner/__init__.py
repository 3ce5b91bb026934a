"""Compares two clouds and plans, in order, the writes that bring a subcloud into line. Pure.

`match` pairs records, `differences` compares them, `resolve` resolves conflicts over names and ids, `groups` and
`grants` add members and role assignments, `order` computes dependencies between `writes`, and `plan` combines them: an
audit carries out the whole plan, an initial sync only its updates of same-named records.
"""
