"""Everything on one machine: embedded servers, `dcsync up`, `dcsync demo`. Production needs nothing of this room."""
