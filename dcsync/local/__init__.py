"""Everything on one machine: embedded servers, `dcsync up`, `dcsync demo`. Not needed in production."""
