"""The values every layer uses: subclouds, identity data, states, reports, reasons, errors. Pure."""
