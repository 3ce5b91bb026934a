"""A contract type for import-linter: modules that may import nothing but what is listed.

A list of what is forbidden is wrong with each new dependency until somebody adds it; a list of what is allowed is not.
"""

from __future__ import annotations

from grimp import ImportGraph
from importlinter import Contract, ContractCheck, fields, output


class OnlyContract(Contract):
    """`source_modules`, with everything below them, import one another and `allowed_modules`, and nothing else."""

    type_name = "only"

    source_modules = fields.ListField(subfield=fields.StringField())
    allowed_modules = fields.SetField(subfield=fields.StringField())

    def check(self, graph: ImportGraph, verbose: bool) -> ContractCheck:
        sources = set(self.source_modules)  # type: ignore[call-overload]
        inside = sources.union(*(graph.find_descendants(source) for source in sources))
        allowed = set(self.allowed_modules)  # type: ignore[call-overload]
        found = sorted(
            (importer, imported)
            for importer in inside
            for imported in graph.find_modules_directly_imported_by(importer)
            if imported not in inside and not _is_within(imported, allowed)
        )
        return ContractCheck(kept=not found, metadata={"found": found})

    def render_broken_contract(self, check: ContractCheck) -> None:
        for importer, imported in check.metadata["found"]:
            output.print_error(f"{importer} imports {imported}, which is not on its list.")


def _is_within(module: str, packages: set[str]) -> bool:
    return any(module == package or module.startswith(f"{package}.") for package in packages)
