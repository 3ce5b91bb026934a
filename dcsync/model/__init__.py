"""What every room speaks of, as plain values: subclouds, identity data, states, reports, reasons, errors. Pure."""
